import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slam.errors import InputError
from slam.pairs import PAIRS_FILE, PairRow, read_pair_rows, read_pairs, write_pair_rows
from slam.units import Units, deduplicate, finish_units, read_units, write_shard

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


@pytest.mark.parametrize("durations", [True, False])
def test_units_made_apart_come_back_as_they_were(durations: bool, tmp_path: Path) -> None:  # noqa: FBT001
    prompt, chosen, rejected = [1, 2, 3], [3, 4], [3, 1, 5]  # the sides begin as the prompt ends
    whole = [np.array(prompt + side, np.uint16) for side in (chosen, rejected)]
    units = [
        Units(ids, np.arange(1, len(ids) + 1, dtype=np.uint16) if durations else None, 25.0) for ids in whole
    ]
    write_shard(tmp_path, 0, units, [{"id": "good"}, {"id": "bad"}])
    about = {"num_units": 7, "tokenizer": "t", "fingerprint": "f", "frame_rate": 25.0, "num_shards": 1}
    finish_units(tmp_path, **about, durations=durations)
    write_pair_rows(tmp_path, [replace(ROW, chosen_start=None, rejected_start=None, prompt_units=3)])
    (pair,) = read_pairs(read_units(tmp_path))
    assert [part.ids.tolist() for part in (pair.prompt, pair.chosen, pair.rejected)] == [
        prompt,
        chosen,
        rejected,
    ]
    for part, expected in ((pair.prompt, [1, 2, 3]), (pair.chosen, [4, 5]), (pair.rejected, [4, 5, 6])):
        assert (part.durations is not None) is durations
        assert part.durations is None or part.durations.tolist() == expected


def test_the_seam_in_units_goes_before_the_seam_in_seconds(folder: Path) -> None:
    write_pair_rows(folder, [replace(ROW, prompt_units=2)])
    (pair,) = read_pairs(read_units(folder))
    assert pair.prompt.ids.tolist() == [1, 2]
    assert (pair.chosen.ids.tolist(), pair.rejected.ids.tolist()) == ([3, 4], [0, 4])


def test_a_seam_behind_the_last_unit_leaves_a_side_without_units(folder: Path) -> None:
    write_pair_rows(folder, [replace(ROW, prompt_units=4)])
    with pytest.raises(InputError, match="pair 'p1' has a side without units"):
        read_pairs(read_units(folder))


def test_files_without_a_seam_in_units_are_written_as_before(tmp_path: Path) -> None:
    write_pair_rows(tmp_path, [ROW])
    (row,) = map(json.loads, (tmp_path / PAIRS_FILE).read_text().splitlines())
    assert list(row) == [
        *("id", "benchmark", "kind", "chosen", "rejected"),
        *("chosen_start", "rejected_start", "reason", "story"),
    ]


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
        ({"chosen_start": None}, r"pairs.jsonl:2: lacks chosen_start"),
        ({"item": 3}, r"pairs.jsonl:2: item = 3: expected a text"),
        ({"cluster": ["w"]}, r"pairs.jsonl:2: cluster = \['w'\]"),
        ({"groups": {"voice": 1}}, r"pairs.jsonl:2: groups = .*: expected a table of texts"),
        ({"prompt_units": -1}, r"pairs.jsonl:2: prompt_units = -1: expected how many units"),
        ({"prompt_units": 1.5}, r"pairs.jsonl:2: prompt_units = 1.5"),
        ({"prompt_units": True}, r"pairs.jsonl:2: prompt_units = True"),
        ({"prompt_units": 2, "chosen_start": "soon"}, r"pairs.jsonl:2: chosen_start = 'soon'"),
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


def test_items_clusters_and_groups_come_back(tmp_path):
    row = replace(ROW, item="w1", cluster="word", groups={"voice": "A", "frequency": "oov"})
    write_pair_rows(tmp_path, [row])
    assert read_pair_rows(tmp_path) == [row]


def test_pairs_are_resampled_with_the_widest_thing_they_share():
    alone = replace(ROW, story=None)
    assert alone.resampled_with == alone.id
    assert replace(alone, item="i").resampled_with == "i"
    assert replace(alone, item="i", story="s").resampled_with == "s"
    assert replace(alone, item="i", story="s", cluster="c").resampled_with == "c"
