"""The decoding loop against `transformers`' own, for every family; what holds of a batch and its seeds."""

import numpy as np
import pytest
import torch
import transformers

import slam.decoding
from slam.decoding import continue_units, stream_units
from slam.errors import ConfigError, InputError
from slam.model import SpeechLM
from slam.sampling import Sampling
from tiny_families import SUPPORTED, VOCABULARY, built, random_documents, save_base

GREEDY = Sampling(temperature=0.0, repetition_penalty=1.0)
UNEVEN = (9, 3, 17, 1, 9)  # units of prompts
NEW = 24


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    made = {}
    for name, config in SUPPORTED.items():
        lm = built(save_base(root / name, config())).eval()
        with torch.no_grad():  # the fresh rows are as small as real ones; scores should differ clearly
            lm.get_input_embeddings().weight.mul_(3)
        made[name] = SpeechLM(lm, VOCABULARY, "toy", "0")
    return made


@pytest.fixture
def speech_lm(families):
    return families["qwen2"]


def prompts_of(lengths, seed=0):
    return [document - VOCABULARY.offset for document in random_documents(lengths, seed)]


def stock(speech_lm, prompt, **options):
    """What `transformers` generates of one prompt, as units and whether it ended."""
    lm = speech_lm.lm
    lm.set_attn_implementation("sdpa")
    tokens = torch.from_numpy(VOCABULARY.document(prompt)[:-1].astype(np.int64))[None]
    made = lm.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=NEW,
        do_sample=False,
        suppress_tokens=[VOCABULARY.pad],
        pad_token_id=VOCABULARY.pad,
        eos_token_id=VOCABULARY.eos,
        **options,
    )[0, tokens.shape[1] :].numpy()
    return VOCABULARY.ids(made).tolist(), bool(made[-1] == VOCABULARY.eos)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"no_repeat_ngram": 3}, {"no_repeat_ngram_size": 3}),
        (
            {"repetition_penalty": 1.2, "no_repeat_ngram": 2},
            {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
        ),
    ],
)
@pytest.mark.parametrize("family", SUPPORTED)
def test_greedy_continuations_are_those_of_transformers(families, family, ours, theirs):
    speech_lm = families[family]
    sampling = Sampling(**{"temperature": 0.0, "repetition_penalty": 1.0} | ours)
    prompts = prompts_of(UNEVEN)
    found = continue_units(speech_lm, prompts, max_new_units=NEW, sampling=sampling, seeds=[0] * len(prompts))
    expected = [stock(speech_lm, prompt, **theirs) for prompt in prompts]
    assert [(one.ids.tolist(), one.ended) for one in found] == expected
    assert len({tuple(one.ids.tolist()) for one in found}) > 1


def test_a_model_that_ends_says_so_and_its_row_drops_out(speech_lm, monkeypatch):
    """Rows that end early, and at different steps, leave the others as they are."""
    sampling = Sampling(temperature=1.5, top_k=22, repetition_penalty=1.0)
    prompts = prompts_of([5] * 12)
    alone = [
        continue_units(speech_lm, [prompt], max_new_units=NEW, sampling=sampling, seeds=[seed])[0]
        for seed, prompt in enumerate(prompts)
    ]
    sizes = []
    keep_rows = slam.decoding.KVCache.keep_rows
    monkeypatch.setattr(
        slam.decoding.KVCache,
        "keep_rows",
        lambda self, rows: (sizes.append(len(rows)), keep_rows(self, rows)),
    )
    found = continue_units(speech_lm, prompts, max_new_units=NEW, sampling=sampling, seeds=range(12))
    assert [(one.ids.tolist(), one.ended) for one in found] == [
        (one.ids.tolist(), one.ended) for one in alone
    ]
    assert 0 < sum(one.ended for one in found) < 12
    assert all(len(one.ids) < NEW for one in found if one.ended)
    assert sizes == sorted(set(sizes), reverse=True)  # fewer rows each time
    assert min(sizes) <= 12 - sum(one.ended for one in found) + 1


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.2, top_k=100, top_p=0.9, min_p=0.02, no_repeat_ngram=3)]
)
@pytest.mark.parametrize("family", ["qwen2", "pythia", "gpt2"])
def test_a_prompt_and_a_seed_decide_a_continuation_whatever_the_batch(
    families, family, sampling, monkeypatch
):
    speech_lm = families[family]
    prompts = prompts_of([4, 11, 2, 17, 9, 5, 6, 3])
    seeds = [31, 7, 7, 1, 0, 99, 4, 2**32 - 1]

    def made(order):
        found = continue_units(
            speech_lm,
            [prompts[index] for index in order],
            max_new_units=NEW,
            sampling=sampling,
            seeds=[seeds[index] for index in order],
        )
        return {index: one.ids.tolist() for index, one in zip(order, found, strict=True)}

    together = made(range(8))
    assert made([5, 2, 7, 0, 1, 6, 3, 4]) == together
    assert made([3, 1]) == {3: together[3], 1: together[1]}
    for index in range(8):
        assert made([index]) == {index: together[index]}
        stream = stream_units(
            speech_lm, prompts[index], max_new_units=NEW, sampling=sampling, seed=seeds[index]
        )
        assert list(stream) == together[index]
    monkeypatch.setattr("slam.decoding._ROWS_ON_CPU", 3)
    assert made(range(8)) == together  # in three batches
    monkeypatch.setattr("slam.decoding._PREFILLED", 20)
    assert made(range(8)) == together  # prompts in several passes


def test_fewer_units_are_the_beginning_of_more(speech_lm):
    prompts = prompts_of([7, 3])
    long = continue_units(speech_lm, prompts, max_new_units=NEW, seeds=[1, 2])
    short = continue_units(speech_lm, prompts, max_new_units=5, seeds=[1, 2])
    for one, other in zip(short, long, strict=True):
        assert one.ids.tolist() == other.ids[:5].tolist()


def test_seeds_differ_and_so_do_continuations(speech_lm):
    prompt = prompts_of([6])[0]
    found = continue_units(speech_lm, [prompt] * 20, max_new_units=NEW, seeds=range(20))
    assert len({tuple(one.ids.tolist()) for one in found}) > 15


def test_units_are_drawn_as_often_as_the_model_says(speech_lm):
    """A first unit drawn 4000 times, against the probabilities of stock transformers."""
    prompt = prompts_of([6])[0]
    sampling = Sampling(temperature=1.0, top_k=100, repetition_penalty=1.0)
    number = 4000
    found = continue_units(
        speech_lm, [prompt] * number, max_new_units=1, sampling=sampling, seeds=range(number)
    )
    tokens = torch.from_numpy(VOCABULARY.document(prompt)[:-1].astype(np.int64))[None]
    plain = transformers.AutoModelForCausalLM.from_config(speech_lm.lm.config)
    plain.load_state_dict(speech_lm.lm.state_dict())
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        scores = plain.eval()(input_ids=tokens).logits[0, -1]
    scores[VOCABULARY.pad] = -torch.inf
    expected = scores.softmax(0).numpy() * number
    counts = np.zeros(VOCABULARY.size)
    for one in found:
        counts[VOCABULARY.eos if one.ended else one.ids[0] + VOCABULARY.offset] += 1
    likely = expected > 5
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert counts[VOCABULARY.pad] == 0
    assert chi_square < likely.sum() + 5 * (2 * likely.sum()) ** 0.5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_wants_to_pad_never_does(temperature):
    lm = built(None).eval()
    with torch.no_grad():
        # a head that points where the padding's embedding points makes padding the likeliest by far
        lm.model.embed_tokens.weight[0] = 1e3 * lm.model.embed_tokens.weight[2:].mean(0)
    speech_lm = SpeechLM(lm, VOCABULARY, "toy", "0")
    sampling = Sampling(temperature=temperature, top_k=100)
    (found,) = continue_units(speech_lm, prompts_of([3]), max_new_units=15, sampling=sampling, seeds=[0])
    assert found.ended or len(found.ids) == 15  # what is left out of the vocabulary would be missing


def test_what_cannot_be_continued_is_refused(families):
    empty = np.zeros(0, np.uint16)
    with pytest.raises(InputError, match="prompt 1: holds no units; a prompt must last at least one frame"):
        continue_units(families["qwen2"], [*prompts_of([3]), empty], seeds=[0, 0])
    with pytest.raises(InputError, match="longer than the 64 positions"):
        continue_units(families["gpt2"], prompts_of([3]), max_new_units=61, seeds=[0])
    with pytest.raises(InputError, match="longer than the 64 positions"):
        next(stream_units(families["gpt2"], prompts_of([3])[0], max_new_units=61))
    assert len(continue_units(families["gpt2"], prompts_of([3]), max_new_units=60, seeds=[0])) == 1
    assert continue_units(families["qwen2"], [], seeds=[]) == []


def test_a_window_that_is_shorter_than_what_is_said_is_refused():
    config = transformers.MistralConfig(
        vocab_size=VOCABULARY.size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=16,
    )
    lm = transformers.AutoModelForCausalLM.from_config(config)
    speech_lm = SpeechLM(lm, VOCABULARY, "toy", "0")
    with pytest.raises(ConfigError, match="longer than the window of 16"):
        continue_units(speech_lm, prompts_of([5]), max_new_units=20, seeds=[0])
    assert len(continue_units(speech_lm, prompts_of([5]), max_new_units=8, seeds=[0])) == 1
