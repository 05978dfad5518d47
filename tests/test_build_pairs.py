import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import sound
from slam.audio import Audio, read_audio, write_audio
from slam.build_pairs import BuildPairsConfig, build_pairs
from slam.encode import EncodeConfig, encode
from slam.errors import ConfigError, InputError
from slam.pairs import read_pair_rows, read_pairs
from slam.run import read_json_lines
from slam.units import read_units

PAIR = {"prompt": "The girl opens the door.", "chosen": "She walks in.", "rejected": "She eats the tree."}
VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnprstvw"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def built(path: Path, rows: list[Any], **settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results, and the rows of the text pairs."""
    file = write(path / "in.jsonl", rows)
    given = {"layout": "pairs", "balance_lengths": False, "num_workers": 1} | settings
    run = build_pairs(BuildPairsConfig(files=(file,), **given), path / "out")
    return run.results, read_json_lines(path / "out" / "text-pairs.jsonl")


def text(generator: random.Random, num_words: int) -> str:
    syllables = [one + two for one in CONSONANTS for two in VOWELS]
    return " ".join("".join(generator.choices(syllables, k=3)) for _ in range(num_words))


def wordy_rows(count: int, *, longer: float, seed: int) -> list[dict[str, str]]:
    """Pairs whose better side is the longer one that often."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        lengths = sorted(generator.sample(range(3, 12), 2), reverse=generator.random() < longer)
        rows.append(
            {
                "prompt": text(generator, 5),
                "chosen": text(generator, lengths[0]),
                "rejected": text(generator, lengths[1]),
            }
        )
    return rows


def test_pairs_are_written_as_synthesize_reads_them(tmp_path: Path) -> None:
    rows = [PAIR, PAIR | {"prompt": "A  boy\nwaits.", "kind": "verb", "story": "s", "voice": "af_heart"}]
    results, (first, second) = built(tmp_path, rows, benchmark="my-set")
    assert first == PAIR | {
        "id": "my-set-0000001",
        "benchmark": "my-set",
        "kind": "all",
        "reason": "",
        "story": None,
        "origin": "in.jsonl:1",
    }
    assert second["prompt"] == "A boy waits."
    assert (second["kind"], second["story"], second["voice"]) == ("verb", "s", "af_heart")
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", second["id"])  # names a sound file
    assert (results["num_rows"], results["num_pairs"]) == (2, 2)
    assert read_json_lines(tmp_path / "out" / "failures.jsonl") == []
    assert read_json_lines(tmp_path / "out" / "left-out.jsonl") == []


def test_every_row_that_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    rows = [
        PAIR,
        PAIR | {"prompt": ""},
        PAIR | {"rejected": "she walks in"},
        PAIR | {"chosen": "Sally chopped the carrots.", "rejected": "Sally chopped the parrots."},
        PAIR | {"prompt": "the girl opens the door"},
        PAIR | {"chosen": "no, no, no, no, no, no, no, no"},
        PAIR | {"prompt": "The boy opens the door."},
    ]
    results, pairs = built(tmp_path, rows, max_similarity=0.95)
    whys = ["empty", "equal", "near_identical", "duplicate", "repetitive"]
    assert read_json_lines(tmp_path / "out" / "left-out.jsonl") == [
        {"file": str(tmp_path / "in.jsonl"), "line": line, "why": why} for line, why in enumerate(whys, 2)
    ]
    counted = {name: count for name, count in results.items() if name.startswith("num_") and count}
    assert counted == {
        "num_rows": 7,
        "num_empty": 1,
        "num_equal": 1,
        "num_near_identical": 1,
        "num_duplicates": 1,
        "num_repetitive": 1,
        "num_pairs": 2,
    }
    assert [pair["id"] for pair in pairs] == ["preferences-0000001", "preferences-0000007"]


def test_rows_of_a_published_layout_are_counted_too(tmp_path: Path) -> None:
    row = {"ctx_a": "A man sits.", "ctx_b": "he", "endings": ["runs a mile.", "sings."], "label": 0}
    rows = [row, row | {"label": ""}, row | {"ctx_a": "[header] How to sit"}]
    results, (pair,) = built(tmp_path, rows, layout="hellaswag")
    assert (results["num_without_label"], results["num_with_markup"]) == (1, 1)
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (
        "A man sits.",
        "he runs a mile.",
        "he sings.",
    )


def test_nothing_left_is_one_line_with_the_counts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in\.jsonl: no pair is left of 3 rows \(2 empty, 1 equal\)"):
        built(tmp_path, [PAIR | {"prompt": ""}, PAIR | {"chosen": " "}, PAIR | {"chosen": PAIR["rejected"]}])
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no pair is left of 0 rows"):
        built(tmp_path, [])


def test_a_malformed_row_ends_the_stage_or_is_counted(tmp_path: Path) -> None:
    rows = [PAIR, {"prompt": 3}, PAIR | {"prompt": "A boy waits."}]
    with pytest.raises(InputError, match=r"in\.jsonl:2: Expected .* got int") as caught:
        built(tmp_path, rows)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    results, pairs = built(tmp_path, rows, max_failures=0.34)
    assert results["failures"] == [str(caught.value)]
    assert len(pairs) == 2
    (failure,) = read_json_lines(tmp_path / "out" / "failures.jsonl")
    assert failure["line"] == 2


def test_more_malformed_rows_than_let_through_fail_the_stage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 of 3 rows are malformed, the first: .*in\.jsonl:1: "):
        built(tmp_path, [{}, {}, PAIR], max_failures=0.5)
    assert len(read_json_lines(tmp_path / "out" / "failures.jsonl")) == 2
    assert not (tmp_path / "out" / "text-pairs.jsonl").exists()


def learnt_from_lengths(pairs: list[dict[str, Any]]) -> float:
    """Accuracy on held-out pairs of a scorer that knows lengths only: how often each length was better."""
    train, test = pairs[::2], pairs[1::2]
    score = np.zeros(200)
    for pair in train:
        score[len(pair["chosen"]) // 4] += 1
        score[len(pair["rejected"]) // 4] -= 1
    better = [score[len(pair["chosen"]) // 4] - score[len(pair["rejected"]) // 4] for pair in test]
    return float(np.mean((np.sign(better) + 1) / 2))


def test_length_alone_tells_nothing_of_balanced_pairs(tmp_path: Path) -> None:
    for folder in ("plain", "balanced"):
        (tmp_path / folder).mkdir()
    rows = wordy_rows(3000, longer=0.8, seed=1)
    before, plain = built(tmp_path / "plain", rows)
    after, balanced = built(tmp_path / "balanced", rows, balance_lengths=True)
    assert before["length_accuracy"] == before["length_accuracy_before"] == pytest.approx(0.8, abs=0.03)
    assert learnt_from_lengths(plain) > 0.7
    assert (after["length_accuracy_before"], after["length_accuracy"]) == (before["length_accuracy"], 0.5)
    assert abs(after["mean_longer"]) < 1 < before["mean_longer"]  # characters
    # four standard deviations of a coin that is tossed once a pair
    assert abs(learnt_from_lengths(balanced) - 0.5) < 2 / np.sqrt(len(balanced) / 2)
    assert after["num_dropped_for_length"] == len(rows) - len(balanced) == 3000 - after["num_pairs"]
    whys = [row["why"] for row in read_json_lines(tmp_path / "balanced" / "out" / "left-out.jsonl")]
    assert whys == ["length"] * after["num_dropped_for_length"]
    assert len(balanced) > 0.3 * len(rows)


def test_a_draw_of_pairs_is_made_by_the_seed(tmp_path: Path) -> None:
    rows = wordy_rows(100, longer=0.5, seed=2)
    drawn = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        results, drawn[name] = built(tmp_path / name, rows, num_pairs=30, seed=seed)
        assert (results["num_pairs"], results["num_not_drawn"]) == (30, 70)
    ids = {name: [pair["id"] for pair in pairs] for name, pairs in drawn.items()}
    assert ids["one"] == ids["same"] == sorted(ids["one"])
    assert ids["one"] != ids["other"]


def test_so_many_of_each_group_are_drawn(tmp_path: Path) -> None:
    rows = [
        row | {"kind": "ab"[n % 2], "groups": {"of": "xyz"[n % 3]}}
        for n, row in enumerate(wordy_rows(66, longer=0.5, seed=3))
    ]
    results, pairs = built(tmp_path, rows, num_pairs_each=4)
    assert Counter((pair["kind"], pair["groups"]["of"]) for pair in pairs) == dict.fromkeys(
        itertools.product("ab", "xyz"), 4
    )
    assert results["num_not_drawn"] == 66 - 24


def test_a_draw_keeps_what_shares_a_row_together(tmp_path: Path) -> None:
    row = {
        "ctx_a": "A man sits.",
        "ctx_b": "he",
        "endings": ["runs.", "sings.", "swims.", "eats."],
        "label": 0,
    }
    rows = [row | {"ctx_a": f"Man {n} sits."} for n in range(20)]
    results, pairs = built(tmp_path, rows, layout="hellaswag", wrong_endings=3, num_pairs=31)
    assert Counter(pair["cluster"] for pair in pairs) == Counter(
        dict.fromkeys({pair["cluster"] for pair in pairs}, 3)
    )
    assert (results["num_rows"], results["num_pairs"], results["num_not_drawn"]) == (20, 30, 30)
    assert len({pair["id"] for pair in pairs}) == 30
    assert pairs[0]["id"].removesuffix("-2") == pairs[1]["id"].removesuffix("-2")


def test_sides_that_only_differ_in_writing_are_left_out_where_accents_are_named(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="slam[espeak] is not installed")
    rows = [
        PAIR | {"chosen": "The boys walk.", "rejected": "The boy's walk."},
        PAIR | {"chosen": "They won the court.", "rejected": "They won the caught."},  # without an r
        PAIR | {"chosen": "They won the court.", "rejected": "They won the cart."},
        PAIR | {"chosen": "They met a writer.", "rejected": "They met a rider."},  # with a tapped t
    ]
    kept = {}
    for accents in ((), ("en-us",), ("en-us", "en-gb-x-rp")):
        (tmp_path / str(len(accents))).mkdir()
        results, pairs = built(tmp_path / str(len(accents)), rows, accents=accents, max_similarity=None)
        kept[len(accents)] = [pair["id"][-1] for pair in pairs]
        assert results["num_sound_alike"] == 4 - len(pairs)
    assert kept == {0: ["1", "2", "3", "4"], 1: ["2", "3"], 2: ["3"]}


def test_files_are_read_in_order_and_numbered_on(tmp_path: Path) -> None:
    one = write(tmp_path / "1.jsonl", [PAIR])
    two = write(tmp_path / "2.jsonl", [PAIR | {"prompt": "A boy waits."}])
    build_pairs(BuildPairsConfig(files=(two, one), layout="pairs", balance_lengths=False), tmp_path / "out")
    rows = read_json_lines(tmp_path / "out" / "text-pairs.jsonl")
    assert [(row["id"][-1], row["origin"]) for row in rows] == [("1", "2.jsonl:1"), ("2", "1.jsonl:1")]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt and two sides, of different rates, and a list of them."""
    folder = tmp_path_factory.mktemp("recorded")
    write_audio(folder / "prompt.wav", sound(0.8, 1))
    write_audio(folder / "good.flac", sound(0.5, 2, 24_000))
    write_audio(folder / "bad.wav", sound(0.6, 3, 8_000))
    return folder


SPOKEN = {"prompt": "prompt.wav", "chosen": "good.flac", "rejected": "bad.wav"}


def spoken(recordings: Path, out: Path, rows: list[Any], **settings: Any) -> dict[str, Any]:
    file = write(recordings / f"{out.parent.name}.jsonl", rows)
    given = {"layout": "pairs", "sides": "audio", "balance_lengths": False, "num_workers": 2} | settings
    return build_pairs(BuildPairsConfig(files=(file,), **given), out).results


def test_recordings_are_joined_at_one_rate(recordings: Path, tmp_path: Path) -> None:
    row = {part: {"audio": path, "text": f"{part}."} for part, path in SPOKEN.items()}
    results = spoken(recordings, tmp_path / "out", [row | {"kind": "verb", "story": "s"}])
    assert results["num_pairs"] == 1
    assert results["mean_longer"] == pytest.approx(0.5 - 0.6)  # seconds
    (pair,) = read_pair_rows(tmp_path / "out")
    assert (pair.kind, pair.story) == ("verb", "s")
    assert pair.chosen_start == pair.rejected_start == 0.8
    manifest = read_json_lines(tmp_path / "out" / "manifest.jsonl")
    assert [one["id"] for one in manifest] == [pair.chosen, pair.rejected]
    prompt = read_audio(recordings / "prompt.wav", 16_000).samples
    for one, side in zip(manifest, ("chosen", "rejected"), strict=True):
        heard = read_audio(tmp_path / "out" / one["audio"])
        assert heard.sample_rate == 16_000
        rest = read_audio(recordings / SPOKEN[side], 16_000).samples
        np.testing.assert_allclose(heard.samples, np.concatenate((prompt, rest)), atol=1 / 32_767)
        assert one["text"] == f"prompt. {side}."
        assert one["seconds"] == len(heard.samples) / 16_000


def test_recordings_without_a_prompt_stay_as_they_are(recordings: Path, tmp_path: Path) -> None:
    rows = [{"good": "good.flac", "bad": "bad.wav", "of": "birds"}]
    columns = {"chosen": "good", "rejected": "bad", "cluster": "of", "groups.sort": "of"}
    spoken(recordings, tmp_path / "out", rows, columns=columns)
    (pair,) = read_pair_rows(tmp_path / "out")
    assert (pair.chosen_start, pair.rejected_start) == (0.0, 0.0)
    assert (pair.cluster, pair.groups) == ("birds", {"sort": "birds"})
    seconds = [row["seconds"] for row in read_json_lines(tmp_path / "out" / "manifest.jsonl")]
    assert seconds == pytest.approx([0.5, 0.6], abs=0.001)


def test_joined_pairs_are_encoded_and_cut_at_their_seam(
    recordings: Path, toy_units: Path, tmp_path: Path
) -> None:
    spoken(recordings, tmp_path / "out", [SPOKEN])
    encode(EncodeConfig(audio=tmp_path / "out", tokenizer_from=toy_units, num_workers=1), tmp_path / "units")
    units = read_units(tmp_path / "units")
    (pair,) = read_pairs(units)
    for side, seconds in ((pair.chosen, 0.5), (pair.rejected, 0.6)):
        # but for the rest of a unit that spans the seam, and what the tokenizer heard early
        assert side.num_frames == pytest.approx(seconds * units.frame_rate, abs=4)
    assert pair.prompt.num_frames == pytest.approx(0.8 * units.frame_rate, abs=4)


def test_recordings_are_balanced_by_their_seconds(recordings: Path, tmp_path: Path) -> None:
    for number in range(4):
        write_audio(recordings / f"{number}.wav", Audio(np.zeros(16_000 + number, np.float32), 16_000))
    swapped = {"prompt": "0.wav", "chosen": "bad.wav", "rejected": "good.flac"}
    rows = [SPOKEN, SPOKEN | {"prompt": "1.wav"}, SPOKEN | {"prompt": "2.wav"}, swapped]
    results = spoken(recordings, tmp_path / "out", rows, balance_lengths=True)
    assert (results["num_pairs"], results["num_dropped_for_length"]) == (2, 2)
    assert (results["length_accuracy_before"], results["length_accuracy"]) == (0.25, 0.5)
    assert len(list((tmp_path / "out" / "audio").rglob("*.wav"))) == 4


def test_a_lost_prompt_is_known_before_lengths_are_balanced(recordings: Path, tmp_path: Path) -> None:
    swapped = {"prompt": "prompt.wav", "chosen": "bad.wav", "rejected": "good.flac"}
    rows = [SPOKEN | {"prompt": "gone.wav"}, SPOKEN, swapped]
    results = spoken(recordings, tmp_path / "out", rows, balance_lengths=True, max_failures=0.4)
    assert (results["num_pairs"], results["num_dropped_for_length"], results["num_failures"]) == (2, 0, 1)


@pytest.mark.parametrize("part", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize(
    ("content", "reason"), [(None, "no such file"), (b"", "unreadable"), ("cut", "is cut short")]
)
def test_a_recording_that_cannot_be_read_is_named(
    part: str, content: bytes | str | None, reason: str, recordings: Path, tmp_path: Path
) -> None:
    lost = recordings / f"lost-{tmp_path.name}.wav"
    if content == "cut":
        content = (recordings / "prompt.wav").read_bytes()[:-2000]
    if isinstance(content, bytes):
        lost.write_bytes(content)
    rows = [SPOKEN | {"prompt": "good.flac"}, SPOKEN | {part: lost.name}]
    with pytest.raises(InputError, match=rf":2: .*{lost.name}: {reason}") as caught:
        spoken(recordings, tmp_path / "out", rows)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    results = spoken(recordings, tmp_path / "out", rows, max_failures=0.5)
    assert (results["num_pairs"], results["num_failures"]) == (1, 1)
    assert len(read_pair_rows(tmp_path / "out")) == 1


def test_damage_that_a_header_does_not_tell_of_is_found_when_joining(
    recordings: Path, tmp_path: Path
) -> None:
    whole = (recordings / "good.flac").read_bytes()
    lost = recordings / "lost.flac"
    lost.write_bytes(whole[: len(whole) // 2] + b"\0" * (len(whole) - len(whole) // 2))
    rows = [SPOKEN, SPOKEN | {"chosen": lost.name}]
    with pytest.raises(InputError, match=r":2: .*lost\.flac: "):
        spoken(recordings, tmp_path / "out", rows)
    assert not (tmp_path / "out").exists()
    results = spoken(recordings, tmp_path / "out", rows, max_failures=0.5)
    assert (results["num_pairs"], results["num_failures"]) == (1, 1)
    assert len(read_json_lines(tmp_path / "out" / "manifest.jsonl")) == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"files": ()}, "files"),
        ({"benchmark": "a/b"}, "benchmark = 'a/b'"),
        ({"benchmark": ""}, "benchmark = ''"),
        ({"benchmark": "..", "layout": "swag"}, "benchmark = '..'"),
        ({"sides": "audio", "layout": "swag"}, 'sides = "audio" goes with layout = "pairs"'),
        ({"max_auto_bleu": 30.0}, "max_auto_bleu = 30.0"),
        ({"max_similarity": -0.1}, "max_similarity = -0.1"),
        ({"max_failures": float("nan")}, "max_failures = nan"),
        ({"num_pairs": 0}, "num_pairs = 0"),
        ({"num_pairs_each": 0}, "num_pairs_each = 0"),
        ({"layout": "words"}, "needs dictionary (a file) and accents"),
        ({"layout": "words", "dictionary": Path("d")}, "needs dictionary (a file) and accents"),
        ({"dictionary": Path("d")}, 'dictionary goes with layout = "words"'),
        ({"accents": ("en-us",), "sides": "audio"}, "accents are for texts"),
        ({"wrong_endings": 2}, "wrong_endings = 2: 'pairs' has one wrong side"),
        ({"wrong_endings": 0, "layout": "swag"}, "wrong_endings = 0"),
        ({"columns": {"better": "a"}}, "columns.better: layout 'pairs' has prompt, chosen"),
        ({"columns": {"chosen": "a"}, "layout": "swag"}, "columns.chosen: layout 'swag' has columns of its"),
        ({"sample_rate": 16}, "sample_rate = 16"),
        ({"num_workers": 0}, "num_workers = 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        BuildPairsConfig(**({"files": (Path("x"),), "layout": "pairs"} | settings))
