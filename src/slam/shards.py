"""Documents of tokens → a token dataset on disk (2 bytes a token, memory-mapped), and its packed batches.

A batch is whole documents end to end: no padding, no token lost, every document once an epoch. Which
documents a step sees is a function of (seed, step) alone, so resuming needs one integer.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.errors import ConfigError, InputError
from slam.run import read_json, replacing, write_json
from slam.units import Ids, Vocabulary

SHARDS_FILE = "shards.json"
TEXT_TOKENIZER = "text-"  # how the name of a tokenizer of text begins
SPLITS = ("train", "validation")
_LEAST_CONTEXT = 3


@dataclass(frozen=True)
class TokenShards:
    """One split of a token dataset."""

    tokens: Ids  # [M], a memory map
    ends: npt.NDArray[np.int64]  # [D], where each document ends
    vocabulary: Vocabulary
    tokenizer: str  # name
    tokenizer_fingerprint: str

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Ids:
        start = int(self.ends[index - 1]) if index else 0
        return self.tokens[start : int(self.ends[index])]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens in each document, `[D]`."""
        return np.diff(self.ends, prepend=0)

    def chunked(self, context: int) -> "TokenShards":
        """The same tokens in documents of at most `context` tokens; remainders are kept (the paper's way).

        A last piece of a single token predicts nothing and is given to the piece before it, which is cut
        one token earlier.

        Raises:
            ConfigError: a context of fewer than 3 tokens leaves no room for that.
        """
        if context < _LEAST_CONTEXT:
            raise ConfigError(f"context = {context}: must be at least {_LEAST_CONTEXT} tokens")
        starts = np.concatenate((np.zeros(1, np.int64), self.ends[:-1]))
        lengths = self.ends - starts
        pieces = np.maximum(1, -(-lengths // context))
        owner = np.repeat(np.arange(len(self.ends)), pieces)
        rank = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        cuts = np.minimum(starts[owner] + (rank + 1) * context, self.ends[owner])
        lone = np.flatnonzero(np.diff(cuts, prepend=0) == 1)
        cuts[lone[lengths[owner[lone]] > 1] - 1] -= 1
        return replace(self, ends=cuts)


@dataclass(frozen=True)
class Batches:
    """An endless, seeded order of documents, cut into batches.

    Each epoch is a permutation of all documents; a batch takes documents in that order until the next
    would exceed `size`, and the last batch of an epoch takes what is left.
    """

    lengths: npt.NDArray[np.int64]  # [D] what each document costs
    size: int  # the most that a batch may cost; one document may cost more
    seed: int

    def __post_init__(self) -> None:
        if not len(self.lengths):
            raise InputError("there are no documents to train on")

    @property
    def num_batches(self) -> int:
        """How many batches the first epoch has."""
        return len(self._cuts(0))

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        return self.starting_at(0)

    def starting_at(self, step: int) -> Iterator[npt.NDArray[np.int64]]:
        """The document numbers of batch `step`, of the next one, and so on without end."""
        epoch = 0
        while step >= len(cuts := self._cuts(epoch)):
            step -= len(cuts)
            epoch += 1
        while True:
            order = self._order(epoch)
            start = cuts[step - 1] if step else 0
            yield order[start : cuts[step]]
            step += 1
            if step == len(cuts):
                step, epoch = 0, epoch + 1
                cuts = self._cuts(epoch)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        return _permutation(self.seed, epoch, len(self.lengths))

    def _cuts(self, epoch: int) -> list[int]:
        """Where each batch of the epoch ends."""
        return [part.stop for part in split(self.lengths[self._order(epoch)], self.size)]


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.setflags(write=False)
    return order


def split(lengths: npt.NDArray[np.int64], size: int) -> Iterator[slice]:
    """Cut a row of documents into runs that cost at most `size`; one document may cost more."""
    totals = np.cumsum(lengths)
    start, spent = 0, 0
    while start < len(totals):
        end = max(start + 1, int(np.searchsorted(totals, spent + size, side="right")))
        yield slice(start, end)
        start, spent = end, int(totals[end - 1])


def share_out(
    costs: npt.NDArray[np.int64], most: int, *, most_items: int | None = None, multiple: int = 1
) -> list[npt.NDArray[np.int64]]:
    """Divide a batch's documents into micro-batches of nearly the same cost, the longest dealt out first.

    Args:
        costs: of each document, `[D]`.
        most: that a micro-batch should cost; a single document may cost more.
        most_items: documents in a micro-batch at most.
        multiple: the number of micro-batches is a multiple of this, some of them empty if need be.

    Returns:
        The numbers of the documents in each micro-batch, longest first.
    """
    order = np.argsort(-costs, kind="stable")
    enough = -(-len(costs) // multiple)  # one document each
    num_bins = multiple * max(1, min(enough, -(-int(costs.sum()) // (most * multiple))))
    if most_items is not None:
        num_bins = max(num_bins, multiple * -(-enough // most_items))
    while True:
        bins: list[list[int]] = [[] for _ in range(num_bins)]
        loads = [(0, number) for number in range(num_bins)]
        for item in order:
            load, number = heapq.heappop(loads)
            bins[number].append(int(item))
            heapq.heappush(loads, (load + int(costs[item]), number))
        fits = all(
            len(items) <= 1 or (int(costs[items].sum()) <= most and len(items) <= (most_items or len(items)))
            for items in bins
        )
        if fits:
            return [np.array(items, np.int64) for items in bins]
        num_bins += multiple * max(1, num_bins // (16 * multiple))


def write_split(folder: Path, split: str, tokens: Ids, ends: npt.NDArray[np.int64]) -> None:
    """Write one split's two arrays, each whole or not at all."""
    for name, array in (("tokens", tokens), ("ends", ends)):
        with replacing(folder / split / f"{name}.npy") as partial, partial.open("wb") as handle:
            np.save(handle, array, allow_pickle=False)


def describe(
    folder: Path,
    *,
    vocabulary: Vocabulary,
    tokenizer: str,
    fingerprint: str,
    counts: dict[str, dict[str, int]],
) -> None:
    """Write `shards.json`: what the tokens mean and how many there are."""
    write_json(
        folder / SHARDS_FILE,
        {
            "num_units": vocabulary.num_units,
            "pad": vocabulary.pad,
            "bos": vocabulary.bos,
            "eos": vocabulary.eos,
            "tokenizer": tokenizer,
            "tokenizer_fingerprint": fingerprint,
            "splits": counts,
        },
    )


def open_shards(folder: Path, split: str) -> TokenShards:
    """Map one split of a token dataset into memory.

    Raises:
        InputError: the folder holds no token shards, the split is empty, or the files disagree.
    """
    if not (folder / SHARDS_FILE).is_file():
        raise InputError(f"{folder}: holds no token shards; give a folder that `slam pack` wrote")
    about = read_json(folder / SHARDS_FILE)
    try:
        tokens = np.load(folder / split / "tokens.npy", mmap_mode="r", allow_pickle=False)
        ends = np.load(folder / split / "ends.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{folder / split}: damaged token shards ({error}); pack again") from None
    if not len(ends) or not len(tokens):
        raise InputError(f"{folder / split}: holds no documents")
    rising = ends[0] > 0 and bool((ends[1:] > ends[:-1]).all())
    if ends[-1] != len(tokens) or tokens.dtype != np.uint16 or not rising:
        raise InputError(f"{folder / split}: tokens and document ends disagree; pack again")
    return TokenShards(
        tokens=tokens,
        ends=ends,
        vocabulary=Vocabulary(about["num_units"], about["pad"], about["bos"], about["eos"]),
        tokenizer=about["tokenizer"],
        tokenizer_fingerprint=about["tokenizer_fingerprint"],
    )


def frame_documents(
    ids: npt.NDArray[Any], ends: npt.NDArray[np.int64], vocabulary: Vocabulary
) -> tuple[Ids, npt.NDArray[np.int64]]:
    """Utterances end to end → documents end to end, each `<S>`, its units, `<S>`; empty ones are left out.

    Args:
        ids: unit ids of all utterances, `[N]`.
        ends: where each utterance ends, `[D]`.
        vocabulary: gives each unit its token.

    Returns:
        `(tokens [N + 2 D], ends [D])`, D without the empty utterances.

    Raises:
        MismatchError: a unit is outside the vocabulary.
    """
    ends = ends[np.diff(ends, prepend=0) > 0]
    framed_ends = ends + 2 * np.arange(1, len(ends) + 1)
    tokens = np.empty(len(ids) + 2 * len(ends), np.uint16)
    is_unit = np.ones(len(tokens), np.bool_)
    starts = np.concatenate((np.zeros(1, np.int64), framed_ends))[: len(ends)]
    for positions, token in ((starts, vocabulary.bos), (framed_ends - 1, vocabulary.eos)):
        tokens[positions] = token
        is_unit[positions] = False
    tokens[is_unit] = vocabulary.tokens(ids)
    return tokens, framed_ends
