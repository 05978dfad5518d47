import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from slam.errors import InputError
from slam.pair_layouts import Candidate, Part, Reading, read_candidates, read_rows

SWAG = {
    "": "0",
    "video-id": "lsmdc1052-65",
    "fold-ind": "17483",
    "startphrase": "He opens it. Someone",
    "sent1": "He opens it.",
    "sent2": "Someone",
    "gold-source": "gold",
    "ending0": "flies off.",
    "ending1": 'says "no", and leaves.',
    "ending2": "sleeps\non the floor.",
    "ending3": "sings.",
    "label": "1",
}
HELLASWAG = {
    "ind": 24,
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he",
    "split": "val",
    "split_type": "indomain",
    "label": 3,
    "endings": ["wraps it.", "rips it.", "holds a cube.", "starts to pull it up."],
    "source_id": "activitynet~v_-JhWjGDPHMY",
}
PAIR = {"prompt": "The sky is", "chosen": "blue.", "rejected": "a small dog."}


def write_csv(path: Path, rows: list[dict[str, str]], fields: list[str] | None = None) -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fields or list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reading(layout: str, **more: Any) -> Reading:
    return Reading(**({"layout": layout, "sides": "text", "gold_only": True, "seed": 0} | more))


def candidates(path: Path, how: Reading) -> list[Any]:
    """The pairs of all rows, or why a row is none."""
    read = [read_candidates(raw, path, how) for _, raw in read_rows(path)]
    return [one for found in read for one in ([found] if isinstance(found, str) else found)]


def texts(found: Candidate) -> tuple[str, str, str]:
    return found.prompt.text, found.chosen.text, found.rejected.text


def test_a_row_of_swag_is_its_first_sentence_and_two_of_its_endings(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", [SWAG])
    wrong = {"Someone flies off.", "Someone sleeps on the floor.", "Someone sings."}
    drawn = Counter()
    for seed in range(300):
        (found,) = candidates(path, reading("swag", seed=seed))
        prompt, chosen, rejected = texts(found)
        assert (prompt, chosen) == ("He opens it.", 'Someone says "no", and leaves.')
        drawn[rejected] += 1
    assert set(drawn) == wrong
    assert min(drawn.values()) > 60  # 100 each, with a standard deviation of 8


def test_the_wrong_ending_of_a_row_does_not_depend_on_the_rows_around_it(tmp_path: Path) -> None:
    rows = [SWAG | {"sent1": f"He opens box {n}."} for n in range(20)]
    forth = candidates(write_csv(tmp_path / "a.csv", rows), reading("swag"))
    back = candidates(write_csv(tmp_path / "b.csv", rows[::-1]), reading("swag"))
    assert forth == back[::-1]
    assert len({found.rejected.text for found in forth}) == 3


def test_a_table_is_read_packed_with_its_marks_and_the_lines_of_its_rows(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", [SWAG, SWAG | {"sent1": "Zoë waits."}])
    packed = tmp_path / "train.csv.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))
    assert candidates(packed, reading("swag")) == candidates(path, reading("swag"))
    # a field holds a line feed, so the first row ends on the third line of the file
    assert [line for line, _ in read_rows(packed)] == [3, 5]


def test_swag_is_read_as_json_lines_too(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "train.csv", [SWAG])
    lines = write_lines(tmp_path / "train.jsonl", [SWAG | {"label": 1}])
    assert candidates(lines, reading("swag")) == candidates(table, reading("swag"))


def test_endings_that_a_model_wrote_are_taken_only_if_asked_for(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", [SWAG, SWAG | {"gold-source": "gen"}])
    assert candidates(path, reading("swag"))[1] == "not_gold"
    assert isinstance(candidates(path, reading("swag", gold_only=False))[1], Candidate)


@pytest.mark.parametrize("label", ["", "-1"])
def test_rows_of_a_test_part_have_no_label(label: str, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "test.csv", [SWAG | {"label": label}])
    assert candidates(path, reading("swag")) == ["without_label"]
    rows = [SWAG]
    without = [{key: value for key, value in row.items() if key != "label"} for row in rows]
    assert candidates(write_csv(tmp_path / "bare.csv", without), reading("swag")) == ["without_label"]
    lines = write_lines(tmp_path / "test.jsonl", [HELLASWAG | {"label": label}, HELLASWAG | {"label": None}])
    assert candidates(lines, reading("hellaswag")) == ["without_label"] * 2


@pytest.mark.parametrize("label", [3, "3"])
def test_a_row_of_hellaswag_goes_on_from_its_unfinished_sentence(label: int | str, tmp_path: Path) -> None:
    (found,) = candidates(
        write_lines(tmp_path / "a.jsonl", [HELLASWAG | {"label": label}]), reading("hellaswag")
    )
    prompt, chosen, rejected = texts(found)
    assert (prompt, chosen) == ("A man is sitting on a roof.", "he starts to pull it up.")
    assert rejected in {"he wraps it.", "he rips it.", "he holds a cube."}
    assert found.reason == f"ending {HELLASWAG['endings'].index(rejected[3:])} of 4, and 3 is the right one"


def test_hellaswag_with_one_context_has_it_as_the_prompt(shared_data: Path) -> None:
    path = shared_data / "pairs" / "hellaswag.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    found = candidates(path, reading("hellaswag"))
    assert len(found) == len(rows) == 1600
    for one, row in zip(found, rows, strict=True):
        assert one.prompt.text == " ".join(row["context"].split())
        right = row["endings"].pop(row["label"])
        assert one.chosen.text == " ".join(right.split())
        assert one.rejected.text in [" ".join(ending.split()) for ending in row["endings"]]


@pytest.mark.parametrize(
    "change",
    [
        {"ctx_a": "[header] How to knit [title] Buy wool."},
        {"endings": ["[step] Knit.", "b", "c", "d"]},
        {"ctx_b": "see http://wool.example"},
    ],
)
def test_text_with_marks_that_nobody_speaks_is_told(change: dict[str, Any], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [HELLASWAG | change])
    assert candidates(path, reading("hellaswag")) == ["with_markup"]


WRITTEN = [
    PAIR,
    {f"{part}_text": text for part, text in PAIR.items()},
    {part: {"audio": "a.wav", "text": text} for part, text in PAIR.items()},
    # SpokenSwag's own list
    {f"{part}_text": text for part, text in PAIR.items()} | {f"{part}_path": f"{part}.wav" for part in PAIR},
]


@pytest.mark.parametrize("row", WRITTEN)
def test_pairs_are_texts_in_several_spellings(row: dict[str, Any], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row])
    (found,) = candidates(path, reading("pairs"))
    assert texts(found) == tuple(PAIR.values())
    assert found.prompt.audio is found.chosen.audio is None


SPOKEN = [
    {part: f"{part}.wav" for part in PAIR},
    {f"{part}_path": f"{part}.wav" for part in PAIR},
    {part: {"audio": f"{part}.wav", "text": text} for part, text in PAIR.items()},
    WRITTEN[3],
]


@pytest.mark.parametrize("row", SPOKEN)
def test_pairs_are_recordings_beside_their_file(row: dict[str, Any], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row])
    (found,) = candidates(path, reading("pairs", sides="audio"))
    for part in PAIR:
        assert getattr(found, part).audio == tmp_path / f"{part}.wav"
    assert found.chosen.text == ("blue." if row in SPOKEN[2:] else "")


def test_what_more_a_pair_says_is_kept(tmp_path: Path) -> None:
    more = {"kind": "colour", "reason": "the sky is no dog", "story": "sky", "voice": "af_heart"}
    more |= {"cluster": "skies"}
    blank = {"kind": " ", "reason": " ", "story": "", "voice": ""}
    lines = write_lines(tmp_path / "a.jsonl", [PAIR | more | {"note": 1}, PAIR, PAIR | blank])
    full, bare, empty = candidates(lines, reading("pairs"))
    assert {key: getattr(full, key) for key in more} == more
    assert (bare.kind, bare.reason, bare.story, bare.voice) == ("all", "", None, None)
    assert empty == bare
    assert candidates(write_csv(tmp_path / "a.csv", [PAIR | more]), reading("pairs")) == [full]


def test_an_empty_part_is_nothing_to_hear(tmp_path: Path) -> None:
    rows = [PAIR | {"prompt": " \n"}, {f"{part}_path": " " for part in PAIR}]
    path = write_lines(tmp_path / "a.jsonl", rows)
    (_, spoken), (_, named) = read_rows(path)
    for raw, sides in ((spoken, "text"), (named, "audio")):
        (found,) = read_candidates(raw, path, reading("pairs", sides=sides))
        assert isinstance(found, Candidate)
        assert not found.prompt
    assert Part(text="a")
    assert Part(audio=path)


def test_more_wrong_endings_begin_with_the_one_and_are_distinct(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [HELLASWAG | {"ctx_a": f"Man {n} sits."} for n in range(20)])
    one = candidates(path, reading("hellaswag"))
    for count in (2, 3, 7):
        many = candidates(path, reading("hellaswag", wrong_endings=count))
        each = min(count, 3)  # there are no more
        assert many[::each] == one
        assert len({texts(found) for found in many}) == len(many) == 20 * each
        assert {found.chosen.text for found in many} == {"he starts to pull it up."}


BLIMP = {
    "UID": "wh_island",
    "field": "syntax",
    "linguistics_term": "island_effects",
    "pairID": "7",
    "sentence_good": "Who  sings?",
    "sentence_bad": "Sings who?",
}


def test_a_row_of_blimp_is_two_sentences_of_a_paradigm_and_a_phenomenon(tmp_path: Path) -> None:
    (found,) = candidates(write_lines(tmp_path / "a.jsonl", [BLIMP]), reading("blimp"))
    assert texts(found) == ("", "Who sings?", "Sings who?")
    assert (found.kind, found.groups) == ("island_effects", {"paradigm": "wh_island"})
    assert found.bare  # no prompt is missed


def test_columns_say_how_the_rows_name_what_is_read(tmp_path: Path) -> None:
    row = {"good": "A dog barks.", "bad": "A dog meows.", "topic": "dogs", "level": 3, "reason": "no"}
    columns = {"chosen": "good", "rejected": "bad", "kind": "topic", "groups.level": "level"}
    path = write_lines(tmp_path / "a.jsonl", [row])
    (found,) = candidates(path, reading("pairs", columns=columns))
    assert texts(found) == ("", "A dog barks.", "A dog meows.")
    assert (found.kind, found.groups, found.reason, found.bare) == ("dogs", {"level": "3"}, "no", True)
    (prompted,) = candidates(path, reading("pairs", columns=columns | {"prompt": "topic"}))
    assert (prompted.prompt.text, prompted.bare) == ("dogs", False)
    table = write_csv(tmp_path / "a.csv", [{key: str(value) for key, value in row.items()}])
    assert candidates(table, reading("pairs", columns=columns)) == [found]
    with pytest.raises(InputError, match="has no 'theme', which columns names for kind"):
        candidates(path, reading("pairs", columns=columns | {"kind": "theme"}))


BAD_ROWS = [
    ("swag", {}, "missing required field sent1"),
    ("swag", SWAG | {"ending2": 3}, r"Expected str, got int - at \$.ending2"),
    ("swag", SWAG | {"label": "4"}, "label = '4': expected 0 to 3"),
    ("swag", SWAG | {"label": "one"}, "label = 'one'"),
    ("swag", {k: v for k, v in SWAG.items() if k != "gold-source"}, 'has no "gold-source"'),
    ("hellaswag", {"endings": ["a", "b"]}, 'has neither "ctx_a" nor "context"'),
    ("hellaswag", HELLASWAG | {"endings": ["a"]}, "length >= 2"),
    ("hellaswag", HELLASWAG | {"endings": "abcd"}, "Expected array, got str"),
    ("hellaswag", HELLASWAG | {"label": 1.5}, "label"),
    ("pairs", {"prompt": "a", "chosen": "b"}, 'has no rejected: no "rejected" or "rejected_text"'),
    ("pairs", {part: {"audio": "a.wav"} for part in PAIR}, 'for recordings set sides = "audio"'),
    ("pairs", PAIR | {"chosen": ["b"]}, r"Expected .* got array - at \$.chosen"),
    ("pairs", [1], "Expected object, got array"),
    ("pairs", PAIR | {"groups": {"a": 1}}, r"Expected str, got int - at \$.groups"),
    ("blimp", {key: value for key, value in BLIMP.items() if key != "UID"}, "missing required field UID"),
]


@pytest.mark.parametrize(("layout", "row", "reason"), BAD_ROWS)
def test_a_malformed_row_says_what_is_wrong(layout: str, row: Any, reason: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row])
    with pytest.raises(InputError, match=reason) as caught:
        candidates(path, reading(layout))
    assert "\n" not in str(caught.value)


def test_texts_are_no_recordings(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{f"{part}_text": text for part, text in PAIR.items()}])
    with pytest.raises(InputError, match=r'no "prompt", "prompt.audio" or "prompt_path"'):
        candidates(path, reading("pairs", sides="audio"))


@pytest.mark.parametrize("line", ["a,b", "a,b,c,d"])
def test_a_ragged_row_of_a_table_says_so(line: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,chosen,rejected\n{line}\n")
    with pytest.raises(InputError, match="has not as many fields as the first line names"):
        candidates(path, reading("pairs"))


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (b"{}", "a.parquet", r"expected a \.csv or \.jsonl file"),
        (b"{}", "a.txt.gz", r"expected a \.csv or \.jsonl file"),
        (b"not gzip", "a.jsonl.gz", r"is damaged \(Not a gzipped file"),
        (gzip.compress(json.dumps(PAIR).encode() * 500, mtime=0)[:-20], "a.jsonl.gz", "is damaged"),
        (b"prompt\n\xff\n", "a.csv", r"a\.csv:2: not UTF-8 text"),
        (b"prompt\n" + b"a" * 200_000, "a.csv", "field larger than field limit"),
        (b'prompt\n"cut', "a.csv", r"a\.csv:2: not CSV \(unexpected end of data\)"),
        (None, "a.jsonl", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    content: bytes | None, name: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        list(read_rows(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
