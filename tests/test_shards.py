import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from slam.errors import ConfigError, InputError, MismatchError
from slam.shards import (
    Batches,
    TokenShards,
    describe,
    frame_documents,
    open_shards,
    share_out,
    split,
    write_split,
)
from slam.units import Vocabulary

DOCUMENTS = st.lists(st.lists(st.integers(0, 9), max_size=7), max_size=12)
VOCABULARY = Vocabulary(10)


def shards_of(lengths: list[int]) -> TokenShards:
    ends = np.cumsum(lengths)
    return TokenShards(np.arange(ends[-1], dtype=np.uint16), ends, VOCABULARY, "t", "f")


def written(folder: Path, documents: list[list[int]]) -> Path:
    ids = np.array([unit for document in documents for unit in document], np.uint16)
    ends = np.cumsum([len(document) for document in documents])
    tokens, ends = frame_documents(ids, ends, VOCABULARY)
    write_split(folder, "train", tokens, ends)
    describe(folder, vocabulary=VOCABULARY, tokenizer="t", fingerprint="f", counts={})
    return folder


@given(DOCUMENTS)
def test_framing_equals_framing_one_document_at_a_time(documents: list[list[int]]) -> None:
    ids = np.array([unit for document in documents for unit in document], np.uint16)
    ends = np.cumsum([len(document) for document in documents]).astype(np.int64)
    tokens, framed_ends = frame_documents(ids, ends, VOCABULARY)
    expected_tokens, expected_ends = reference.framed(documents)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == expected_tokens
    assert framed_ends.tolist() == expected_ends


def test_framing_refuses_a_unit_outside_the_vocabulary() -> None:
    with pytest.raises(MismatchError, match="unit 10 "):
        frame_documents(np.array([3, 10]), np.array([2]), VOCABULARY)


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=25)


@given(lengths=LENGTHS, size=st.integers(1, 60), seed=st.integers(0, 5))
def test_every_document_comes_once_an_epoch_in_batches_that_fit(
    lengths: list[int], size: int, seed: int
) -> None:
    batches = iter(Batches(np.array(lengths), size, seed))
    for _ in range(3):
        met: list[int] = []
        epoch: list[list[int]] = []
        while len(met) < len(lengths):
            batch = next(batches).tolist()
            assert batch
            assert len(batch) == 1 or sum(lengths[d] for d in batch) <= size
            epoch.append(batch)
            met += batch
        assert sorted(met) == list(range(len(lengths)))
        assert epoch == list(reference.batches(met, lengths, size))


@given(lengths=LENGTHS, size=st.integers(1, 60), seed=st.integers(0, 5), step=st.integers(0, 70))
def test_starting_at_a_step_equals_passing_over_the_steps_before(
    lengths: list[int], size: int, seed: int, step: int
) -> None:
    batches = Batches(np.array(lengths), size, seed)
    passed = list(itertools.islice(iter(batches), step, step + 4))
    begun = list(itertools.islice(batches.starting_at(step), 4))
    assert [batch.tolist() for batch in begun] == [batch.tolist() for batch in passed]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    lengths = np.ones(40, np.int64)
    orders = [
        np.concatenate(list(itertools.islice(Batches(lengths, 10, seed).starting_at(start), 4))).tolist()
        for seed, start in ((0, 0), (0, 4), (1, 0))
    ]
    assert len({tuple(order) for order in (*orders, range(40))}) == 4


@given(lengths=LENGTHS, size=st.integers(1, 60), seed=st.integers(0, 5))
def test_the_number_of_batches_is_that_of_one_epoch(lengths: list[int], size: int, seed: int) -> None:
    batches = Batches(np.array(lengths), size, seed)
    met, count = 0, 0
    for batch in batches:
        met, count = met + len(batch), count + 1
        if met == len(lengths):
            break
    assert batches.num_batches == count


def test_there_are_no_batches_of_no_documents() -> None:
    with pytest.raises(InputError, match="no documents"):
        Batches(np.zeros(0, np.int64), 10, 0)


@given(lengths=LENGTHS, size=st.integers(1, 60))
def test_splitting_keeps_the_order_and_fills_each_part(lengths: list[int], size: int) -> None:
    parts = [list(range(part.start, part.stop)) for part in split(np.array(lengths), size)]
    assert parts == list(reference.batches(range(len(lengths)), lengths, size))


SHARING = {
    "costs": st.lists(st.integers(1, 50), min_size=1, max_size=40),
    "most": st.integers(1, 120),
    "most_items": st.none() | st.integers(1, 6),
    "multiple": st.integers(1, 5),
}


@settings(max_examples=300)
@given(**SHARING)
def test_documents_are_shared_out_evenly_within_the_limits(
    costs: list[int], most: int, most_items: int | None, multiple: int
) -> None:
    bins = share_out(np.array(costs), most, most_items=most_items, multiple=multiple)
    assert sorted(int(item) for items in bins for item in items) == list(range(len(costs)))
    assert len(bins) % multiple == 0
    loads = [sum(costs[item] for item in items) for items in bins]
    for items, load in zip(bins, loads, strict=True):
        assert len(items) <= 1 or load <= most
        assert most_items is None or len(items) <= most_items
        assert [costs[item] for item in items] == sorted((costs[item] for item in items), reverse=True)
        if len(items):  # its smallest was put where most room was
            assert load - costs[items[-1]] <= min(loads)
    assert max(loads) - min(loads) <= max(costs)
    again = share_out(np.array(costs), most, most_items=most_items, multiple=multiple)
    assert [items.tolist() for items in again] == [items.tolist() for items in bins]


@given(
    costs=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    room=st.integers(1, 70),
    multiple=st.integers(1, 5),
)
def test_documents_are_shared_out_into_hardly_more_parts_than_they_need(
    costs: list[int], room: int, multiple: int
) -> None:
    bins = share_out(np.array(costs), max(costs) + room, multiple=multiple)
    # where one more document does not fit into the emptiest part, every part is full but for a document
    assert len(bins) < sum(costs) / room + multiple


def test_documents_that_fit_into_one_part_are_one_and_idle_processes_get_an_empty_one() -> None:
    assert [items.tolist() for items in share_out(np.array([3, 5, 4]), 12)] == [[1, 2, 0]]
    assert sorted(len(items) for items in share_out(np.array([3]), 12, multiple=4)) == [0, 0, 0, 1]


@settings(max_examples=200)
@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=10), context=st.integers(3, 12))
def test_chunks_hold_every_token_once_within_the_context(lengths: list[int], context: int) -> None:
    whole = shards_of(lengths)
    chunked = whole.chunked(context)
    pieces = [chunked[index].tolist() for index in range(len(chunked))]
    assert [token for piece in pieces for token in piece] == whole.tokens.tolist()
    assert all(2 <= len(piece) <= context for piece in pieces)
    assert set(whole.ends.tolist()) <= set(chunked.ends.tolist())  # no piece spans two documents
    assert len(pieces) == sum(-(-length // context) for length in lengths)
    assert chunked.lengths.tolist() == [len(piece) for piece in pieces]


def test_chunks_of_too_small_a_context_are_refused() -> None:
    with pytest.raises(ConfigError, match="context = 2"):
        shards_of([5]).chunked(2)


def test_shards_are_mapped_and_their_documents_are_as_written(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [], [4], [5, 6]]
    shards = open_shards(written(tmp_path, documents), "train")
    assert isinstance(shards.tokens, np.memmap)
    assert not shards.tokens.flags.writeable
    assert (tmp_path / "train" / "tokens.npy").stat().st_size < 200 + 2 * len(shards.tokens)
    assert [shards[index].tolist() for index in range(len(shards))] == [
        [1, 3, 4, 5, 1],
        [1, 6, 1],
        [1, 7, 8, 1],
    ]
    assert shards.lengths.tolist() == [5, 3, 4]
    assert shards.vocabulary == VOCABULARY
    assert (shards.tokenizer, shards.tokenizer_fingerprint) == ("t", "f")


OPENING = """
import resource, sys
from pathlib import Path
from slam.shards import open_shards

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shards = open_shards(Path(sys.argv[1]), "train")
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # in KiB
print(len(shards.tokens), len(shards), len(shards[len(shards) - 1]), grown)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="files without blocks and units of memory are those of Linux"
)
def test_a_billion_tokens_are_opened_without_being_read(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    # 2 GB of zeros that take no room on the disk
    tokens = np.lib.format.open_memmap(
        tmp_path / "train" / "tokens.npy", mode="w+", dtype=np.uint16, shape=(10**9,)
    )
    del tokens
    np.save(tmp_path / "train" / "ends.npy", np.arange(1, 1_600_001, dtype=np.int64) * 625)
    describe(tmp_path, vocabulary=VOCABULARY, tokenizer="t", fingerprint="f", counts={})
    # in a process of its own: this one's peak of memory may lie high already
    told = subprocess.run(
        [sys.executable, "-c", OPENING, tmp_path], check=True, capture_output=True, text=True
    ).stdout
    num_tokens, num_documents, last, grown = map(int, told.split())
    assert (num_tokens, num_documents, last) == (10**9, 1_600_000, 625)
    assert grown < 100 * 1024


@pytest.mark.parametrize("name", ["tokens.npy", "ends.npy"])
@pytest.mark.parametrize("keep", [0, 60, -2])
def test_damaged_files_are_refused(name: str, keep: int, tmp_path: Path) -> None:
    path = written(tmp_path, [[1, 2, 3], [4]]) / "train" / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"train: .*pack again"):
        open_shards(tmp_path, "train")


@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        (np.arange(6, dtype=np.uint16), [2, 5]),
        (np.arange(6, dtype=np.uint16), [4, 4, 6]),
        (np.arange(6, dtype=np.uint16), [5, 2, 6]),
        (np.arange(6, dtype=np.int64), [2, 6]),
    ],
    ids=["short", "empty document", "backwards", "wide"],
)
def test_tokens_and_ends_that_disagree_are_refused(
    tokens: np.ndarray, ends: list[int], tmp_path: Path
) -> None:
    write_split(written(tmp_path, [[1]]), "train", tokens, np.array(ends))
    with pytest.raises(InputError, match="disagree; pack again"):
        open_shards(tmp_path, "train")


def test_a_folder_without_shards_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="slam pack"):
        open_shards(tmp_path, "train")
    with pytest.raises(InputError, match="validation: damaged"):
        open_shards(written(tmp_path, [[1]]), "validation")


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    folder = written(tmp_path, [[1]])
    np.save(folder / "train" / "ends.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(InputError, match="damaged token shards"):
        open_shards(folder, "train")
