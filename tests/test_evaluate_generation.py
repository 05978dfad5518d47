import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny_text_models
import toy_language
from conformance import check_recognizer
from slam.audio import Audio, write_audio
from slam.errors import ConfigError, InputError, MismatchError
from slam.evaluate_generation import EvaluateGenerationConfig, evaluate_generation
from slam.generate import GenerateConfig, generate
from slam.metrics.auto_bleu import auto_bleu, words
from slam.pack import PackConfig, pack
from slam.pretrain import PretrainConfig, pretrain
from slam.recognizers import load_recognizer
from slam.run import read_json, read_json_lines, write_json_lines
from slam.shards import open_shards
from slam.text_lm import TextLM

SAID = [
    "Once upon a time there was a dog.",
    "The girl ran to the lake, and the dog ran to the lake.",
    "",
    "A red bird saw her.",
]


class Reader:
    """Stands for a recogniser: it reads the text that a sound's length stands for."""

    name, sample_rate = "reader", 16_000
    heard: list[int] = []  # noqa: RUF012 - what was heard so far, by all

    @classmethod
    def load(cls, source):
        assert source
        return cls()

    def transcribe(self, batch):
        lengths = [round(audio.resample(16_000).seconds * 10) for audio in batch]
        Reader.heard.extend(lengths)
        return [SAID[length % len(SAID)] for length in lengths]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return tiny_text_models.save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def sounds(tmp_path):
    """Sounds of 0.8, 0.9 … 1.5 s: what is said in them goes round the four texts."""
    for number in range(8):
        samples = np.full(round(16_000 * (0.8 + number / 10)), 0.1, np.float32)
        write_audio(tmp_path / "sounds" / f"{number}.wav", Audio(samples, 16_000))
    return tmp_path / "sounds"


def config_of(sounds, lm, **changes):
    chosen = {
        "continuations": {"theirs": sounds}, "recognizer": "test_evaluate_generation:Reader",
        "hub_recognizer": "anything", "lm": lm,
    }  # fmt: skip
    return EvaluateGenerationConfig(**chosen | changes)


def found_in(folder):
    return {row["metric"]: row for row in read_json(folder / "results.json")}


def plain_nll(lm, text):
    """The mean loss of a text by `transformers` itself."""
    model = AutoModelForCausalLM.from_pretrained(lm, dtype=torch.float32).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(lm)(text)["input_ids"]])
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


def test_genppl_is_the_exponential_of_the_mean_over_samples(sounds, lm, tmp_path):
    run = evaluate_generation(config_of(sounds, lm), tmp_path / "out")
    rows = {row["id"]: row for row in read_json_lines(tmp_path / "out" / "items.jsonl")}
    assert [rows[f"{n}.wav"]["text"] for n in range(8)] == SAID * 2
    for row in rows.values():
        if row["text"]:
            assert row["nll"] == pytest.approx(plain_nll(lm, row["text"]), abs=1e-3)
    nlls = [row["nll"] for row in rows.values() if row["text"]]
    found = found_in(tmp_path / "out")
    assert found["genppl"]["value"] == pytest.approx(math.exp(np.mean(nlls)))
    assert found["genppl"]["low"] <= found["genppl"]["value"] <= found["genppl"]["high"]
    # what was not heard is counted and named, and is no part of the mean
    assert found["genppl"]["n"] == 6
    assert run.results["num_empty"] == 2
    assert run.results["empty"] == ["2.wav", "6.wav"]
    expected = np.mean([auto_bleu(words(text), 2) for text in SAID if text])
    assert found["auto_bleu_2"]["value"] == pytest.approx(expected)
    spoken = [words(text) for text in SAID * 2]
    seconds = sum(0.8 + n / 10 for n in range(8) if SAID[n % 4])
    assert found["words_per_second"]["value"] == pytest.approx(sum(map(len, spoken)) / seconds, rel=1e-3)


def test_a_continuation_alone_is_scored_after_its_prompts_text(sounds, lm, tmp_path):
    evaluate_generation(config_of(sounds, lm, prompt_seconds=0.3), tmp_path / "out")
    scorer = TextLM.load(str(lm))
    for row in read_json_lines(tmp_path / "out" / "items.jsonl"):
        assert row["prompt_text"] == SAID[3]
        if row["continuation_text"]:
            joined = f"{SAID[3]} {row['continuation_text']}"
            whole, begin = scorer.score(joined), scorer.score(SAID[3])
            rest = whole.nll * whole.num_tokens - begin.nll * begin.num_tokens
            count = whole.num_tokens - begin.num_tokens
            assert row["continuation_nll"] == pytest.approx(rest / count, abs=1e-3)
        else:
            assert "continuation_nll" not in row


def test_a_killed_run_hears_nothing_twice(sounds, lm, tmp_path, monkeypatch):
    Reader.heard.clear()
    score = TextLM.score

    def dying(self, text, start=0):
        if text == SAID[3]:
            raise KeyboardInterrupt
        return score(self, text, start)

    monkeypatch.setattr(TextLM, "score", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate_generation(config_of(sounds, lm), tmp_path / "out")
    monkeypatch.setattr(TextLM, "score", score)
    evaluate_generation(config_of(sounds, lm), tmp_path / "out")
    assert len(Reader.heard) == 8
    evaluate_generation(config_of(sounds, lm), tmp_path / "whole")
    for name in ("results.json", "items.jsonl"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_sounds_that_cannot_be_read_are_named_and_counted(sounds, lm, tmp_path):
    (sounds / "3.wav").write_bytes(b"no sound")
    with pytest.raises(InputError, match=r"1 of 8 continuations cannot be read, the first: .*3\.wav"):
        evaluate_generation(config_of(sounds, lm), tmp_path / "out")
    run = evaluate_generation(config_of(sounds, lm, max_failures=0.2), tmp_path / "rest")
    assert run.results["num_failures"] == 1
    assert len(read_json_lines(tmp_path / "rest" / "items.jsonl")) == 7


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    root = tmp_path_factory.mktemp("generated")
    for seed in (0, 1):
        toy_language.write_lm(root / f"lm-{seed}", toy_language.new_toy_lm(seed))
    toy_language.write_units(
        root / "units", {f"u{n}": u for n, u in enumerate(toy_language.utterances(5, shortest=8))}
    )
    models = {"one": root / "lm-0", "two": root / "lm-1"}
    config = GenerateConfig(models=models, prompts=root / "units", max_new_units=20, prompt_seconds=0.2)
    generate(config, root / "made")
    return root


def test_units_of_ours_are_measured_without_a_recogniser(generated, tmp_path):
    config = EvaluateGenerationConfig(
        continuations={"toy": generated / "made"}, units_only=True, real=generated / "units"
    )
    evaluate_generation(config, tmp_path / "out")
    rows = read_json(tmp_path / "out" / "results.json")
    made = [r for r in read_json_lines(generated / "made" / "continuations.jsonl") if r["model"] is not None]
    for model in ("one", "two"):
        found = {row["metric"]: row["value"] for row in rows if row["model"] == f"toy/{model}"}
        units = [row["units"] for row in made if row["model"] == model]
        assert found["units"] == pytest.approx(np.mean([len(some) for some in units]))
        assert found["ended_by_the_model"] == np.mean([r["ended"] for r in made if r["model"] == model])
        assert 0 <= found["divergence_1_from_real"] <= found["divergence_2_from_real"] <= 1
        assert "genppl" not in found


def test_real_speech_in_other_units_is_refused(generated, tmp_path):
    toy_language.write_units(tmp_path / "units", {"a": [1, 2]}, fingerprint="f" * 16)
    config = EvaluateGenerationConfig(
        continuations={"toy": generated / "made"}, units_only=True, real=tmp_path / "units"
    )
    with pytest.raises(MismatchError, match="use that of the models' tokenizer"):
        evaluate_generation(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"continuations": {}}, "name at least one folder"),
        ({"prompt_seconds": 0.0}, "must be more than 0"),
        ({"max_failures": 2.0}, "is a share"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(sounds, lm, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        config_of(sounds, lm, **changes)


def test_a_folder_without_sounds_is_refused(tmp_path, lm):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no recordings"):
        evaluate_generation(config_of(tmp_path / "empty", lm), tmp_path / "out")


def test_whisper_writes_the_same_text_in_any_batch(tmp_path):
    whisper = load_recognizer("whisper", str(tiny_text_models.save_whisper(tmp_path / "whisper")))
    generator = np.random.default_rng(0)
    sounds = []
    for period, (rate, seconds) in enumerate(((16_000, 1.0), (44_100, 3.1), (8_000, 0.3)), 3):
        noise = generator.normal(0, 0.2, round(rate * seconds))
        sounds.append(Audio((noise * np.sin(np.arange(len(noise)) / period)).astype(np.float32), rate))
    check_recognizer(whisper, sounds)
    together = whisper.transcribe(sounds)
    assert any(together)
    assert not any("<|" in text for text in together)


def test_what_is_no_whisper_or_no_text_lm_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for load in (
        lambda: load_recognizer("whisper", str(tmp_path / "empty")),
        lambda: TextLM.load(str(tmp_path / "empty")),
    ):
        with pytest.raises(InputError) as caught:
            load()
        assert "\n" not in str(caught.value)
    toy_language.write_lm(tmp_path / "speech")
    with pytest.raises(InputError, match="give a text LM"):
        TextLM.load(str(tmp_path / "speech"))


def test_a_text_lm_of_ours_begins_its_documents_as_it_was_trained(tmp_path):
    texts = [{"id": str(n), "text": text} for n, text in enumerate(("The dog ran.", "A cat ran home.") * 20)]
    write_json_lines(tmp_path / "text" / "manifest.jsonl", texts)
    pack(PackConfig(train=(tmp_path / "text",), validation=(tmp_path / "text",)), tmp_path / "tokens")
    pretrain(
        PretrainConfig(
            shards=tmp_path / "tokens",
            initialization="random",
            context=16,
            budget="12 steps",
            batch_tokens=60,
            architecture=toy_language.ARCHITECTURE,
            learning_rate=1e-2,
        ),
        tmp_path / "lm",
    )
    found = TextLM.load(str(tmp_path / "lm")).score("The dog ran.")
    assert found.num_tokens == 4  # each word and the mark, the first after <S>
    document = torch.from_numpy(open_shards(tmp_path / "tokens", "train")[0].astype(np.int64))[None]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "lm", dtype=torch.float32).eval()
    with torch.no_grad():
        scores = model(input_ids=document).logits[0, :-1].log_softmax(-1)
    losses = [-float(scores[place, token]) for place, token in enumerate(document[0, 1:].tolist())]
    assert found.nll == pytest.approx(np.mean(losses[:-1]), abs=1e-4)  # its last <S> is not text
