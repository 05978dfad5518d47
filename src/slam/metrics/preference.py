"""Scores of both sides of pairs → accuracies, differences between models, and how sure they are.

A pair counts 1 if its better side scores higher, one half on a tie, 0 otherwise (Slam's reference code,
sLM21). Pairs that share a word or a story are no independent evidence, so bootstraps draw them together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_RESAMPLES = 2000
_PERMUTATIONS = 9999
_AT_ONCE = 100  # resamples in memory
_CONFIDENCE = 0.95

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval over `n` items."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another on the same `n` pairs, and how sure that is."""

    value: float
    low: float
    high: float
    p: float  # how often chance alone would differ as much, either way
    n: int


def preferences(chosen: Numbers, rejected: Numbers) -> Numbers:
    """1 where the better side scores higher, 0.5 on a tie, 0 otherwise, `[B]`."""
    return np.where(chosen > rejected, 1.0, np.where(chosen == rejected, 0.5, 0.0))


def bootstrap_mean(values: Numbers, clusters: Sequence[str] | None = None, *, seed: int = 0) -> Estimate:
    """The mean of `values` `[n]` with its 95 % percentile bootstrap interval (scipy).

    Args:
        values: one a pair, between 0 and 1.
        clusters: `[n]`, pairs of one cluster are drawn together; None draws each by itself.
        seed: decides the resamples.

    Returns:
        The estimate. Where all values are 1, or all 0, a bootstrap would be sure of itself; the interval is
        then Wilson's over clusters. A single cluster that is not says nothing: its interval is all of 0 to 1.
    """
    sums, counts = _by_cluster(values, clusters)
    return _estimate(values, sums, _resampled_means(sums, counts, seed))


def macro_mean(
    values: Numbers, kinds: Sequence[str], clusters: Sequence[str] | None = None, *, seed: int = 0
) -> Estimate:
    """The mean over `kinds` of each kind's mean, pairs of a kind resampled within it.

    Args:
        values: `[n]`, one a pair.
        kinds: `[n]`, the kind of each.
        clusters: `[n]`, as in `bootstrap_mean`.
        seed: decides the resamples.
    """
    means, distributions = [], []
    for number, members in enumerate(groups(kinds).values()):
        inside = None if clusters is None else [clusters[index] for index in members]
        sums, counts = _by_cluster(values[members], inside)
        means.append(float(values[members].mean()))
        distributions.append(_resampled_means(sums, counts, seed + number))
    low, high = np.quantile(np.mean(distributions, axis=0), _tails())
    return Estimate(float(np.mean(means)), float(low), float(high), len(values))


def item_values(values: Numbers, items: Sequence[str]) -> tuple[Numbers, list[int]]:
    """The mean over the voices of each item, `[I]`, and the number of each item's first pair."""
    found = groups(items)
    return np.array([values[members].mean() for members in found.values()]), [
        members[0] for members in found.values()
    ]


def paired_difference(
    one: Numbers, other: Numbers, clusters: Sequence[str] | None = None, *, seed: int = 0
) -> Difference:
    """How much more often `one` is right than `other` on the same pairs.

    The interval is a percentile bootstrap's over clusters; the p-value a permutation test's, in which each
    cluster's difference may as well have had the other sign (two-sided, 9,999 draws, scipy).

    Args:
        one: `[n]`, a value a pair.
        other: `[n]`, another model's on the same pairs.
        clusters: `[n]`, as in `bootstrap_mean`.
        seed: decides the draws.
    """
    from scipy.stats import permutation_test

    differences = one - other
    sums, counts = _by_cluster(differences, clusters)
    mean = float(differences.mean())
    drawn = _resampled_means(sums, counts, seed)
    low, high = np.quantile(drawn, _tails())
    apart = sums[sums != 0]  # equal ones stay equal whatever their sign
    if len(apart) < 2:  # noqa: PLR2004 - of one, either sign is as far away
        return Difference(mean, float(low), float(high), 1.0, len(one))
    tested = permutation_test(
        (apart,),
        lambda some, axis: np.sum(some, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        batch=_AT_ONCE,
        rng=np.random.default_rng(seed),
    )
    return Difference(mean, float(low), float(high), float(tested.pvalue), len(one))


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` pairs (scipy); half a pair is rounded."""
    from scipy.stats import binomtest

    found = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def groups(keys: Sequence[str]) -> dict[str, list[int]]:
    """Numbers of the items of each key, keys in the order in which they first came."""
    found: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        found.setdefault(key, []).append(number)
    return found


def _tails() -> tuple[float, float]:
    return (1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2


def _by_cluster(values: Numbers, clusters: Sequence[str] | None) -> tuple[Numbers, Numbers]:
    """Sum and size of each cluster, `([K], [K])`."""
    if clusters is None:
        return np.asarray(values, np.float64), np.ones(len(values))
    _, number = np.unique(np.asarray(clusters), return_inverse=True)
    sums: Numbers = np.bincount(number, weights=values).astype(np.float64)
    return sums, np.bincount(number).astype(np.float64)


def _resampled_means(sums: Numbers, counts: Numbers, seed: int) -> Numbers:
    """Means of resampled clusters, `[R]`."""
    from scipy.stats import bootstrap

    if len(sums) == 1:
        return np.full(_RESAMPLES, sums[0] / counts[0])

    def mean(some: Any, sizes: Any, axis: int) -> Any:
        return some.sum(axis=axis) / sizes.sum(axis=axis)

    found = bootstrap(
        (sums, counts),
        mean,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=_AT_ONCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    drawn: Numbers = found.bootstrap_distribution
    return drawn


def _estimate(values: Numbers, sums: Numbers, drawn: Numbers) -> Estimate:
    mean, count = float(np.mean(values)), len(values)
    if np.ptp(values) == 0 and mean in (0, 1):
        return Estimate(mean, *wilson_interval(mean, len(sums)), count)
    if len(sums) == 1 and np.ptp(values):
        return Estimate(mean, 0.0, 1.0, count)
    low, high = np.quantile(drawn, _tails())
    return Estimate(mean, float(low), float(high), count)
