"""A study's arms → a scaling law of one of its settings, and what the other settings are worth in compute."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slam.errors import InputError
from slam.plots import COLOURS, figure
from slam.run import read_run
from slam.scaling_law import FLOPS_A_PARAMETER_AND_TOKEN, PUBLISHED, Fit, Points, fit_law
from slam.study import Law, Levels, Study
from slam.study_results import Outcome

COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
_RESAMPLES = 200
_CURVE = 60  # points of a drawn line


@dataclass(frozen=True)
class LawFound:
    """The fitted law, the points of every group, and what each group is worth."""

    fit: Fit
    groups: dict[str, Points]  # level of the factor that is compared → its points; the fitted one first
    multipliers: dict[str, tuple[float, float, float]]  # level → compute multiplier and its 95 % interval
    against_published: dict[str, float]  # the same against the published law: only for the same units

    def rows(self) -> dict[str, Any]:
        """What `study.json` keeps."""
        names = (*COEFFICIENTS, *(["R_D"] if self.fit.law.R_D is not None else []))
        return {
            "coefficients": {
                name: {
                    "value": getattr(self.fit.law, name),
                    "low": self.fit.interval(name)[0],
                    "high": self.fit.interval(name)[1],
                }
                for name in names
            },
            "rms_residual_of_log_loss": self.fit.residual,
            "num_points": len(self.fitted.losses),
            "compute_multipliers": {
                level: {"value": value, "low": low, "high": high}
                for level, (value, low, high) in self.multipliers.items()
            },
            "compute_multipliers_against_published": self.against_published,
        }

    @property
    def fitted(self) -> Points:
        """The points that the law was fitted to."""
        return next(iter(self.groups.values()))


def find_law(study: Study, law: Law, found: Sequence[Outcome]) -> LawFound:
    """Fit the study's law and weigh the levels of `law.against` by it.

    N counts every parameter, the table of embeddings too; D every token of the training.

    Raises:
        InputError: the finished arms are too few, or do not differ in size and tokens.
    """
    fitted = _points(law, _matching(found, law.fit))
    fit = fit_law(fitted, resamples=_RESAMPLES)
    groups = {law.fit.get(law.against or "", "fitted"): fitted}
    multipliers, published = {}, {}
    for level in study.file.factors[law.against] if law.against is not None else ():
        if level not in groups:
            points = _points(law, _matching(found, law.fit | {str(law.against): level}))
            if not len(points.losses):
                continue
            groups[level] = points
            multipliers[level] = fit.multiplier(points)
    for level, points in groups.items():
        published[level] = PUBLISHED[law.published].mean_multiplier(points)
    return LawFound(fit, groups, multipliers, published)


def _matching(found: Sequence[Outcome], levels: Levels) -> Iterable[Outcome]:
    return (one for one in found if all(one.arm.levels[name] == level for name, level in levels.items()))


def _points(law: Law, found: Iterable[Outcome]) -> Points:
    rows = []
    for one in found:
        if law.metric not in one.metrics:
            continue
        step = one.arm.step(law.step)
        run = read_run(step.out)
        if run is None or "num_parameters" not in run.results:
            raise InputError(f"law: step {law.step!r} is no training; name the one whose size counts")
        tokens = run.results["tokens"]
        unique = tokens / run.results["epochs"] if run.results.get("epochs") else tokens
        rows.append((run.results["num_parameters"], tokens, one.metrics[law.metric], unique))
    columns = np.asarray(rows, float).reshape(-1, 4).T
    return Points(columns[0], columns[1], columns[2], columns[3] if law.unique_tokens else None)


def draw(found: LawFound, published: str) -> Any:
    """Losses over compute: measured, of the fitted law at each size and its optimum, of the published one."""
    drawing, axes = figure(7.2, 4.4)
    law = found.fit.law
    computes = [FLOPS_A_PARAMETER_AND_TOKEN * p.parameters * p.tokens for p in found.groups.values()]
    span = np.geomspace(
        min(float(c.min()) for c in computes) / 2, max(float(c.max()) for c in computes) * 2, _CURVE
    )
    for size in sorted(set(found.fitted.parameters.tolist())):
        tokens = span / FLOPS_A_PARAMETER_AND_TOKEN / size
        axes.plot(span, law.loss(size, tokens), color="#d1d5db", linewidth=0.8, zorder=1)
    axes.plot(span, [law.optimal(c).loss for c in span], color="#1f2933", label="fitted law at its optimum")
    reference = PUBLISHED[published]
    axes.plot(
        span,
        [reference.optimal(c).loss for c in span],
        color="#1f2933",
        linestyle="--",
        label=f"published law ({reference.source}) at its optimum",
    )
    for (level, points), compute, colour in zip(found.groups.items(), computes, COLOURS, strict=False):
        axes.scatter(compute, points.losses, s=14, color=colour, label=level, zorder=3)
    losses = np.concatenate([points.losses for points in found.groups.values()])
    room = 0.15 * float(np.ptp(losses))
    axes.set(xscale="log", xlabel="compute in FLOP (6ND)", ylabel="nats a token")
    axes.set_ylim(float(losses.min()) - 2 * room, float(losses.max()) + room)
    axes.legend(frameon=False, fontsize=8)
    return drawing
