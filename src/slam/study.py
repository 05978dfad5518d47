"""A TOML file of factors and seeds over a recipe → its arms, each that recipe with some settings changed.

All arms keep their steps in one folder, where a step's name carries a digest of its settings and inputs: what
arms have in common is made once. `slam.study_runner` makes them, `slam.study_results` compares them.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import msgspec

from slam.errors import ConfigError
from slam.recipe import Step, check_keys, check_setting, hint, load_recipe, read_toml, step_tables

MANY_ARMS = 1000
STEPS_FOLDER = "steps"

Levels = dict[str, str]  # factor → level


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of a finished step."""

    step: str
    """The step that holds it."""
    result: str | None = None
    """A key of its run's results; dots reach into tables."""
    where: dict[str, str] = field(default_factory=dict)
    """Or what the row of its results.json says that holds it."""
    value: str = "value"
    """The row's key of the number."""
    better: Literal["lower", "higher"] = "lower"
    """Which of two is the better one."""
    percent: bool = False
    """Show a share of 1 in percent."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """A scaling law to fit to arms that differ in size and tokens."""

    step: str
    """The training whose parameters and tokens count."""
    metric: str
    """The metric that is its loss, in nats a token."""
    fit: Levels = field(default_factory=dict)
    """The arms it is fitted to: factor → level."""
    against: str | None = None
    """The factor whose other levels are measured against it."""
    published: str = "speech"
    """The published law drawn beside it: speech, speech-unigram or text."""
    unique_tokens: bool = False
    """Fit what repeated tokens are worth (R_D) too; a packed corpus is what is unique."""


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """What a study's file says."""

    recipe: Path
    """The recipe that is varied, relative to the file."""
    title: str = ""
    """Heading of its page."""
    about: str = ""
    """A paragraph below the heading: what is asked."""
    folder: Path | None = None
    """Where results go and, in `steps`, every arm's steps; work/studies/NAME if not given."""
    steps: Path | None = None
    """Where steps go instead, such as a folder that several studies share."""
    jobs: int = 1
    """Steps made at the same time."""
    seeds: list[int]
    """A run of every arm for each."""
    seed_keys: list[str] = field(default_factory=list)
    """The settings, STEP.KEY, that are the seed."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of all arms that differ from the recipe's, STEP.KEY → value."""
    factors: dict[str, dict[str, dict[str, Any]]]
    """Factor → level → settings, STEP.KEY → value."""
    exclude: list[dict[str, str | list[str]]] = field(default_factory=list)
    """Arms to leave out: factor → level or levels, all of which must hold."""
    compare: Levels = field(default_factory=dict)
    """Factor → the level that its others are compared with; the first of every factor if not given."""
    metrics: dict[str, Metric]
    """Name → where the number is."""
    law: Law | None = None
    """A scaling law over the arms."""


@dataclass(frozen=True)
class Arm:
    """A variant of the recipe: one level of each factor, one seed."""

    levels: Levels
    seed: int
    steps: tuple[Step, ...]  # those that the metrics need

    @property
    def name(self) -> str:
        """Its levels and its seed."""
        return ", ".join(f"{key} {value}" for key, value in (self.levels | {"seed": str(self.seed)}).items())

    def step(self, name: str) -> Step:
        """A step by its name in the recipe."""
        return next(step for step in self.steps if step.name == name)


@dataclass(frozen=True)
class Study:
    """Arms in the order in which they are made: all of a seed, then those of the next."""

    path: Path
    file: StudyFile
    folder: Path
    arms: tuple[Arm, ...]

    @property
    def cells(self) -> list[Levels]:
        """What the arms of a seed differ in, each once."""
        return [dict(cell) for cell in dict.fromkeys(tuple(arm.levels.items()) for arm in self.arms)]


def load_study(
    path: Path, *, folder: Path | None = None, many: bool = False, missing_allowed: bool = False
) -> Study:
    """Read and check a study, its recipe and every arm.

    Args:
        path: the TOML file.
        folder: where results and steps go, instead of the study's own `folder`.
        many: allow more than 1,000 arms.
        missing_allowed: let each step say which of its inputs are nowhere, rather than refuse the first.

    Raises:
        InputError: a file is missing or is not TOML.
        ConfigError: something in it cannot be meant; the line says where.
    """
    content = read_toml(path, "study")
    check_keys(content, [item.name for item in fields(StudyFile)], f"{path}")
    for name, kind in (("law", Law), *(("metrics", Metric),)):
        table = content.get(name, {})
        for key, inner in ({name: table} if kind is Law else table).items():
            if isinstance(inner, dict):
                check_keys(inner, [item.name for item in fields(kind)], f"{path}: {key}")
    try:
        file = msgspec.convert(content, StudyFile, dec_hook=lambda kind, value: kind(value))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {str(error).replace(' - at `$.', ' in `')}") from None
    recipe = path.parent / file.recipe
    tables = step_tables(recipe, read_toml(recipe, "recipe"))
    try:
        _check(file, tables)
        cells = _cells(file, many=many)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    root = folder or file.folder or Path("work/studies") / path.stem
    steps = root / STEPS_FOLDER if folder is not None or file.steps is None else file.steps
    arms = []
    for seed, levels in itertools.product(file.seeds, cells):
        overrides = dict(file.settings)
        for factor, level in levels.items():
            overrides |= file.factors[factor][level]
        overrides |= dict.fromkeys(file.seed_keys, seed)
        try:
            whole = load_recipe(
                recipe,
                folder=steps,
                overrides=overrides,
                by_content=True,
                missing_allowed=missing_allowed,
            )
        except ConfigError as error:
            said = ", ".join(f"{factor} {level}" for factor, level in levels.items())
            raise ConfigError(f"{path}: arm {said}: {error}") from None
        arms.append(Arm(levels, seed, _needed(whole.steps, {one.step for one in file.metrics.values()})))
    return Study(path, file, root, tuple(arms))


def _check(file: StudyFile, tables: Mapping[str, Any]) -> None:
    """Refuse what contradicts itself or the recipe's `tables`."""
    for wrong, line in (
        (not file.seeds, "seeds = []: nothing to run; give one or more, such as [0, 1, 2]"),
        (len(set(file.seeds)) < len(file.seeds), f"seeds = {file.seeds}: holds one twice"),
        (
            len(file.seeds) > 1 and not file.seed_keys,
            "several seeds and no seed_keys: name the settings that they are, such as lm.seed",
        ),
        (file.jobs < 1, f"jobs = {file.jobs}: must be at least 1"),
        (
            not file.factors or not all(file.factors.values()),
            "every study needs a factor, and every factor levels: [factors.NAME.LEVEL]",
        ),
        (not file.metrics, "no metrics: name what is compared, such as [metrics.loss] with step and result"),
    ):
        if wrong:
            raise ConfigError(line)
    _check_settings(file, tables)
    for name, metric in file.metrics.items():
        if metric.step not in tables:
            raise ConfigError(
                f"metric {name!r}: no step is called {metric.step!r}; {hint(metric.step, tables)}"
            )
        if (metric.result is None) == (not metric.where):
            raise ConfigError(f"metric {name!r}: give result (a key of the run's) or where (a row), not both")
    for rule in file.exclude:
        _check_levels(file, rule)
    _check_levels(file, file.compare)
    if file.law is not None:
        _check_levels(file, file.law.fit)
        _check_law(file, file.law, tables)


def _check_settings(file: StudyFile, tables: Mapping[str, Any]) -> None:
    """Refuse settings that the recipe has not, and two factors that set the same one."""
    set_by: dict[str, str] = {}
    for factor, key in _set_keys(file):
        try:
            check_setting(tables, key)
        except ConfigError as error:
            raise ConfigError(f"{factor}: {error}") from None
        other = next((set_by[one] for one in set_by if _overlap(one, key) and set_by[one] != factor), None)
        if other is not None:
            raise ConfigError(f"{other} and {factor} both set {key!r}; let one of them decide")
        set_by[key] = factor
    for key in file.settings:
        check_setting(tables, key)


def _check_law(file: StudyFile, law: Law, tables: Mapping[str, Any]) -> None:
    from slam.scaling_law import PUBLISHED

    for what, name, known in (
        ("step", law.step, tables),
        ("metric", law.metric, file.metrics),
        ("factor", law.against, file.factors),
        ("published law", law.published, PUBLISHED),
    ):
        if name is not None and name not in known:
            raise ConfigError(f"law: no {what} is called {name!r}; {hint(name, list(known))}")
    if law.against is not None and law.against not in law.fit:
        raise ConfigError(
            f"law: against = {law.against!r}: say which of its levels is fitted: fit.{law.against}"
        )


def _check_levels(file: StudyFile, levels: Mapping[str, Any]) -> None:
    """Refuse factors and levels that there are none of."""
    for factor, some in levels.items():
        if factor not in file.factors:
            raise ConfigError(f"no factor is called {factor!r}; {hint(factor, list(file.factors))}")
        known = list(file.factors[factor])
        for level in [some] if isinstance(some, str) else some:
            if level not in known:
                raise ConfigError(f"factor {factor!r}: no level is called {level!r}; {hint(level, known)}")


def _set_keys(file: StudyFile) -> Iterator[tuple[str, str]]:
    """(who, the setting that it sets)."""
    for factor, levels in file.factors.items():
        for key in dict.fromkeys(key for level in levels.values() for key in level):
            yield f"factor {factor!r}", key
    for key in file.seed_keys:
        yield "seed_keys", key


def _overlap(one: str, other: str) -> bool:
    """Whether a setting is the other or stands inside it."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _cells(file: StudyFile, *, many: bool) -> list[Levels]:
    """All combinations of levels but the excluded ones."""
    cells = []
    for chosen in itertools.product(*file.factors.values()):
        levels = dict(zip(file.factors, chosen, strict=True))
        if not any(_matches(levels, rule) for rule in file.exclude):
            cells.append(levels)
        if not many and len(cells) * len(file.seeds) > MANY_ARMS:
            every = len(file.seeds)
            for level_tables in file.factors.values():
                every *= len(level_tables)
            raise ConfigError(
                f"has up to {every:,} arms, more than {MANY_ARMS:,}; say --yes if that is meant"
            )
    if not cells:
        raise ConfigError("every arm is excluded")
    return cells


def _matches(levels: Levels, rule: Mapping[str, str | list[str]]) -> bool:
    return all(levels[factor] in ([one] if isinstance(one, str) else one) for factor, one in rule.items())


def _needed(steps: tuple[Step, ...], names: set[str]) -> tuple[Step, ...]:
    """The named steps and all that they are made from."""
    wanted: set[Path] = set()
    for step in reversed(steps):  # inputs stand before what reads them
        if step.name in names or step.out in wanted:
            wanted |= {step.out, *step.sources}
    return tuple(step for step in steps if step.out in wanted)
