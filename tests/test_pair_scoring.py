import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_model
import toy_language
from slam.errors import InputError
from slam.model import SpeechLM
from slam.packing import use_packed
from slam.pair_scoring import score_pairs
from slam.pairs import PairRow
from slam.protocols import Utterances, read_protocol
from slam.units import deduplicate

RATE = toy_language.FRAME_RATE
NAMES = (
    "slam",
    "slam+sum",
    "slam+no-eos",
    "slam+no-bos",
    "slam+no-bos+no-eos+sum",
    "slam+frames",
    "slam+continuation",
    "slam+continuation+sum+no-eos",
    "slam+localized",
    "slam+frames+localized+sum",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model that this project loads, and the same one as anybody would load it."""
    folder = tmp_path_factory.mktemp("lm")
    lm = toy_language.new_toy_lm(0)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)
    toy_language.write_lm(folder, lm)
    speech_lm = SpeechLM.load(folder)
    use_packed(speech_lm.lm)
    return speech_lm, reference_model.load_plainly(folder)


def some_pairs(number, seed, *, prompts=(0, 40)):
    """Pairs whose sides share a random number of first frames; every third row knows its seam."""
    generator = np.random.default_rng(seed)
    pairs = []
    for index in range(number):
        prompt = generator.integers(0, toy_language.NUM_UNITS, generator.integers(*prompts))
        tails = [generator.integers(0, toy_language.NUM_UNITS, generator.integers(1, 30)) for _ in range(2)]
        frames = [np.concatenate((prompt, tail)) for tail in tails]
        seam = len(prompt) / RATE if index % 3 == 0 else 0.0
        row = PairRow(f"pair-{index}", "set", "all", f"{index}-c", f"{index}-r", seam, seam)
        pairs.append(Utterances(row, *(deduplicate(one, RATE) for one in frames)))
    return pairs


def slow_score(plain, pair, other, units, name):
    """A side's score by the words of the protocol's name, frame by frame, one document at a time."""
    words = name.split("+")[1:]
    per_frame = "frames" in words

    def items(which):
        expanded = which.expand().tolist()
        begins = range(len(expanded)) if per_frame else np.cumsum([0, *which.durations])[:-1].tolist()
        ids = expanded if per_frame else which.ids.tolist()
        return list(zip(begins, ids, strict=True))

    own, opposite = items(units), items(other)
    document = [toy_language.VOCABULARY.bos, *(unit + 2 for _, unit in own), toy_language.VOCABULARY.eos]
    scores = [None, *reference_model.token_log_likelihoods(plain, document).tolist()]
    if "no-bos" in words:
        document = document[1:]
        scores = [None, None, *reference_model.token_log_likelihoods(plain, document).tolist()]
    counted = list(range(len(own)))
    if "continuation" in words or "localized" in words:
        if pair.row.chosen_start:
            # what was heard early: trailing frames of the prompt that differ between the sides
            frame = round(pair.row.chosen_start * RATE)
            one, two = pair.chosen.expand()[:frame], pair.rejected.expand()[:frame]
            reach = min(4, frame)
            differing = [k for k in range(reach, 0, -1) if one[-k] != two[-k]]
            early = differing[0] if differing and differing[0] < reach else 0
            begin = max(k for k, (at, _) in enumerate(own) if at <= frame - early)
        else:
            begin = 0
            while begin < min(len(own), len(opposite)) and own[begin][1] == opposite[begin][1]:
                begin += 1
            begin = min(begin, len(own) - 1, len(opposite) - 1)
        counted = counted[begin:]
        if "localized" in words:
            counted = [k for k in counted if own[k][0] < own[begin][0] + 0.5 * RATE]
    positions = [k + 1 for k in counted]
    if "no-eos" not in words and "localized" not in words:
        positions.append(len(own) + 1)
    found = [scores[position] for position in positions if scores[position] is not None]
    return sum(found) if "sum" in words else sum(found) / len(found)


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_those_of_plain_transformers_one_document_at_a_time(models, name):
    speech_lm, plain = models
    pairs = some_pairs(30, seed=5)
    found = score_pairs(speech_lm, pairs, [read_protocol(name)])[0]
    for pair, (chosen, rejected) in zip(pairs, found, strict=True):
        with torch.no_grad():
            expected = (
                slow_score(plain, pair, pair.rejected, pair.chosen, name),
                slow_score(plain, pair, pair.chosen, pair.rejected, name),
            )
        assert (chosen, rejected) == pytest.approx(expected, abs=1e-4)


def test_protocols_scored_together_score_as_each_does_alone(models):
    pairs = some_pairs(20, seed=6)
    protocols = [read_protocol(name) for name in NAMES]
    together = score_pairs(models[0], pairs, protocols)
    for number, protocol in enumerate(protocols):
        assert together[number] == pytest.approx(score_pairs(models[0], pairs, [protocol])[0], abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 40, 300, 5000]))
def test_scores_depend_neither_on_the_size_of_a_pass_nor_on_the_order(models, seed, most_tokens):
    pairs = some_pairs(12, seed)
    protocols = [read_protocol(name) for name in ("slam", "slam+continuation")]
    first = score_pairs(models[0], pairs, protocols)
    order = np.random.default_rng(seed).permutation(len(pairs))
    again = score_pairs(models[0], [pairs[k] for k in order], protocols, most_tokens=most_tokens)
    assert again == pytest.approx(first[:, order], abs=1e-5)


def test_swapped_sides_have_swapped_scores_exactly(models):
    pairs = some_pairs(20, seed=8)
    swapped = [Utterances(pair.row, pair.rejected, pair.chosen) for pair in pairs]
    protocols = [read_protocol("slam")]
    one, other = (score_pairs(models[0], some, protocols)[0] for some in (pairs, swapped))
    assert ((one[:, 0] > one[:, 1]) == (other[:, 1] > other[:, 0])).all()
    assert one == pytest.approx(other[:, ::-1], abs=1e-6)


def test_equal_sides_score_the_same_to_the_last_bit_whatever_is_beside_them(models):
    pairs = some_pairs(25, seed=9)
    pairs = [Utterances(p.row, p.chosen, p.chosen if k % 2 else p.rejected) for k, p in enumerate(pairs)]
    found = score_pairs(models[0], pairs, [read_protocol("slam+no-bos")], most_tokens=100)[0]
    assert all(one == other for one, other in found[1::2])


def test_a_long_shared_beginning_is_said_once(models, monkeypatch):
    tokens = []
    forward = models[0].lm.forward

    def counted(*args, **kwargs):
        tokens.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(models[0].lm, "forward", counted)
    pairs = some_pairs(6, seed=10, prompts=(200, 201))
    score_pairs(models[0], pairs, [read_protocol("slam")])
    both = sum(len(side) + 2 for pair in pairs for side in (pair.chosen, pair.rejected))
    assert sum(tokens) < 0.65 * both


def test_a_pair_of_which_nothing_counts_is_named(models):
    lone = deduplicate(np.array([3]), RATE)
    pair = Utterances(PairRow("lone", "set", "all", "c", "r", 0.0, 0.0), lone, lone)
    with pytest.raises(InputError, match=r"pair 'lone': nothing of a side counts by .*no-bos\+no-eos"):
        score_pairs(models[0], [pair], [read_protocol("slam+no-bos+no-eos")])


def test_the_model_is_left_in_the_mode_it_was_in(models):
    lm = models[0].lm
    for training in (True, False):
        lm.train(training)
        score_pairs(models[0], some_pairs(2, seed=1), [read_protocol("slam")])
        assert lm.training is training
