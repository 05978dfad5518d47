"""Sizes, tokens and the losses they gave → a scaling law, its intervals, and what a setting is worth.

L(N, D) = E + A / N^alpha + B / D^beta, N parameters and D tokens (Hoffmann et al., 2022); where tokens are
repeated, N and D count by what they still teach (Muennighoff et al., 2023). Losses are nats a token. No torch
here: budgets are planned by the published laws before anything is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.errors import InputError

Array = npt.NDArray[np.float64]

FLOPS_A_PARAMETER_AND_TOKEN = 6.0  # C = 6ND: forward and backward pass of a matrix product
_HUBER_DELTA = 1e-3  # Hoffmann et al., appendix D.2, of the logarithm of the loss
_POLISHED = 12  # starting points that are followed to their end, the best of all that are looked at
_LEAST_POINTS = 8  # six coefficients and something left over to judge them by
_STEEPEST = 3.0  # bound of both exponents: without it a grid that says nothing sends them to infinity


@dataclass(frozen=True)
class Optimum:
    """The best use of a compute."""

    parameters: float
    tokens: float
    loss: float  # nats a token


@dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta."""

    E: float  # loss of an endless model on endless data, nats a token
    A: float
    B: float
    alpha: float
    beta: float
    R_N: float | None = None  # decay of what excess parameters add, in multiples of the useful ones
    R_D: float | None = None  # decay of what repeated tokens teach, in epochs after the first
    source: str = ""

    def loss(self, parameters: Any, tokens: Any, *, unique_tokens: Any = None) -> Any:
        """Predicted loss in nats a token; numbers or arrays.

        Args:
            parameters: N.
            tokens: D, all that are trained on, repeats too.
            unique_tokens: how many of them differ; with it, D (and N, where the law has R_N) shrink to
                their effective size (Muennighoff et al., 2023, equations 5 and 6).

        Raises:
            InputError: `unique_tokens` is given and the law knows nothing of repeats.
        """
        size, seen = np.asarray(parameters, float), np.asarray(tokens, float)
        if unique_tokens is not None:
            if self.R_D is None:
                raise InputError("this law has no R_D: fit one on points that repeat their tokens")
            unique = np.minimum(np.asarray(unique_tokens, float), seen)
            if self.R_N is not None:
                useful = np.minimum(size, self._parameters_for(unique))
                size = _effective(size, useful, self.R_N)
            seen = _effective(seen, unique, self.R_D)
        found = self.E + self.A / size**self.alpha + self.B / seen**self.beta
        return float(found) if found.ndim == 0 else found

    @cached_property
    def G(self) -> float:  # noqa: N802 - its name in the literature
        """(alpha A / beta B)^(1 / (alpha + beta)), which divides compute between N and D."""
        return float((self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta)))

    def optimal(self, compute: float, *, unique_tokens: float | None = None) -> Optimum:
        """N and D of least loss for `compute` = 6ND FLOP.

        N = G (C/6)^a and D = (C/6)^b / G with a = beta / (alpha + beta), b = 1 - a (Hoffmann et al.,
        equation 4); where tokens are repeated there is no closed form and the best is searched for.
        """
        size_tokens = compute / FLOPS_A_PARAMETER_AND_TOKEN
        size = self.G * size_tokens ** (self.beta / (self.alpha + self.beta))
        if unique_tokens is not None and size_tokens / size > unique_tokens:
            from scipy.optimize import minimize_scalar

            found = minimize_scalar(
                lambda log: self.loss(np.exp(log), size_tokens / np.exp(log), unique_tokens=unique_tokens),
                bounds=(np.log(size) - 1.0, np.log(size_tokens / unique_tokens) + 1.0),
                method="bounded",
            )
            size = float(np.exp(found.x))
        return Optimum(
            size, size_tokens / size, self.loss(size, size_tokens / size, unique_tokens=unique_tokens)
        )

    def compute_to(self, loss: float) -> float:
        """FLOP with which the best allocation reaches `loss`; infinite at and below E."""
        if loss <= self.E:
            return float("inf")
        a = self.beta / (self.alpha + self.beta)
        # along the optimum both terms fall as (C/6)^-(alpha a), for alpha a = beta b
        scale = self.A / self.G**self.alpha + self.B * self.G**self.beta
        return FLOPS_A_PARAMETER_AND_TOKEN * float((scale / (loss - self.E)) ** (1 / (self.alpha * a)))

    def multiplier(self, parameters: float, tokens: float, loss: float) -> float:
        """How many times the compute this law needs for a `loss` measured at N and D, not its own there.

        Both computes are of the best allocation, so that a point off the optimum is not rewarded or punished
        for its shape: a point on the law gives 1.
        """
        return self.compute_to(loss) / self.compute_to(self.loss(parameters, tokens))

    def _parameters_for(self, tokens: Array) -> Array:
        """The N for which `tokens` are the optimal D."""
        return np.asarray(self.G * (tokens * self.G) ** (self.beta / self.alpha))


# Cuervo and Marxer, "Scaling properties of speech language models" (2024, arXiv 2404.00685); mHuBERT 25 Hz,
# 500 units. Muennighoff et al., "Scaling data-constrained language models" (2023) for text.
PUBLISHED: Mapping[str, ScalingLaw] = {
    "speech": ScalingLaw(
        E=1.73, A=13.9, B=39.8, alpha=0.25, beta=0.24, R_N=31.0, R_D=25.0, source="Cuervo and Marxer, 2024"
    ),
    "speech-unigram": ScalingLaw(
        E=1.42,
        A=3.85,
        B=8.90,
        alpha=0.15,
        beta=0.16,
        source="Cuervo and Marxer, 2024, unigram-tokenised units",
    ),
    "text": ScalingLaw(
        E=1.87,
        A=521.0,
        B=1488.0,
        alpha=0.35,
        beta=0.35,
        R_N=5.31,
        R_D=15.4,
        source="Muennighoff et al., 2023",
    ),
}


@dataclass(frozen=True)
class Points:
    """Measured losses: arrays of one length."""

    parameters: Array  # [P] N
    tokens: Array  # [P] D
    losses: Array  # [P] nats a token
    unique_tokens: Array | None = None  # [P] how many of D differ, where some are repeated

    def __post_init__(self) -> None:
        columns = [getattr(self, item.name) for item in fields(self)]
        for column in columns:
            if column is not None and (column.shape != self.losses.shape or not np.all(column > 0)):
                raise InputError("a scaling law's points need a size, tokens and a loss each, all above 0")

    def check(self) -> None:
        """Refuse points that cannot tell five coefficients apart.

        Raises:
            InputError: there are too few, or all of one size or one number of tokens.
        """
        if len(self.losses) < _LEAST_POINTS:
            raise InputError(f"a scaling law needs at least {_LEAST_POINTS} points, got {len(self.losses)}")
        for name in ("parameters", "tokens"):
            if len(set(getattr(self, name).tolist())) < 3:  # noqa: PLR2004 - a slope and a floor
                raise InputError(f"a scaling law needs at least 3 different numbers of {name}")


@dataclass(frozen=True)
class Fit:
    """A law and the spread of the laws that other noise might have given."""

    law: ScalingLaw
    resampled: tuple[ScalingLaw, ...]
    residual: float  # root mean square of log L's residuals

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Percentile bootstrap interval of a coefficient (`E`, `A`, `B`, `alpha`, `beta`, `R_D`, `G`)."""
        return percentiles([getattr(law, name) for law in self.resampled], level)

    def multiplier(self, points: Points, level: float = 0.95) -> tuple[float, float, float]:
        """Geometric mean of `points`' compute multipliers against this law, and its interval.

        The interval holds the noise of the law and of the points both: with each resampled law goes a
        resample of the points.
        """
        drawn = np.random.default_rng(0)
        count = len(points.losses)
        low, high = percentiles(
            [_mean_multiplier(law, points, drawn.integers(count, size=count)) for law in self.resampled],
            level,
        )
        return _mean_multiplier(self.law, points, np.arange(count)), low, high


def fit_law(points: Points, *, resamples: int = 200, seed: int = 0) -> Fit:
    """Fit the law to `points`, and again to `resamples` sets of losses with its residuals drawn anew.

    Huber loss of log L, the smallest over many starting points (Hoffmann et al., appendix D.2): all are
    looked at, the best dozen followed by L-BFGS-B. With `unique_tokens`, R_D is fitted too. The bootstrap keeps
    the grid and resamples residuals, but for those that the fit made vanish: so close to absolute values, it
    runs through as many points as it has coefficients.

    Raises:
        InputError: the points cannot decide the coefficients.
    """
    points.check()
    starts = _starts(points)
    values, scores = _followed(points, starts)
    best = values[int(np.argmin(scores))]
    residuals = np.log(points.losses) - _log_loss(best, points)
    noises = residuals[np.argsort(np.abs(residuals))[len(best) :]]
    generator = np.random.default_rng(seed)
    fitted = np.exp(_log_loss(best, points))
    resampled = []
    for _ in range(resamples):
        drawn = generator.choice(noises, size=len(residuals))
        again = replace(points, losses=fitted * np.exp(drawn))
        found, found_scores = _followed(again, best[None])
        resampled.append(_law(found[int(np.argmin(found_scores))]))
    return Fit(_law(best), tuple(resampled), float(np.sqrt(np.mean(residuals**2))))


def percentiles(values: Sequence[float], level: float) -> tuple[float, float]:
    """The central interval that holds `level` of `values`; infinite ones count."""
    ordered = np.sort(np.asarray(values, float))
    tail = (1 - level) / 2 * (len(ordered) - 1)
    return float(ordered[round(tail)]), float(ordered[round(len(ordered) - 1 - tail)])


def _effective(total: Any, unique: Any, constant: float) -> Any:
    """U + U R* (1 - exp(-R/R*)), R repeats of U beyond the first."""
    repeats = np.maximum(total / unique - 1, 0)
    return unique * (1 + constant * -np.expm1(-repeats / constant))


def _mean_multiplier(law: ScalingLaw, points: Points, chosen: npt.NDArray[np.intp]) -> float:
    rows = zip(points.parameters[chosen], points.tokens[chosen], points.losses[chosen], strict=True)
    return float(np.exp(np.mean([np.log(law.multiplier(*map(float, row))) for row in rows])))


def _law(values: Array) -> ScalingLaw:
    """(log A, log B, log E, alpha, beta[, log R_D]) → the law."""
    a, b, e, alpha, beta, *r = map(float, values)
    return ScalingLaw(
        E=float(np.exp(e)), A=float(np.exp(a)), B=float(np.exp(b)), alpha=alpha, beta=beta,
        R_D=float(np.exp(r[0])) if r else None,
    )  # fmt: skip


def _terms(values: Array, points: Points) -> tuple[Array, Array, Array | None]:
    """Logarithms of the law's three terms [3, P] and of the effective D [P]; its slope in log R_D [P]."""
    log_tokens, slope = np.log(points.tokens), None
    if points.unique_tokens is not None:
        unique = np.minimum(points.unique_tokens, points.tokens)
        constant, repeats = float(np.exp(values[5])), points.tokens / unique - 1
        left = np.exp(-repeats / constant)
        share = 1 + constant * -np.expm1(-repeats / constant)
        log_tokens = np.log(unique * share)
        slope = (constant * (1 - left) - repeats * left) / share
    terms = np.stack([
        values[0] - values[3] * np.log(points.parameters),
        values[1] - values[4] * log_tokens,
        np.full(len(points.losses), values[2]),
    ])  # fmt: skip
    return terms, log_tokens, slope


def _log_loss(values: Array, points: Points) -> Array:
    return np.asarray(np.logaddexp.reduce(_terms(values, points)[0], axis=0))


def _objective(values: Array, points: Points) -> tuple[float, Array]:
    """Huber loss of log L, summed over points, and its gradient."""
    terms, log_tokens, slope = _terms(values, points)
    predicted = np.logaddexp.reduce(terms, axis=0)
    shares = np.exp(terms - predicted)
    off = (predicted - np.log(points.losses)) / _HUBER_DELTA
    size = np.abs(off)
    pull = np.clip(off, -1, 1)
    gradient = [
        pull @ shares[0],
        pull @ shares[1],
        pull @ shares[2],
        -(pull * shares[0]) @ np.log(points.parameters),
        -(pull * shares[1]) @ log_tokens,
    ]
    if slope is not None:
        gradient.append(-values[4] * (pull * shares[1]) @ slope)
    score = np.where(size <= 1, off**2 / 2, size - 0.5).sum() * _HUBER_DELTA
    return float(score), np.asarray(gradient, float)


def _starts(points: Points) -> Array:
    """Hoffmann et al.'s grid of starting points, A and B scaled so that each term is a share of the loss."""
    least, middle_n, middle_d = points.losses.min(), np.median(points.parameters), np.median(points.tokens)
    spread = max(float(np.ptp(points.losses)), 0.01 * float(least))
    rows = [
        (
            np.log(of_n * spread) + alpha * np.log(middle_n),
            np.log(of_d * spread) + beta * np.log(middle_d),
            np.log(floor * least),
            alpha,
            beta,
        )
        for alpha, beta in product((0.1, 0.2, 0.35, 0.5, 0.8, 1.2), repeat=2)
        for of_n, of_d in product((0.1, 0.3, 1.0, 2.0), repeat=2)
        for floor in (0.3, 0.6, 0.8, 0.95)
    ]
    starts = np.asarray(rows, float)
    if points.unique_tokens is None:
        return starts
    return np.concatenate([np.c_[starts, np.full(len(starts), np.log(r))] for r in (3.0, 15.0)])


def _followed(points: Points, starts: Array) -> tuple[Array, Array]:
    """Where L-BFGS-B leads from the best of `starts`, and the objective there."""
    from scipy.optimize import minimize

    scores = np.asarray([_objective(start, points)[0] for start in starts])
    bounds = [(None, None)] * 2 + [(-10.0, None)] + [(1e-3, _STEEPEST)] * 2
    bounds += [(-3.0, 8.0)] * (points.unique_tokens is not None)
    found = [
        minimize(
            _objective, start, args=(points,), jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-9},
        )
        for start in starts[np.argsort(scores)[:_POLISHED]]
    ]  # fmt: skip
    return np.stack([one.x for one in found]), np.asarray([one.fun for one in found])
