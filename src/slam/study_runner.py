"""A study's arms → their steps made, each once; and beforehand what that will take.

One failed step does not stop the others. Several processes, on several machines, may share the folder: each
has its share of the arms, and a step that two arms need is made by one of them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.table import Table

from slam.budget import Budget, TrainingConfig
from slam.errors import InputError
from slam.pretrain import PretrainConfig
from slam.recipe import Step
from slam.run import Run, identity, read_run, state_of
from slam.runner import make_steps
from slam.shares import read_share
from slam.study import Arm, Study

# settings that change what an update costs; trainings that agree in them take the same time for a token
_SHAPE = (
    "architecture",
    "base",
    "hub_base",
    "model",
    "context",
    "batch_tokens",
    "micro_batch_tokens",
    "precision",
)


@dataclass(frozen=True)
class Planned:
    """What an arm will take: steps that no arm before it makes."""

    arm: Arm
    num_steps: int
    tokens: float | None  # None: of a time, or of unknown documents
    seconds: float | None  # None: nothing like it has been run


def shared_arms(study: Study, shard: str | None) -> list[Arm]:
    """The arms of part I/N; all of them without one."""
    share = read_share(shard)
    return [arm for number, arm in enumerate(study.arms) if number in share]


def run_study(study: Study, jobs: int, shard: str | None = None) -> dict[Path, str]:
    """Make what the arms need and is not done, and give what failed: folder → line.

    Raises:
        SlamError: a folder holds something that is no run of slam, or the disk is full.
    """
    failures: dict[Path, str] = {}
    make_steps(steps_of(shared_arms(study, shard)), jobs, failures=failures)
    return failures


def steps_of(arms: Sequence[Arm]) -> list[Step]:
    """All steps of `arms`, each once, in an order in which they can be made."""
    return list({step.out: step for arm in arms for step in arm.steps}.values())


def plan_study(study: Study, shard: str | None = None) -> list[Planned]:
    """What each arm takes beyond what is done and what the arms before it make."""
    known = list(_finished(study.arms))
    counted: set[Path] = set()
    rows = []
    for arm in shared_arms(study, shard):
        steps = [step for step in arm.steps if step.out not in counted and not is_done(step)]
        counted |= {step.out for step in steps}
        trained = [step.config for step in steps if isinstance(step.config, TrainingConfig)]
        tokens = [_tokens(config) for config in trained]
        seconds = [_seconds(step, known) for step in steps]
        rows.append(
            Planned(
                arm,
                len(steps),
                None if None in tokens else sum(one for one in tokens if one is not None),
                None if None in seconds else sum(one for one in seconds if one is not None),
            )
        )
    return rows


def plan_table(rows: Sequence[Planned]) -> Table:
    """What each arm adds to those before it, and the sum."""
    table = Table(title="what each arm adds to those before it", title_justify="left")
    for heading in ("arm", "steps to make", "tokens", "time"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for row in rows:
        table.add_row(row.arm.name, str(row.num_steps), _amount([row.tokens]), _time([row.seconds]))
    table.add_section()
    table.add_row(
        f"{len(rows)} arms",
        str(sum(row.num_steps for row in rows)),
        _amount([row.tokens for row in rows]),
        _time([row.seconds for row in rows]),
    )
    return table


def _amount(tokens: Sequence[float | None]) -> str:
    return _with_unknown(f"{sum(filter(None, tokens)):,.0f}", tokens)


def _time(seconds: Sequence[float | None]) -> str:
    return _with_unknown(str(timedelta(seconds=round(sum(filter(None, seconds))))), seconds)


def _with_unknown(known: str, values: Sequence[float | None]) -> str:
    unknown = values.count(None)
    if not unknown:
        return known
    return "?" if unknown == len(values) else f"{known}, {unknown} unknown"


def missing_inputs(study: Study) -> list[str]:
    """What steps read that is nowhere yet, each once, with what may be meant."""
    return list(dict.fromkeys(line for step in steps_of(study.arms) for line in step.missing.values()))


def is_done(step: Step) -> bool:
    """Whether the step's folder holds a finished run of its very settings and inputs."""
    if read_run(step.out) is None:
        return False
    try:
        return state_of(step.out, identity(step.stage, step.config)[0]) == "done"
    except InputError:  # an input is no longer there, or is being made again
        return False


def _finished(arms: Sequence[Arm]) -> Iterator[tuple[Step, Run]]:
    """Steps that are done, with their runs."""
    for step in steps_of(arms):
        if (run := read_run(step.out)) is not None:
            yield step, run


def _tokens(config: TrainingConfig) -> float | None:
    """What a training's budget buys, where that can be known beforehand."""
    budget = Budget.parse(config.budget)
    tokens = budget.tokens
    if math.isfinite(budget.steps) and isinstance(config, PretrainConfig):
        tokens = min(tokens, budget.steps * config.batch_tokens)
    return tokens if math.isfinite(tokens) else None


def _seconds(step: Step, known: Sequence[tuple[Step, Run]]) -> float | None:
    """What a step will take: its budget's time, or what a finished one like it took."""
    like = [(other, run) for other, run in known if other.name == step.name and other.stage == step.stage]
    if not isinstance(step.config, TrainingConfig):
        seconds = [run.seconds for _, run in like]
        return sum(seconds) / len(seconds) if seconds else None
    budget = Budget.parse(step.config.budget)
    rates = [
        float(run.seconds / run.results["tokens"]) for other, run in like if _shape(other) == _shape(step)
    ]
    tokens = _tokens(step.config)
    if rates and tokens is not None:
        return min(budget.seconds, tokens * sum(rates) / len(rates))
    return budget.seconds if math.isfinite(budget.seconds) else None


def _shape(step: Step) -> dict[str, Any]:
    return {name: value for name, value in asdict(step.config).items() if name in _SHAPE}
