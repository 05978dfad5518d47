"""Log-likelihoods of both sides of pairs → accuracy with a bootstrap interval.

The field's protocol (Slam's reference code, sLM21): a pair counts 1 if its better side has the higher
log-likelihood a token, one half on a tie, 0 otherwise.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval over `n` items."""

    value: float
    low: float
    high: float
    n: int


def preferences(
    chosen: npt.NDArray[np.float64], rejected: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """1 where the better side scores higher, 0.5 on a tie, 0 otherwise, `[B]`."""
    return np.where(chosen > rejected, 1.0, np.where(chosen == rejected, 0.5, 0.0))


def bootstrap_mean(values: npt.NDArray[np.float64], *, seed: int = 0) -> Estimate:
    """The mean of `values` `[n]` with its 95 % percentile bootstrap interval (scipy).

    Args:
        values: one a pair.
        seed: decides the resamples.

    Returns:
        The estimate; where all values are equal the interval is the point itself.
    """
    from scipy.stats import bootstrap

    mean = float(np.mean(values))
    if np.ptp(values) == 0:
        return Estimate(mean, mean, mean, len(values))
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(found.low), float(found.high), len(values))
