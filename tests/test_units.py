import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from conformance import assert_same_units
from slam.errors import InputError, MismatchError
from slam.units import Units, Vocabulary, deduplicate, finish_units, read_units, shard_path, write_shard

FRAMES = st.lists(st.integers(0, 4), max_size=60)


def write_folder(folder: Path, shards: list[list[list[int]]], num_units: int = 5) -> Path:
    number = itertools.count()
    for index, utterances in enumerate(shards):
        units = [deduplicate(np.array(frames, int), 25.0) for frames in utterances]
        write_shard(folder, index, units, [{"id": f"u{next(number)}"} for _ in utterances])
    finish_units(
        folder,
        num_units=num_units,
        tokenizer="t",
        fingerprint="f" * 16,
        frame_rate=25.0,
        num_shards=len(shards),
    )
    return folder


@given(FRAMES)
def test_deduplication_is_run_length_encoding_and_expanding_undoes_it(frames: list[int]) -> None:
    units = deduplicate(np.array(frames, int), 25.0)
    runs = reference.run_lengths(frames)
    assert list(zip(units.ids.tolist(), units.known_durations.tolist(), strict=True)) == runs
    assert units.expand().tolist() == frames == reference.expanded(runs)
    assert units.num_frames == len(frames)
    assert units.ids.dtype == units.known_durations.dtype == np.uint16


@pytest.mark.parametrize("length", [65_535, 65_536, 131_070, 140_000])
def test_a_run_longer_than_a_duration_can_hold_is_cut(length: int) -> None:
    frames = [7] + [3] * length + [7, 7]
    units = deduplicate(np.array(frames), 25.0)
    runs = reference.run_lengths(frames)
    assert list(zip(units.ids.tolist(), units.known_durations.tolist(), strict=True)) == runs
    assert units.expand().tolist() == frames


@given(FRAMES, st.integers(0, 70))
def test_splitting_cuts_the_frames_in_two(frames: list[int], at: int) -> None:
    before, after = deduplicate(np.array(frames, int), 25.0).split(at)
    assert before.expand().tolist() == frames[:at]
    assert after.expand().tolist() == frames[at:]
    assert_same_units(before, deduplicate(np.array(frames[:at], int), 25.0))


def test_units_that_a_model_wrote_have_no_durations_to_expand() -> None:
    units = Units(np.array([1, 2], np.uint16), None, 25.0)
    for ask in (units.expand, lambda: units.num_frames, lambda: units.split(1)):
        with pytest.raises(InputError, match="no durations"):
            ask()


@given(st.integers(2, 300), st.data())
def test_tokens_are_units_after_padding_and_boundary(num_units: int, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, num_units - 1), max_size=20))
    vocabulary = Vocabulary(num_units)
    assert vocabulary.size == num_units + 2
    tokens = vocabulary.tokens(np.array(ids, np.uint16))
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == [unit + 2 for unit in ids]
    document = vocabulary.document(np.array(ids, np.uint16))
    assert document.dtype == np.uint16
    assert document.tolist() == [1, *(unit + 2 for unit in ids), 1]
    padded = np.concatenate((document, np.zeros(3, np.uint16)))
    assert vocabulary.ids(padded).tolist() == ids


def test_the_largest_vocabulary_fits_two_bytes() -> None:
    vocabulary = Vocabulary(65_000)
    assert vocabulary.tokens(np.array([64_999], np.uint16)).tolist() == [65_001]


@pytest.mark.parametrize(("ids", "named"), [([0, 5], "5"), ([0, -1, 3], "-1")])
def test_a_unit_outside_the_vocabulary_is_refused_by_name(ids: list[int], named: str) -> None:
    with pytest.raises(MismatchError, match=f"unit {named} is outside a vocabulary of 5"):
        Vocabulary(5).tokens(np.array(ids))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(FRAMES, max_size=4), max_size=3))
def test_a_folder_of_units_gives_back_what_was_written(shards: list[list[list[int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        units = read_units(write_folder(Path(folder), shards))
    written = [frames for shard in shards for frames in shard]
    assert len(units) == len(written)
    assert units.names == tuple(f"u{number}" for number in range(len(written)))
    for index, frames in enumerate(written):
        assert_same_units(units[index], deduplicate(np.array(frames, int), 25.0))
        assert_same_units(units.by_name()[f"u{index}"], units[index])
    assert units.vocabulary == Vocabulary(5)
    assert (units.tokenizer, units.tokenizer_fingerprint, units.frame_rate) == ("t", "f" * 16, 25.0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_damaged_shard_is_named(share: float, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [[[0, 1, 1]], [[2, 2, 3]]])
    damaged = shard_path(folder, 1)
    content = damaged.read_bytes()
    damaged.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"00001\.safetensors: damaged shard"):
        read_units(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [[[0, 1, 1]], [[2, 2, 3]]])
    shard_path(folder, 0).unlink()
    with pytest.raises(InputError, match=r"00000\.safetensors"):
        read_units(folder)


def test_rows_that_do_not_fit_their_units_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [[[0, 1], [2]], [[3, 4]]])
    shard_path(folder, 0).with_suffix(".jsonl").write_text('{"id": "u0"}\n')
    with pytest.raises(InputError, match=r"00000\.safetensors: damaged shard .*disagree"):
        read_units(folder)


def test_a_folder_without_units_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="slam encode"):
        read_units(tmp_path)


def test_nothing_can_be_read_before_the_folder_is_finished(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [deduplicate(np.array([1]), 25.0)], [{"id": "a"}])
    with pytest.raises(InputError, match="holds no units"):
        read_units(tmp_path)
