"""Each filter of scores against `transformers`' own; drawing against the distribution it draws from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from slam.drawing import draw, filtered
from slam.errors import ConfigError
from slam.sampling import Sampling, seed_of, uniforms

SIZE = 13
PAD = 0


def theirs(tokens, scores, sampling):
    """The chain that `generate` builds of these settings, for one row without padding."""
    chain = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.no_repeat_ngram:
        chain.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram))
    chain.append(SuppressTokensLogitsProcessor([PAD], device="cpu"))
    if sampling.temperature:
        chain.append(TemperatureLogitsWarper(sampling.temperature))
        chain.append(TopKLogitsWarper(sampling.top_k))
        chain.append(TopPLogitsWarper(sampling.top_p))
        chain.append(MinPLogitsWarper(sampling.min_p))
    return chain(tokens[None], scores[None])[0]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_filters_are_those_of_transformers_row_by_row(data):
    sampling = Sampling(
        temperature=data.draw(st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.5])),
        top_k=data.draw(st.integers(1, SIZE + 5)),
        top_p=data.draw(st.sampled_from([1.0, 0.95, 0.5, 0.01])),
        min_p=data.draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])),
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.1, 2.0, 0.7])),
        no_repeat_ngram=data.draw(st.integers(0, 4)),
    )
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    few = data.draw(st.integers(2, SIZE))  # of few tokens, many repeat
    scores = 3 * torch.randn(len(lengths), SIZE, generator=generator)
    history = torch.randint(1, few, (len(lengths), 24), generator=generator)
    rows = [history[row, :length] for row, length in enumerate(lengths)]
    seen = torch.zeros(len(lengths), SIZE, dtype=torch.bool)
    for row, said in enumerate(rows):
        seen[row, said] = True
    found = filtered(
        scores,
        sampling,
        history=history,
        lengths=torch.tensor(lengths),
        seen=seen,
        never=torch.arange(SIZE) == PAD,
    )
    for row, said in enumerate(rows):
        torch.testing.assert_close(found[row], theirs(said, scores[row], sampling), rtol=1e-6, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    scores=st.lists(st.sampled_from([-50.0, -1.0, 0.0, 2.0, float("-inf")]), min_size=1, max_size=9),
    uniform=st.floats(0, 1, exclude_max=True, width=32),
)
def test_what_cannot_be_drawn_never_is(scores, uniform):
    if max(scores) == float("-inf"):
        scores[0] = 0.0
    for number in (uniform, 0.0, 1 - 2**-24):
        (token,) = draw(torch.tensor([scores]), torch.tensor([number]))
        assert scores[int(token)] > float("-inf")


def test_a_number_falls_among_the_probabilities():
    scores = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(8, 4)
    numbers = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 0.87, 0.88, 0.99])
    assert draw(scores, numbers).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert draw(scores.flip(1), None).tolist() == [3] * 8


def test_a_rows_numbers_are_its_seeds():
    both = uniforms([3, 2**32 - 1], 50)
    assert ((both >= 0) & (both < 1)).all()
    assert (both[0] == uniforms([3], 50)).all()
    assert (both[:, :20] == uniforms([3, 2**32 - 1], 20)).all()
    assert (both[0] != both[1]).all()
    assert seed_of(0, "a") == seed_of(0, "a")
    assert len({seed_of(0, "a"), seed_of(0, "b"), seed_of(1, "a")}) == 3


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"temperature": -0.1}, "temperature = -0.1: must not be negative"),
        ({"temperature": float("inf")}, "temperature = inf: must not be negative"),
        ({"top_k": 0}, "top_k = 0: must be at least 1"),
        ({"top_p": 0.0}, "top_p = 0.0: must be more than 0 and at most 1"),
        ({"min_p": 1.5}, "min_p = 1.5: must be between 0 and 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0: must be more than 0"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram = -1: must not be negative"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong, line):
    with pytest.raises(ConfigError) as caught:
        Sampling(**wrong)
    assert str(caught.value) == line
