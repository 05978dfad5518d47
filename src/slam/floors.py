"""A benchmark's units → how far one gets without a model: by length alone, and by how frequent units are.

A set whose better sides are shorter, or made of more frequent units, can be won without knowing the language;
these accuracies are the floor that a speech LM must beat.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.metrics.preference import Estimate, bootstrap_mean, preferences
from slam.protocols import Utterances
from slam.units import Ids


def length_floor(pairs: Sequence[Utterances], clusters: Sequence[str], seed: int) -> dict[str, Any]:
    """The accuracy of always taking the side with fewer units, or of always taking the other.

    Of the two the better one: the data say which, so its expectation lies a little above one half.
    """
    chosen, rejected = (
        np.array([len(getattr(pair, side)) for pair in pairs], np.float64) for side in ("chosen", "rejected")
    )
    values = preferences(-chosen, -rejected)
    direction = "shorter" if values.mean() >= 0.5 else "longer"  # noqa: PLR2004 - chance
    values = values if direction == "shorter" else 1 - values
    return _row("length", bootstrap_mean(values, clusters, seed=seed)) | {"direction": direction}


def unigram_floor(
    pairs: Sequence[Utterances], clusters: Sequence[str], counts: npt.NDArray[np.int64], seed: int
) -> dict[str, Any]:
    """The accuracy of the mean log-probability of a side's units, each by its frequency alone.

    Args:
        pairs: `[B]`.
        clusters: `[B]`, pairs of one cluster are resampled together.
        counts: of each unit, `[V]`, those beyond are 0; one is added to each.
        seed: decides the resamples.
    """
    size = 1 + max(int(side.ids.max()) for pair in pairs for side in (pair.chosen, pair.rejected))
    counts = np.pad(counts, (0, max(0, size - len(counts)))) + 1
    probabilities = np.log(counts / counts.sum())

    def score(ids: Ids) -> float:
        # in a fixed order: equal multisets of units tie exactly
        return float(np.sort(probabilities[ids]).mean())

    chosen, rejected = (
        np.array([score(getattr(pair, side).ids) for pair in pairs]) for side in ("chosen", "rejected")
    )
    return _row("unigram", bootstrap_mean(preferences(chosen, rejected), clusters, seed=seed))


def unit_counts(utterances: Sequence[Ids]) -> npt.NDArray[np.int64]:
    """How often each unit stands in `utterances`, `[V]`, up to the highest that does."""
    return np.bincount(np.concatenate(utterances))


def _row(floor: str, estimate: Estimate) -> dict[str, Any]:
    return {
        "floor": floor,
        "metric": "accuracy",
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
    }
