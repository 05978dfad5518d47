"""Pairs whose sides were spoken → the rows of `pairs.jsonl`, without those that would teach something else.

A pair with a side that could not be spoken is left out. And where better sides are longer more often than
worse ones, a model learns to prefer what is long; so pairs are left out until either is as frequent. What
several voices ask is left out in all of them, or in none.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from slam.errors import InputError
from slam.pair_filters import balance
from slam.pairs import PairRow

_HUNDREDTHS = 100  # of a second, in which lengths are compared


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
    kept = _balanced(whole, spoken, balanced, seed)
    counts = {"num_pairs": len(kept)}
    if len(whole) < len(planned):
        counts["num_pairs_unspoken"] = len(planned) - len(whole)
    if balanced:
        counts["num_pairs_dropped_for_length"] = len(whole) - len(kept)
    if planned and not kept:
        raise InputError(
            f"no pair is left of {len(planned)}: {len(planned) - len(whole)} could not be spoken, "
            f"{len(whole) - len(kept)} were dropped for their length; see balance_lengths"
        )
    return kept, counts


def _balanced(
    pairs: Sequence[PairRow], spoken: Mapping[str, Spoken], balanced: frozenset[str], seed: int
) -> list[PairRow]:
    """`pairs` without those that are left out for their length; benchmarks are balanced apart."""
    asked: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))  # by benchmark and item
    for pair in pairs:
        if pair.id in balanced:
            more = _seconds(spoken[pair.chosen]) - _seconds(spoken[pair.rejected])
            asked[pair.benchmark][pair.item or pair.id].append(more)
    stay = {
        (benchmark, item)
        for benchmark, items in asked.items()
        for item in balance(
            list(items), np.array([round(_HUNDREDTHS * np.mean(more)) for more in items.values()]), seed
        )
    }
    return [
        pair for pair in pairs if pair.id not in balanced or (pair.benchmark, pair.item or pair.id) in stay
    ]


def _seconds(spoken: Spoken) -> float:
    return spoken.end - spoken.start
