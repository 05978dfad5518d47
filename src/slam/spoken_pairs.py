"""Pairs whose sides were spoken → the rows of `pairs.jsonl`, without those that would teach something else.

A pair with a side that could not be spoken is left out. And where better sides are longer more often than
worse ones, a model learns to prefer what is long; so pairs are left out until either is as frequent.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slam.errors import InputError
from slam.pairs import PairRow

_TIE_SECONDS = 0.001


@dataclass(frozen=True)
class Spoken:
    """When an utterance's side begins and ends, in seconds."""

    start: float
    end: float


def spoken_pairs(
    planned: Sequence[PairRow], spoken: Mapping[str, Spoken], balanced: frozenset[str], seed: int
) -> tuple[list[PairRow], dict[str, Any]]:
    """The pairs to write, with the times of their sides, and how many were left out.

    Args:
        planned: the pairs, without times.
        spoken: utterance id → when its side was spoken; those that could not be spoken are missing.
        balanced: ids of the pairs whose lengths are to be balanced.
        seed: decides which are left out.

    Raises:
        InputError: there were pairs, and none is left.
    """
    whole = [
        replace(
            pair,
            chosen_start=spoken[pair.chosen].start,
            rejected_start=spoken[pair.rejected].start,
        )
        for pair in planned
        if pair.chosen in spoken and pair.rejected in spoken
    ]
    dropped = set(_majority([pair for pair in whole if pair.id in balanced], spoken, seed))
    kept = [pair for pair in whole if pair.id not in dropped]
    counts = {"num_pairs": len(kept)}
    if len(whole) < len(planned):
        counts["num_pairs_unspoken"] = len(planned) - len(whole)
    if balanced:
        counts["num_pairs_dropped_for_length"] = len(dropped)
    if planned and not kept:
        raise InputError(
            f"no pair is left of {len(planned)}: {len(planned) - len(whole)} could not be spoken, "
            f"{len(dropped)} were dropped for their length; see balance_lengths"
        )
    return kept, counts


def _majority(pairs: Sequence[PairRow], spoken: Mapping[str, Spoken], seed: int) -> Iterator[str]:
    """Ids to drop, so that in each benchmark as many better sides are longer as are shorter."""
    for benchmark in dict.fromkeys(pair.benchmark for pair in pairs):
        longer: list[str] = []
        shorter: list[str] = []
        for pair in pairs:
            more = _seconds(spoken[pair.chosen]) - _seconds(spoken[pair.rejected])
            if pair.benchmark == benchmark and abs(more) > _TIE_SECONDS:
                (longer if more > 0 else shorter).append(pair.id)
        more_often, excess = max(longer, shorter, key=len), abs(len(longer) - len(shorter))
        yield from random.Random(f"{seed}-length-{benchmark}").sample(more_often, excess)  # noqa: S311


def _seconds(spoken: Spoken) -> float:
    return spoken.end - spoken.start
