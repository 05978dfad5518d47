import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slam.errors import InputError
from slam.pairs import PAIRS_FILE, PairRow, read_pair_rows, read_pairs, write_pair_rows
from slam.units import deduplicate, finish_units, read_units, write_shard

UTTERANCES = {
    "good": [1, 1, 2, 2, 2, 3, 3, 4],
    "bad": [1, 1, 2, 2, 0, 0, 4, 4, 4],
    "word": [5, 5, 6],
}
ROW = PairRow("p1", "storycloze", "place", "good", "bad", 0.16, 0.16, "it was the castle", "a|b")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    units = [deduplicate(np.array(frames), 25.0) for frames in UTTERANCES.values()]
    write_shard(tmp_path, 0, units, [{"id": name} for name in UTTERANCES])
    finish_units(tmp_path, num_units=7, tokenizer="t", fingerprint="f", frame_rate=25.0, num_shards=1)
    return tmp_path


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, id="p2", story=None, reason="")]
    write_pair_rows(tmp_path, rows)
    assert read_pair_rows(tmp_path) == rows


def test_reason_and_story_may_be_left_out_and_unknown_keys_are_passed_over(tmp_path: Path) -> None:
    content = {key: value for key, value in ROW.__dict__.items() if key not in {"reason", "story"}}
    (tmp_path / PAIRS_FILE).write_text(json.dumps(content | {"note": "mine"}))
    assert read_pair_rows(tmp_path) == [replace(ROW, reason="", story=None)]


def test_the_prompt_is_the_better_utterance_up_to_the_seam(folder: Path) -> None:
    write_pair_rows(folder, [ROW])
    (pair,) = read_pairs(read_units(folder))
    assert (pair.id, pair.benchmark, pair.kind) == ("p1", "storycloze", "place")
    assert pair.prompt.expand().tolist() == [1, 1, 2, 2]  # 0.16 s are 4 frames
    # the rest of a unit that spans the seam belongs to neither side
    assert pair.chosen.expand().tolist() == [3, 3, 4]
    assert pair.rejected.expand().tolist() == [0, 0, 4, 4, 4]


def test_each_side_begins_at_its_own_seam(folder: Path) -> None:
    write_pair_rows(folder, [replace(ROW, chosen_start=0.08, rejected_start=0.24)])
    (pair,) = read_pairs(read_units(folder))
    assert pair.prompt.expand().tolist() == [1, 1]
    assert pair.chosen.expand().tolist() == [2, 2, 2, 3, 3, 4]
    assert pair.rejected.expand().tolist() == [4, 4, 4]


def test_a_pair_without_prompt_has_two_whole_sides(folder: Path) -> None:
    write_pair_rows(folder, [replace(ROW, rejected="word", chosen_start=0.0, rejected_start=0.0)])
    (pair,) = read_pairs(read_units(folder))
    assert len(pair.prompt) == 0
    assert pair.chosen.expand().tolist() == UTTERANCES["good"]
    assert pair.rejected.expand().tolist() == UTTERANCES["word"]


@pytest.mark.parametrize("seam", range(1, 7))
def test_prompt_and_continuation_end_to_end_are_deduplicated(seam: int, folder: Path) -> None:
    write_pair_rows(folder, [replace(ROW, chosen_start=seam / 25, rejected_start=seam / 25)])
    (pair,) = read_pairs(read_units(folder))
    for side in (pair.chosen, pair.rejected):
        joined = np.concatenate((pair.prompt.ids, side.ids))
        assert (joined[1:] != joined[:-1]).all()


def test_pairs_keep_the_order_of_their_file(folder: Path) -> None:
    names = ["z", "a", "m"]
    write_pair_rows(folder, [replace(ROW, id=name) for name in names])
    assert [pair.id for pair in read_pairs(read_units(folder))] == names


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_an_utterance_that_is_not_there_is_named(side: str, folder: Path) -> None:
    write_pair_rows(folder, [ROW, replace(ROW, id="p2", **{side: "lost"})])
    with pytest.raises(InputError, match="pair 'p2' names the utterance 'lost'"):
        read_pairs(read_units(folder))


@pytest.mark.parametrize(
    "change", [{"chosen_start": 9.0}, {"rejected_start": 9.0}, {"chosen": "word", "chosen_start": 0.12}]
)
def test_a_side_without_units_is_named(change: dict[str, object], folder: Path) -> None:
    write_pair_rows(folder, [replace(ROW, **change)])
    with pytest.raises(InputError, match="pair 'p1' has a side without units"):
        read_pairs(read_units(folder))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": "p1"}, r"pairs.jsonl:2: a second pair named 'p1'"),
        ({"kind": None, "chosen": None}, r"pairs.jsonl:2: lacks kind, chosen"),
        ({"chosen_start": "soon"}, r"pairs.jsonl:2: chosen_start = 'soon'"),
        ({"rejected_start": -1}, r"pairs.jsonl:2: rejected_start = -1"),
    ],
)
def test_a_row_that_cannot_be_meant_is_named(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    second = ROW.__dict__ | {"id": "p2"} | change
    rows = [ROW.__dict__, {key: value for key, value in second.items() if value is not None}]
    (tmp_path / PAIRS_FILE).write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=reason):
        read_pair_rows(tmp_path)


def test_an_empty_or_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=PAIRS_FILE):
        read_pair_rows(tmp_path)
    (tmp_path / PAIRS_FILE).write_text("\n")
    with pytest.raises(InputError, match="holds no pairs"):
        read_pair_rows(tmp_path)
