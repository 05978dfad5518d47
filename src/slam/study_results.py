"""A study's finished arms → its numbers: each arm's, their mean and spread over seeds, paired differences.

Two levels of a factor are compared at the same levels of all others and the same seed; the interval is
Student's, over seeds. With two or three seeds it is wide, as it should be.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slam.budget import TrainingConfig
from slam.recipe import Step
from slam.run import Run, read_json, read_run
from slam.runner import FAILURE_SUFFIX
from slam.scaling_law import FLOPS_A_PARAMETER_AND_TOKEN
from slam.study import Arm, Levels, Metric, Study
from slam.study_runner import is_done

_LEVEL = 0.95


@dataclass(frozen=True)
class Outcome:
    """What became of an arm."""

    arm: Arm
    state: str  # "done", "failed" or "not made"
    line: str = ""  # why it failed
    metrics: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # metric → why there is no number
    seconds: float = 0.0  # of the trainings that tell the arms apart
    tokens: int = 0  # of the same
    flops: float = 0.0  # of the same: 6 · parameters · tokens
    all_seconds: float = 0.0  # of all its steps, shared ones too


@dataclass(frozen=True)
class Summary:
    """A metric over the seeds of one cell."""

    levels: Levels
    metric: str
    n: int
    mean: float
    deviation: float | None  # standard deviation over seeds; None of one


@dataclass(frozen=True)
class Difference:
    """A level minus the one it is compared with, paired by seed."""

    factor: str
    level: str
    against: str
    at: Levels | None  # the other factors' levels; None: the mean over all of them
    metric: str
    n: int  # seeds
    difference: float
    low: float | None  # 95 % interval; None of one seed
    high: float | None


def outcomes(study: Study) -> list[Outcome]:
    """What became of every arm, whoever made it."""
    uses: dict[Any, int] = {}
    for arm in study.arms:
        for step in arm.steps:
            uses[step.out] = uses.get(step.out, 0) + 1
    shared = {out for out, count in uses.items() if count == len(study.arms) > 1}
    done = {step.out: is_done(step) for arm in study.arms for step in arm.steps}
    return [_outcome(study, arm, shared, done) for arm in study.arms]


def _outcome(study: Study, arm: Arm, shared: set[Any], done: Mapping[Any, bool]) -> Outcome:
    if not all(done[step.out] for step in arm.steps):
        line = next((found for step in arm.steps if (found := _failure(step))), "")
        return Outcome(arm, "failed" if line else "not made", line)
    runs = {step.name: _run(step) for step in arm.steps}
    metrics, missing = {}, {}
    for name, metric in study.file.metrics.items():
        value = _value(metric, arm.step(metric.step), runs[metric.step])
        if isinstance(value, str):
            missing[name] = value
        else:
            metrics[name] = value
    own = [
        runs[step.name]
        for step in arm.steps
        if isinstance(step.config, TrainingConfig) and step.out not in shared
    ]
    return Outcome(
        arm,
        "done",
        metrics=metrics,
        missing=missing,
        seconds=round(sum(run.seconds for run in own), 2),
        tokens=sum(run.results["tokens"] for run in own),
        flops=sum(
            FLOPS_A_PARAMETER_AND_TOKEN * run.results["num_parameters"] * run.results["tokens"] for run in own
        ),
        all_seconds=round(sum(run.seconds for run in runs.values()), 2),
    )


def _failure(step: Step) -> str:
    note = step.out.with_name(f"{step.out.name}{FAILURE_SUFFIX}")
    return f"{step.name}: {note.read_text(encoding='utf-8').strip()}" if note.is_file() else ""


def _run(step: Step) -> Run:
    run = read_run(step.out)
    assert run is not None  # noqa: S101 - it is done
    return run


def _value(metric: Metric, step: Step, run: Run) -> float | str:
    """The metric's number, or why there is none."""
    if metric.result is not None:
        found: Any = run.results
        for key in metric.result.split("."):
            if not isinstance(found, dict) or key not in found:
                return f"{step.name} has no result {metric.result!r}; it has {', '.join(run.results)}"
            found = found[key]
    else:
        rows = [
            row
            for row in read_json(step.out / "results.json")
            if all(str(row.get(key)) == value for key, value in metric.where.items())
        ]
        if len(rows) != 1:
            return f"{len(rows)} rows of {step.name}'s results.json are {metric.where}, not 1"
        found = rows[0].get(metric.value)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return f"{step.name}: {metric.result or metric.value!r} is no number"
    return float(found)


def summaries(study: Study, found: Sequence[Outcome]) -> list[Summary]:
    """Mean and spread over seeds of every metric, cell by cell."""
    rows = []
    for levels in study.cells:
        for metric in study.file.metrics:
            values = list(_by_seed(found, levels, metric).values())
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                rows.append(Summary(levels, metric, len(values), statistics.fmean(values), spread))
    return rows


def differences(study: Study, found: Sequence[Outcome]) -> Iterator[Difference]:
    """Every level minus its factor's baseline, at each setting of the others and over all of them."""
    compare = study.file.compare or {name: next(iter(levels)) for name, levels in study.file.factors.items()}
    for factor, against in compare.items():
        for level in study.file.factors[factor]:
            if level == against:
                continue
            for metric in study.file.metrics:
                yield from _paired(study, found, factor, (level, against), metric)


def _paired(
    study: Study, found: Sequence[Outcome], factor: str, pair: tuple[str, str], metric: str
) -> Iterator[Difference]:
    level, against = pair
    by_cell: list[dict[int, float]] = []
    for levels in study.cells:
        if levels[factor] != level:
            continue
        ours = _by_seed(found, levels, metric)
        theirs = _by_seed(found, levels | {factor: against}, metric)
        paired = {seed: value - theirs[seed] for seed, value in ours.items() if seed in theirs}
        if paired:
            at = {name: value for name, value in levels.items() if name != factor}
            by_cell.append(paired)
            yield Difference(factor, level, against, at, metric, *_interval(list(paired.values())))
    if len(by_cell) > 1:
        # cells of one seed are not independent: their mean is one observation
        seeds = [seed for seed in study.file.seeds if all(seed in cell for cell in by_cell)]
        if seeds:
            means = [statistics.fmean(cell[seed] for cell in by_cell) for seed in seeds]
            yield Difference(factor, level, against, None, metric, *_interval(means))


def _by_seed(found: Sequence[Outcome], levels: Levels, metric: str) -> dict[int, float]:
    return {
        one.arm.seed: one.metrics[metric]
        for one in found
        if one.arm.levels == levels and metric in one.metrics
    }


def _interval(values: Sequence[float]) -> tuple[int, float, float | None, float | None]:
    """`(n, mean, low, high)` by Student's t; no interval of one value."""
    from scipy.special import stdtrit

    mean = statistics.fmean(values)
    if len(values) == 1:
        return 1, mean, None, None
    half = (
        float(stdtrit(len(values) - 1, (1 + _LEVEL) / 2)) * statistics.stdev(values) / math.sqrt(len(values))
    )
    return len(values), mean, mean - half, mean + half
