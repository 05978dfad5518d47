"""What generated speech says, and its units → how probable, varied, repetitive, fast and speech-like it is.

Measures are functions of one sample or of all; `mean`, `exp_mean` and `ratio` give 95 % intervals over
samples.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.metrics.preference import Estimate

_RESAMPLES = 2000
_AT_ONCE = 100  # resamples in memory

Numbers = npt.NDArray[np.float64]
Grams = Counter[tuple[Hashable, ...]]


def ngrams(tokens: "Sequence[Hashable] | npt.NDArray[Any]", order: int) -> Grams:
    """How often each n-gram of `tokens` `[N]` stands in them."""
    content = tokens.tolist() if isinstance(tokens, np.ndarray) else tokens
    return Counter(zip(*(content[start:] for start in range(order)), strict=False))


def pooled(samples: "Iterable[Sequence[Hashable] | npt.NDArray[Any]]", order: int) -> Grams:
    """How often each n-gram stands in all of `samples`; none spans two of them."""
    total: Grams = Counter()
    for tokens in samples:
        total.update(ngrams(tokens, order))
    return total


def distinct(grams: Grams) -> float | None:
    """Distinct-n (Li et al., 2016): different n-grams over all; None where there are none."""
    return len(grams) / grams.total() if grams else None


def jensen_shannon(one: Grams, other: Grams) -> float | None:
    """The Jensen-Shannon divergence of two distributions in bits, 0 to 1; None where one is empty."""
    from scipy.spatial.distance import jensenshannon

    if not one or not other:
        return None
    grams = list(one | other)
    counts = [np.array([some[gram] for gram in grams], np.float64) for some in (one, other)]
    # of equal distributions rounding may leave a little below nothing, and scipy then its root: no number
    distance = float(jensenshannon(*counts, base=2))
    return distance**2 if distance == distance else 0.0  # noqa: PLR0124 - nan is not itself


def mean(values: Numbers, *, seed: int = 0) -> Estimate:
    """The mean of `values` `[n]`, one a sample, with its percentile bootstrap interval."""
    return ratio(values, np.ones(len(values)), seed=seed)


def exp_mean(values: Numbers, *, seed: int = 0) -> Estimate:
    """The exponential of the mean of `values` `[n]`: of negative log-likelihoods, a perplexity."""
    found = mean(values, seed=seed)
    # the exponential is monotone: the quantiles of exp(mean) are those of the mean, under exp
    value, low, high = np.exp([found.value, found.low, found.high]).tolist()
    return Estimate(value, low, high, found.n)


def ratio(above: Numbers, below: Numbers, *, seed: int = 0) -> Estimate:
    """The sum of `above` `[n]` over that of `below` `[n]`, samples resampled with both of their numbers."""
    from scipy.stats import bootstrap

    def statistic(some: Any, others: Any, axis: int) -> Any:
        return some.sum(axis=axis) / others.sum(axis=axis)

    value = float(above.sum() / below.sum())
    if len(above) == 1:  # says nothing of its spread
        return Estimate(value, value, value, 1)
    found = bootstrap(
        (above, below),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=_AT_ONCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    return Estimate(value, float(low), float(high), len(above))


def each(measure: "Callable[[Any], float | None]", samples: Iterable[Any]) -> Numbers:
    """`measure` of each sample for which it is defined, `[n]`."""
    return np.array([value for one in samples if (value := measure(one)) is not None], np.float64)
