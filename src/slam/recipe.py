"""A TOML file of named steps → folders, one a step, made in order; what is done is left alone.

A step's inputs are other steps, by name, or paths. A step is done when its folder's `run.json` carries the
fingerprint of its stage, settings and inputs; it is stale, and made again, when that fingerprint differs.
`slam.runner` makes them.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from slam.errors import ConfigError, InputError
from slam.run import digest, named_sources
from slam.stages import STAGES

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_RECIPE_KEYS = ("folder", "jobs", "machine", "data", "steps")


@dataclass(frozen=True)
class Step:
    """One stage with its settings, its inputs resolved to paths."""

    name: str
    stage: str
    config: Any
    out: Path
    missing: Mapping[str, str] = field(default_factory=dict)  # inputs that are nowhere → what they may mean

    @property
    def sources(self) -> list[Path]:
        """The folders and files that it reads."""
        return [
            path
            for item in fields(self.config)
            if item.metadata.get("source")
            for _, path in named_sources(item.name, getattr(self.config, item.name))
        ]


@dataclass(frozen=True, kw_only=True)
class Brought:
    """Something that a recipe reads and does not make: what is known of it before it is there."""

    about: str = ""
    get: str = ""  # where it is to be had
    hours: float | None = None  # of speech
    tokens: float | None = None  # that it becomes
    pairs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a recipe is written for."""

    gpu: str  # a name that `slam.cards` knows
    gpus: int = 1


@dataclass(frozen=True)
class Recipe:
    """Steps in order, and the folder that holds theirs."""

    path: Path
    folder: Path
    jobs: int  # steps that may be made at the same time
    steps: tuple[Step, ...]
    data: Mapping[str, Brought] = field(default_factory=dict)  # by the path that steps name
    machine: Machine | None = None


def load_recipe(
    path: Path,
    *,
    folder: Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    by_content: bool = False,
    missing_allowed: bool = False,
) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the TOML file: `folder`, `jobs`, and a table `[steps.NAME]` for each step in order; `machine`
            and a table `[data."PATH"]` for what is to be brought say what to expect, and change nothing.
        folder: where the steps' folders go, instead of the recipe's own `folder`.
        overrides: settings as `STEP.KEY=VALUE`, the value in TOML; or a table `STEP.KEY` → value.
        by_content: name a step's folder by its settings and inputs too, so that variants of a recipe in one
            `folder` share the steps in which they agree.
        missing_allowed: let each step say which of its inputs are nowhere, rather than refuse the first.

    Raises:
        InputError: the file is missing or is not TOML.
        ConfigError: a key, stage, step or value cannot be meant; the line says where.
    """
    content = read_toml(path, "recipe")
    check_keys(content, _RECIPE_KEYS, f"{path}")
    tables = step_tables(path, content)
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_parsed, overrides)
    for key, value in pairs:
        _override(tables, key, value)
    root = folder if folder is not None else Path(content.get("folder", Path("work") / path.stem))
    steps: dict[str, Step] = {}
    for name in tables:
        try:
            step = _step(name, tables, steps, root)
        except ConfigError as error:
            raise ConfigError(f"{path}: step {name!r}: {error}") from None
        for meaning in () if missing_allowed else step.missing.values():
            raise ConfigError(f"{path}: step {name!r}: {meaning}")
        steps[name] = replace(step, out=_content_folder(step, root)) if by_content else step
    jobs = content.get("jobs", 1)
    if type(jobs) is not int or jobs < 1:
        raise ConfigError(f"{path}: jobs = {jobs!r}: must be a whole number, at least 1")
    data = _table(content.get("data", {}), dict[str, Brought], f"{path}: data", Brought)
    machine = _table(content.get("machine"), Machine | None, f"{path}: machine", Machine)
    return Recipe(path, root, jobs, tuple(steps.values()), data, machine)


def _table(value: Any, kind: Any, where: str, of: type[Any]) -> Any:
    """A table beside the steps → what it says."""
    known = [item.name for item in fields(of)]
    tables = value.values() if of is Brought and isinstance(value, dict) else [value]
    for table in tables:
        check_keys(table if isinstance(table, dict) else {}, known, where)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {str(error).replace(' - at `$.', ' in `')}") from None


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The content of a TOML file; `what` it is stands in the error.

    Raises:
        InputError: the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such {what}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML ({error})") from None


def step_tables(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's tables of steps, as they are written.

    Raises:
        ConfigError: there are none.
    """
    tables = content.get("steps")
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{path}: holds no steps; write a table [steps.NAME] for each")
    return tables


def check_setting(tables: Mapping[str, Any], key: str) -> None:
    """Refuse a `STEP.KEY` that names no setting of the recipe's `tables`.

    Raises:
        ConfigError: it does not; the line has the nearest right name.
    """
    step, *keys = key.split(".")
    if not keys:
        raise ConfigError(f"{key!r}: write a setting as STEP.KEY")
    if step not in tables:
        raise ConfigError(f"{key!r}: no step is called {step!r}; {hint(step, tables)}")
    stage = tables[step].get("stage") if isinstance(tables[step], dict) else ""
    if isinstance(stage, str) and stage in STAGES and keys[0] != "stage":
        check_keys({keys[0]: None}, [item.name for item in fields(STAGES[stage].config)], repr(key))


def _content_folder(step: Step, root: Path) -> Path:
    """NAME-DIGEST: of the stage, its settings and its inputs, which other steps' folders name in turn."""
    told = {
        item.name: [
            str(path.relative_to(root) if path.is_relative_to(root) else path)
            for _, path in named_sources(item.name, getattr(step.config, item.name))
        ]
        if item.metadata.get("source")
        else getattr(step.config, item.name)
        for item in fields(step.config)
        if not item.metadata.get("effort")
    }
    return root / f"{step.name}-{digest([step.stage, told])[:10]}"


def _step(name: str, tables: Mapping[str, Any], steps: Mapping[str, Step], root: Path) -> Step:
    """One table → a step, its inputs found among the `steps` before it."""
    table = tables[name]
    if not _NAME.fullmatch(name):
        raise ConfigError("a step's name is its folder's: letters, digits, '-' and '_' only")
    if not isinstance(table, dict) or not isinstance(table.get("stage"), str):
        raise ConfigError(f'name its stage: stage = "…", one of {", ".join(STAGES)}')
    if table["stage"] not in STAGES:
        raise ConfigError(f"no stage is called {table['stage']!r}; {hint(table['stage'], STAGES)}")
    missing: dict[str, str] = {}
    config = _config(STAGES[table["stage"]].config, table, steps, list(tables), missing)
    return Step(name, table["stage"], config, root / name, missing)


def _config(
    kind: type[Any],
    table: Mapping[str, Any],
    steps: Mapping[str, Step],
    names: Sequence[str],
    missing: dict[str, str],
) -> Any:
    """A step's table → its stage's settings; `missing` is told of inputs that are nowhere."""
    settings = {key: value for key, value in table.items() if key != "stage"}
    known = {item.name: item for item in fields(kind)}
    check_keys(settings, known, "")
    for key, value in settings.items():
        if known[key].metadata.get("source"):
            settings[key] = _resolve(value, steps, names, missing)
    hints = get_type_hints(kind)
    for key, value in settings.items():
        if is_dataclass(hints[key]) and isinstance(value, dict):
            check_keys(value, [item.name for item in fields(hints[key])], f"{key}: ")
    try:
        return msgspec.convert(settings, kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error).replace(" - at `$.", " in `")) from None


def _resolve(value: Any, steps: Mapping[str, Step], names: Sequence[str], missing: dict[str, str]) -> Any:
    """Replace the names of earlier steps by their folders, "*" by all of them; leave paths."""
    if value == "*":
        return {name: str(step.out) for name, step in steps.items()}
    if isinstance(value, dict):
        return {key: _resolve(item, steps, names, missing) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, steps, names, missing) for item in value]
    if value in steps:
        return str(steps[value].out)
    if value in names:
        raise ConfigError(f"refers to {value!r}, which comes later; move it before this step")
    if isinstance(value, str) and not Path(value).exists():
        missing[value] = f"no step and no path is called {value!r}; {hint(value, steps)}"
    return value


def _decode(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ConfigError(f"expected a {kind.__name__}, got {value!r}")


def check_keys(table: Mapping[str, Any], known: Sequence[str] | Mapping[str, Any], where: str) -> None:
    """Refuse a key that is not `known`; `where` begins the line.

    Raises:
        ConfigError: there is one; the line has the nearest right name.
    """
    for key in table:
        if key not in known:
            raise ConfigError(
                f"{where}{': ' if where and where[-1] != ' ' else ''}unknown key {key!r}; {hint(key, known)}"
            )


def hint(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Which of the `known` names was meant, or all of them."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"


def _parsed(text: str) -> tuple[str, Any]:
    """`STEP.KEY=VALUE`, the value in TOML, or a bare string."""
    target, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"{text!r}: write a setting as STEP.KEY=VALUE")
    try:
        return target.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return target.strip(), value


def _override(tables: dict[str, Any], target: str, value: Any) -> None:
    """Set `STEP.KEY` to `value`."""
    step, *keys = target.split(".")
    if not keys:
        raise ConfigError(f"{target!r}: write a setting as STEP.KEY=VALUE")
    if step not in tables:
        raise ConfigError(f"'{target}={value}': no step is called {step!r}; {hint(step, tables)}")
    table = tables[step]
    for key in keys[:-1]:
        table = table.setdefault(key, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise ConfigError(f"'{target}={value}': {'.'.join((step, *keys[:-1]))!r} is no table of settings")
    table[keys[-1]] = value
