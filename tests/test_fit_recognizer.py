import json

import numpy as np
import pytest
import torch

import tiny_text_models
import toy_language
from conformance import check_recognizer
from conftest import sound
from slam.audio import Audio
from slam.errors import ConfigError, InputError, MismatchError
from slam.evaluate_generation import EvaluateGenerationConfig, evaluate_generation
from slam.fit_recognizer import FitRecognizerConfig, fit_recognizer
from slam.recognizers import Recognizer, load_recognizer
from slam.recognizers.units_ctc import UnitsCtc, labels_of, words_of
from slam.run import read_json_lines, write_json_lines
from slam.units import Units, read_units

# each word is three units of its own
WORDS = {"Cats": [0, 1, 2], "dogs": [3, 4, 5], "sleep": [6, 7, 8], "run": [9, 10, 11], ".": [2, 5]}


def write_said(folder, number, seed):
    """Utterances of two to five words, and what they say."""
    generator = np.random.default_rng(seed)
    named, rows = {}, []
    for index in range(number):
        chosen = [
            str(word) for word in generator.choice(["Cats", "dogs", "sleep", "run"], generator.integers(2, 6))
        ]
        ids = [unit for word in [*chosen, "."] for unit in WORDS[word]]
        named[f"u{index}"] = [one for one, before in zip(ids, [None, *ids], strict=False) if one != before]
        rows.append({"id": f"u{index}", "text": " ".join(chosen) + "."})
    toy_language.write_units(folder, named)
    write_json_lines(folder / "manifest.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    root = tmp_path_factory.mktemp("recognizer")
    write_said(root / "units", 300, 0)
    write_said(root / "held-out", 40, 1)
    run = fit_recognizer(config_of(root), root / "out")
    return root, run


def config_of(root, **changes):
    chosen = {
        "units": (root / "units",), "validation": root / "held-out", "epochs": 12, "width": 32,
        "num_layers": 2, "batch_units": 400, "learning_rate": 1e-2,
    }  # fmt: skip
    return FitRecognizerConfig(**chosen | changes)


def test_it_reads_held_out_utterances_of_known_words(fitted):
    root, run = fitted
    assert run.results["num_held_out"] == 40
    assert run.results["word_errors"] < 0.05
    low, high = run.results["word_errors_interval"]
    assert low <= run.results["word_errors"] <= high
    assert run.results["trustworthy"] is True
    rows = read_json_lines(root / "out" / "validation.jsonl")
    right = [row for row in rows if row["edits"] == 0]
    assert len(right) == round(run.results["right_utterances"] * 40)
    assert all(words_of(row["heard"]) == words_of(row["said"]) for row in right)


def test_word_errors_are_edits_over_words(fitted):
    root, run = fitted
    rows = read_json_lines(root / "out" / "validation.jsonl")
    total = sum(len(words_of(row["said"])) for row in rows)
    assert run.results["word_errors"] == pytest.approx(sum(row["edits"] for row in rows) / total)
    assert run.results["num_held_out_words"] == total


def test_what_was_saved_reads_the_same_alone_and_beside_others(fitted):
    root, _ = fitted
    recognizer = load_recognizer("units-ctc", str(root / "out"))
    assert isinstance(recognizer, Recognizer)
    folder = read_units(root / "held-out")
    units = [folder[number] for number in range(len(folder))]
    together = recognizer.read_units(units)
    assert together == [row["heard"] for row in read_json_lines(root / "out" / "validation.jsonl")]
    assert [recognizer.read_units([one])[0] for one in units[::-1]] == together[::-1]
    # a model's units have no durations
    assert recognizer.read_units([Units(units[0].ids, None, 25.0)]) == together[:1]
    assert recognizer.read_units([Units(units[0].ids[:0], None, 25.0)]) == [""]


def test_it_hears_recordings_by_way_of_their_units(fitted):
    root, _ = fitted
    recognizer = load_recognizer("units-ctc", str(root / "out"))
    generator = np.random.default_rng(3)
    sounds = [
        Audio(generator.normal(0, 0.1, n).astype(np.float32), r) for n, r in ((9000, 16000), (20000, 44100))
    ]
    sounds.append(Audio(np.zeros(0, np.float32), 16_000))
    found = recognizer.transcribe(sounds)
    units = recognizer.tokenizer.encode([one.resample(recognizer.sample_rate) for one in sounds[:2]])
    assert found == [*recognizer.read_units(units), ""]


def test_the_same_seed_fits_the_same_recogniser(fitted, tmp_path):
    root, run = fitted
    torch.manual_seed(99)
    again = fit_recognizer(config_of(root), tmp_path / "again")
    assert again.results == run.results
    other = fit_recognizer(config_of(root, seed=1, epochs=1), tmp_path / "other")
    assert other.results["word_errors"] != run.results["word_errors"]


def test_one_that_mishears_is_called_not_to_be_trusted(fitted, tmp_path, capsys):
    root, _ = fitted
    run = fit_recognizer(config_of(root, epochs=1, learning_rate=1e-6), tmp_path / "out")
    assert run.results["trustworthy"] is False
    assert "not to be trusted" in capsys.readouterr().err


def test_a_vocoders_speech_is_judged_too(fitted, tmp_path):
    root, run = fitted
    spoken = fit_recognizer(config_of(root, vocoder="griffin-lim"), tmp_path / "out")
    assert spoken.results["word_errors"] == run.results["word_errors"]
    assert spoken.results["resynthesis_word_errors"] >= 0
    assert all("resynthesis" in row for row in read_json_lines(tmp_path / "out" / "validation.jsonl"))


@pytest.mark.parametrize(
    ("text", "labels", "words"),
    [
        ("The cat's bed.", ["The", "cat's", "bed", "."], ["the", "cat's", "bed"]),
        ("Well-known? Yes!", ["Well-known", "?", "Yes", "!"], ["well-known", "yes"]),
        ("  ,; ", [], []),
    ],
)
def test_texts_are_words_and_the_marks_that_end_sentences(text, labels, words):
    assert labels_of(text) == labels
    assert words_of(text) == words


def test_texts_that_are_not_known_are_named(fitted, tmp_path):
    root, _ = fitted
    write_said(tmp_path / "units", 5, 2)
    lines = (tmp_path / "units" / "manifest.jsonl").read_text().splitlines()
    (tmp_path / "units" / "manifest.jsonl").write_text("\n".join(lines[:3]) + "\n")
    with pytest.raises(InputError, match=r"has no text of the utterance 'u3'; give texts"):
        fit_recognizer(config_of(root, units=(tmp_path / "units",)), tmp_path / "out")
    rows = [{"id": f"u{number}", "text": "Cats run."} for number in range(40)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = config_of(root, units=(tmp_path / "units",), texts=tmp_path / "texts.jsonl")
    assert fit_recognizer(given, tmp_path / "out").results["num_labels"] == 3


def test_utterances_too_short_for_their_words_are_counted_and_left_out(fitted, tmp_path):
    root, _ = fitted
    toy_language.write_units(tmp_path / "units", {"a": [1, 2, 3], "b": [1, 2, 3, 4, 5]})
    texts = [{"id": "a", "text": "far too many words"}, {"id": "b", "text": "two words"}]
    write_json_lines(tmp_path / "units" / "manifest.jsonl", texts)
    run = fit_recognizer(config_of(root, units=(tmp_path / "units",)), tmp_path / "out")
    assert (run.results["num_utterances"], run.results["num_too_short"]) == (1, 1)
    write_json_lines(
        tmp_path / "units" / "manifest.jsonl", [row | {"text": "many words here"} for row in texts]
    )
    with pytest.raises(InputError, match="nothing can be fitted"):
        fit_recognizer(config_of(root, units=(tmp_path / "units",)), tmp_path / "none")


def test_folders_of_several_tokenizers_are_refused(fitted, tmp_path):
    root, _ = fitted
    toy_language.write_units(tmp_path / "units", {"a": [1, 2]}, fingerprint="f" * 16)
    with pytest.raises(MismatchError, match="use one tokenizer"):
        fit_recognizer(config_of(root, units=(tmp_path / "units",)), tmp_path / "out")


def test_a_damaged_or_missing_recogniser_is_one_line(fitted, tmp_path):
    root, _ = fitted
    with pytest.raises(InputError, match="holds no recognizer"):
        UnitsCtc.load(str(tmp_path))
    recognizer = UnitsCtc.load(str(root / "out"))
    recognizer.save(tmp_path / "copy")
    weights = tmp_path / "copy" / "recognizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="a damaged recognizer") as caught:
        UnitsCtc.load(str(tmp_path / "copy"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"units": ()}, "name at least one folder"),
        ({"epochs": 0}, "epochs = 0"),
        ({"max_word_errors": 0.0}, "a share above 0"),
        ({"vocoder_from": "units"}, "vocoder_from goes with vocoder"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(fitted, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        config_of(fitted[0], **changes)


def test_what_a_model_wrote_is_read_without_its_sound(fitted, tmp_path):
    root, _ = fitted
    held_out = read_units(root / "held-out")
    prompt, said = held_out[0].ids, held_out[1].ids
    expected = UnitsCtc.load(str(root / "out")).read_units([held_out[0], held_out[1]])
    assert all(expected)
    rows = [
        {"prompt": "p", "model": None, "audio": "p.wav", "units": prompt.tolist()},
        {"prompt": "p", "model": "m", "audio": "m.wav", "alone": "a.wav", "units": said.tolist(),
         "seconds": 2.0},
    ]  # fmt: skip
    write_json_lines(tmp_path / "made" / "continuations.jsonl", rows)
    chosen = {
        "continuations": {"m": tmp_path / "made"}, "recognizer": "units-ctc", "recognizer_from": root / "out",
        "lm": tiny_text_models.save_llama(tmp_path / "lm"), "from_units": True,
    }  # fmt: skip
    evaluate_generation(EvaluateGenerationConfig(**chosen), tmp_path / "out")
    (item,) = read_json_lines(tmp_path / "out" / "items.jsonl")
    assert [item["prompt_text"], item["continuation_text"]] == expected
    assert item["seconds"] == 2.0
    write_json_lines(tmp_path / "made" / "continuations.jsonl", [rows[0], rows[1] | {"units": [60_000]}])
    with pytest.raises(InputError, match=r"m\.wav: unit 60000, but .* reads units below \d+"):
        evaluate_generation(EvaluateGenerationConfig(**chosen), tmp_path / "again")
    with pytest.raises(ConfigError, match="from_units goes with recognizer = units-ctc"):
        EvaluateGenerationConfig(**chosen | {"recognizer": "whisper"})


def test_it_conforms(fitted):
    root, _ = fitted
    recordings = [sound(1.3, 100), sound(2.0, 101, rate=22_050)]
    check_recognizer(load_recognizer("units-ctc", str(root / "out")), recordings)
