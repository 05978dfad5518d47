import csv
import json
import random

import numpy as np
import pytest

import toy_language
from slam.audio import Audio, write_audio
from slam.benchmark_layouts import SALMON_PARTS, frequency_band
from slam.cli import main
from slam.encode import EncodeConfig, encode
from slam.errors import ConfigError, InputError
from slam.evaluate import EvaluateConfig, evaluate
from slam.import_benchmark import ImportBenchmarkConfig, import_benchmark
from slam.pairs import read_pair_rows
from slam.recordings import find_recordings
from slam.run import read_json_lines

RATES = (8_000, 22_050, 48_000)


def write_sounds(folder, names, seed=0):
    """Noises of several rates and lengths, written in a random order."""
    names = list(names)
    random.Random(seed).shuffle(names)
    for number, name in enumerate(names):
        rate = RATES[number % 3]
        generator = np.random.default_rng(sum(name.encode()))
        samples = generator.normal(0, 0.1, int(rate * generator.uniform(0.2, 0.5))).astype(np.float32)
        write_audio(folder / name, Audio(samples, rate))


def write_gold(folder, columns, rows):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gold.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_swuggy(root, half="dev", *, suffix=""):
    """Three words, one of two non-words, each in two voices; opaque names."""
    words = [("1", "brick", "blick", "7"), ("2", "spoken", "spiken", "oov"), ("3", "brick", "brosk", "7")]
    rows, generator = [], random.Random(half)
    for number, word, wrong, frequency in words:
        for voice in ("A", "B"):
            for text, correct in ((word, "1"), (wrong, "0")):
                name = "".join(generator.choices("abcdefgh", k=12))
                rows.append(
                    {"id": number, "filename": name + suffix, "voice": voice, "frequency": frequency,
                     "word": text, "phones": "x", "length": 4, "correct": correct}
                )  # fmt: skip
    generator.shuffle(rows)
    folder = root / "lexical" / half
    write_gold(folder, list(rows[0]), rows)
    write_sounds(folder, [row["filename"].removesuffix(".wav") + ".wav" for row in rows])
    return {(row["id"], row["voice"], row["correct"]): row["filename"].removesuffix(".wav") for row in rows}


def write_sblimp(root, half="dev"):
    rows = []
    for number, (kind, paradigm) in enumerate(
        [("agreement", "number"), ("agreement", "gender"), ("binding", "c")]
    ):
        rows += [
            {"correct": correct, "subtype": paradigm, "type": kind, "voice": "A", "id": str(number),
             "filename": f"f{number}{correct}", "transcription": "x, y"}
            for correct in ("0", "1")
        ]  # fmt: skip
    folder = root / "syntactic" / half
    write_gold(folder, list(rows[0]), rows)
    write_sounds(folder, [row["filename"] + ".wav" for row in rows])


def imported(tmp_path, source, **settings):
    """`(run, pairs by id, path of each recording)`."""
    out = tmp_path / settings.pop("into", "out")
    run = import_benchmark(ImportBenchmarkConfig(source=source, **settings), out)
    paths = {one.id: one.path for one in find_recordings(out)}
    return run, {row.id: row for row in read_pair_rows(out)}, paths


@pytest.mark.parametrize("suffix", ["", ".wav"])
@pytest.mark.parametrize("inside", ["", "lexical", "lexical/dev"])
def test_swuggy_is_read_as_it_is_given_out(tmp_path, suffix, inside):
    names = write_swuggy(tmp_path / "sLM21", suffix=suffix)
    run, pairs, paths = imported(tmp_path, tmp_path / "sLM21" / inside)
    assert run.results["layout"] == "swuggy"
    assert {row.benchmark for row in pairs.values()} == {"swuggy-dev"}
    assert len(pairs) == run.results["num_pairs"] == 6
    assert run.results["num_items"] == 3
    assert run.results["num_voices"] == 2
    for row in pairs.values():
        voice = row.groups["voice"]
        assert paths[row.chosen].stem == names[row.item, voice, "1"]
        assert paths[row.rejected].stem == names[row.item, voice, "0"]
    assert pairs["1-A"].kind == "6-20"
    assert pairs["2-B"].kind == pairs["2-B"].groups["vocabulary"] == "oov"
    assert pairs["1-A"].groups["vocabulary"] == "in-vocabulary"
    # both non-words of one word are resampled together
    assert pairs["1-A"].resampled_with == pairs["3-B"].resampled_with != pairs["2-A"].resampled_with


def test_sblimp_has_phenomena_and_paradigms_wherever_its_columns_stand(tmp_path):
    write_sblimp(tmp_path)
    run, pairs, paths = imported(tmp_path, tmp_path)
    assert run.results["layout"] == "sblimp"
    assert run.results["kinds"] == {"agreement": 2, "binding": 1}
    assert pairs["1-A"].groups == {"voice": "A", "paradigm": "gender"}
    assert (paths[pairs["1-A"].chosen].stem, paths[pairs["1-A"].rejected].stem) == ("f11", "f10")


def test_dev_and_test_are_never_confused(tmp_path):
    root = tmp_path / "sLM21"
    write_swuggy(root, "dev")
    write_swuggy(root, "test")
    with pytest.raises(ConfigError, match="holds dev and test; choose one"):
        imported(tmp_path, root)
    _, pairs, _ = imported(tmp_path, root, split="test")
    assert {row.benchmark for row in pairs.values()} == {"swuggy-test"}


def test_a_test_half_without_its_gold_says_that_it_is_not_given_out(tmp_path):
    write_sounds(tmp_path / "sLM21" / "lexical" / "test", ["a.wav"])
    with pytest.raises(InputError, match=r"has no gold\.csv.*not given out"):
        imported(tmp_path, tmp_path / "sLM21", split="test", layout="swuggy")
    with pytest.raises(InputError, match="holds no dev half of swuggy"):
        imported(tmp_path, tmp_path / "sLM21", split="dev", layout="swuggy")


def test_both_sets_of_slm21_are_imported_one_at_a_time(tmp_path):
    write_swuggy(tmp_path)
    write_sblimp(tmp_path)
    with pytest.raises(InputError, match="import one at a time"):
        imported(tmp_path, tmp_path)
    _, pairs, _ = imported(tmp_path, tmp_path, layout="sblimp")
    assert len(pairs) == 3


@pytest.mark.parametrize(
    ("said", "band"),
    [("oov", "oov"), ("0", "oov"), ("1", "1-5"), ("5", "1-5"), ("6", "6-20"), ("20.0", "6-20"),
     ("100", "21-100"), ("101", ">100"), (">100", ">100"), ("", "all")],
)  # fmt: skip
def test_frequencies_fall_into_swuggys_bands(said, band):
    assert frequency_band(said) == band


def test_paired_wavs_find_their_partners_by_name(tmp_path):
    names = [f"{n}_story{n * 7}_{role}.wav" for n in range(12) for role in ("correct", "incorrect")]
    write_sounds(tmp_path / "tSC", names)
    _, pairs, paths = imported(tmp_path, tmp_path / "tSC")
    assert list(pairs) == [f"{n}_story{n * 7}" for n in range(12)]  # by number, not by letters
    assert {row.benchmark for row in pairs.values()} == {"tSC"}
    for name, row in pairs.items():
        assert paths[row.chosen].name == f"{name}_correct.wav"
        assert paths[row.rejected].name == f"{name}_incorrect.wav"


def test_subfolders_are_kinds_and_a_plus_may_part_a_name(tmp_path):
    root = tmp_path / "sblimp"
    for kind in ("agreement", "binding"):
        write_sounds(
            root / kind, [f"{n}+voice+{role}.wav" for n in range(2) for role in ("correct", "incorrect")]
        )
    _, pairs, paths = imported(tmp_path, root)
    assert {row.kind for row in pairs.values()} == {"agreement", "binding"}
    assert paths[pairs["binding/1+voice"].chosen] == (root / "binding" / "1+voice+correct.wav").resolve()


@pytest.mark.parametrize("separator", ["_", "+"])
def test_running_numbers_pair_as_the_reference_toolkit_pairs_them(tmp_path, separator):
    write_sounds(tmp_path / "set" / "part", [f"{n}{separator}x{n}.wav" for n in range(22)])
    _, pairs, paths = imported(tmp_path, tmp_path / "set")
    assert len(pairs) == 11
    for half, row in enumerate(pairs.values()):
        assert paths[row.chosen].name.startswith(f"{2 * half}{separator}")
        assert paths[row.rejected].name.startswith(f"{2 * half + 1}{separator}")


def test_numbers_that_do_not_start_at_an_even_one_are_not_guessed_at(tmp_path):
    write_sounds(tmp_path / "set", [f"{n}_x.wav" for n in range(1, 5)])
    with pytest.raises(InputError, match="its better side is missing"):
        imported(tmp_path, tmp_path / "set")


def test_salmon_takes_the_first_of_two_names_of_each_part(tmp_path):
    for part in SALMON_PARTS[:2]:
        names = [f"sample_{n}_{letter}.wav" for n in range(3) for letter in "ba"]
        write_sounds(tmp_path / "salmon" / part, names)
    run, pairs, paths = imported(tmp_path, tmp_path / "salmon")
    assert run.results["kinds"] == {"sentiment_consistency": 3, "speaker_consistency": 3}
    for row in pairs.values():
        assert paths[row.chosen].stem[:-1] == paths[row.rejected].stem[:-1]
        assert (paths[row.chosen].stem[-1], paths[row.rejected].stem[-1]) == ("a", "b")
    assert "rir_consistency" in run.results["remarks"][0]
    assert "200 pairs of each part" in run.results["remarks"][1]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_of_ones_own_names_pairs_groups_and_prompts(tmp_path, suffix):
    write_sounds(tmp_path / "mine", ["a.wav", "b.wav", "c.flac", "d.wav"])
    rows = [
        {"id": "p1", "better": "a.wav", "worse": "b.wav", "group": "easy", "prompt_seconds": "0.1"},
        {"id": "p2", "better": "c.flac", "worse": "d.wav", "group": "hard", "prompt_seconds": ""},
    ]
    path = tmp_path / "mine" / f"pairs{suffix}"
    with path.open("w", newline="") as file:
        if suffix == ".csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    _, pairs, paths = imported(tmp_path, path, benchmark="mine")
    assert pairs["p1"].kind == "easy"
    assert pairs["p1"].chosen_start == 0.1
    assert pairs["p2"].chosen_start == 0.0
    assert paths[pairs["p2"].chosen] == (tmp_path / "mine" / "c.flac").resolve()


def paired(root, count=6):
    write_sounds(root, [f"{n}_{role}.wav" for n in range(count) for role in ("correct", "incorrect")])
    return root


def test_a_missing_partner_is_named_and_shifts_no_other_pair(tmp_path):
    root = paired(tmp_path / "set")
    (root / "2_incorrect.wav").unlink()
    with pytest.raises(InputError, match=r"1 of 6 .*pair '2': its worse side is missing.*2_correct\.wav"):
        imported(tmp_path, root)
    assert len(read_json_lines(tmp_path / "out" / "failures.jsonl")) == 1
    run, pairs, paths = imported(tmp_path, root, max_failures=0.2, into="rest")
    assert run.results["num_failures"] == 1
    assert list(pairs) == ["0", "1", "3", "4", "5"]
    for name, row in pairs.items():
        assert paths[row.chosen].name == f"{name}_correct.wav"
        assert paths[row.rejected].name == f"{name}_incorrect.wav"


def test_files_that_are_no_sound_empty_or_cut_are_named(tmp_path):
    root = paired(tmp_path / "set")
    (root / "0_correct.wav").write_bytes(b"")
    whole = (root / "1_incorrect.wav").read_bytes()
    (root / "1_incorrect.wav").write_bytes(whole[: len(whole) // 2])
    write_audio(root / "3_correct.wav", Audio(np.zeros(0, np.float32), 8_000))
    (root / "notes.wav").write_bytes(whole)
    run, pairs, _ = imported(tmp_path, root, max_failures=0.9)
    assert sorted(pairs) == ["2", "4", "5"]
    reasons = " ".join(run.results["failures"])
    for part in ("0_correct.wav", "1_incorrect.wav", "3_correct.wav: holds no samples", "notes.wav"):
        assert part in reasons
    assert run.results["num_failures"] == 4


def test_duplicates_are_named(tmp_path):
    root = paired(tmp_path / "set")
    (root / "2_correct.flac").write_bytes((root / "2_correct.wav").read_bytes())
    with pytest.raises(InputError, match="pair '2': has 2 better sides"):
        imported(tmp_path, root)
    names = write_swuggy(tmp_path / "sLM21")
    gold = tmp_path / "sLM21" / "lexical" / "dev" / "gold.csv"
    line = next(line for line in gold.read_text().splitlines() if names["1", "A", "1"] in line)
    gold.write_text(gold.read_text() + line + "\n")
    with pytest.raises(InputError, match="pair '1-A': has 2 better sides"):
        imported(tmp_path, tmp_path / "sLM21", into="other")


def test_a_pair_of_one_file_is_no_pair(tmp_path):
    write_sounds(tmp_path, ["a.wav"])
    (tmp_path / "t.jsonl").write_text('{"id": "p", "better": "a.wav", "worse": "a.wav"}\n')
    with pytest.raises(InputError, match="its sides are one file"):
        imported(tmp_path, tmp_path / "t.jsonl")


def test_rows_that_say_nothing_and_sounds_that_gold_does_not_name_are_counted(tmp_path):
    write_swuggy(tmp_path / "sLM21")
    folder = tmp_path / "sLM21" / "lexical" / "dev"
    write_sounds(folder, ["stray.wav"])
    text = (folder / "gold.csv").read_text().splitlines()
    cells = text[1].split(",")
    cells[-1] = "maybe"
    (folder / "gold.csv").write_text("\n".join([text[0], ",".join(cells), *text[2:]]) + "\n")
    run, pairs, _ = imported(tmp_path, tmp_path / "sLM21", max_failures=0.9)
    assert len(pairs) == 5
    reasons = run.results["failures"]
    assert any("stray.wav: gold.csv does not name it" in reason for reason in reasons)
    assert any("gold.csv:2" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], r"is of no known layout \(looked for lexical/dev.*it holds nothing"),
        (["one.wav", "two.wav"], "is of no known layout.*it holds one.wav, two.wav"),
    ],
)
def test_an_unknown_layout_says_what_was_looked_for(tmp_path, capsys, names, reason):
    (tmp_path / "set").mkdir()
    write_sounds(tmp_path / "set", names)
    with pytest.raises(InputError, match=reason):
        imported(tmp_path, tmp_path / "set")
    with pytest.raises(SystemExit) as caught:
        main(["import-benchmark", "--source", str(tmp_path / "set"), "--out", str(tmp_path / "cli")])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "cli").exists()


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ("salmon", "looked for folders named after SALMon's parts"),
        ("paired-wavs", "looked for NAME_correct.wav"),
    ],
)
def test_a_layout_that_is_not_there_is_refused(tmp_path, layout, reason):
    write_sounds(tmp_path / "set", ["one.wav"])
    with pytest.raises(InputError, match=reason):
        imported(tmp_path, tmp_path / "set", layout=layout)


def test_what_is_not_there_or_no_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        imported(tmp_path, tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="is no table"):
        imported(tmp_path, tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="only swuggy and sblimp have halves"):
        imported(tmp_path, paired(tmp_path / "set"), split="dev")


def test_an_imported_set_is_scored_with_and_without_encoding_it_first(tmp_path):
    root = paired(tmp_path / "set")
    imported(tmp_path, root)
    toy_language.tokenizer().save(tmp_path / "units" / "tokenizer")
    toy_language.write_lm(tmp_path / "lm")
    encode(EncodeConfig(audio=tmp_path / "out", tokenizer_from=tmp_path / "units"), tmp_path / "encoded")
    for name, settings in (("out", {"tokenizer_from": (tmp_path / "units",)}), ("encoded", {})):
        config = EvaluateConfig(
            models={"lm": tmp_path / "lm"},
            benchmarks=(tmp_path / name,),
            cache=tmp_path / "cache",
            **settings,
        )
        evaluate(config, tmp_path / f"scores-{name}")
    one, other = (tmp_path / f"scores-{name}" / "items.jsonl" for name in ("out", "encoded"))
    assert one.read_text() == other.read_text()
