"""A TOML file of named steps → folders, one a step, made in order; what is done is left alone.

A step's inputs are other steps, by name, or paths. A step is done when its folder's `run.json` carries the
fingerprint of its stage, settings and inputs; it is stale, and made again, when that fingerprint differs.
`slam.runner` makes them.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from slam import (
    build_pairs,
    dpo,
    encode,
    evaluate,
    evaluate_generation,
    export,
    fit_recognizer,
    fit_units,
    fit_vocoder,
    generate,
    import_benchmark,
    import_model,
    import_units,
    pack,
    pretrain,
    probe_units,
    report,
    synthesize,
)
from slam.errors import ConfigError, InputError
from slam.run import Run

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_RECIPE_KEYS = ("folder", "jobs", "steps")


@dataclass(frozen=True)
class Stage:
    """A command: its settings and its work."""

    config: type[Any]
    perform: Callable[[Any, Path], Run]


STAGES: Mapping[str, Stage] = {
    "build-pairs": Stage(build_pairs.BuildPairsConfig, build_pairs.build_pairs),
    "synthesize": Stage(synthesize.SynthesizeConfig, synthesize.synthesize),
    "fit-units": Stage(fit_units.FitUnitsConfig, fit_units.fit_units),
    "encode": Stage(encode.EncodeConfig, encode.encode),
    "probe-units": Stage(probe_units.ProbeUnitsConfig, probe_units.probe_units),
    "import-benchmark": Stage(import_benchmark.ImportBenchmarkConfig, import_benchmark.import_benchmark),
    "import-units": Stage(import_units.ImportUnitsConfig, import_units.import_units),
    "import-model": Stage(import_model.ImportModelConfig, import_model.import_model),
    "fit-recognizer": Stage(fit_recognizer.FitRecognizerConfig, fit_recognizer.fit_recognizer),
    "fit-vocoder": Stage(fit_vocoder.FitVocoderConfig, fit_vocoder.fit_vocoder),
    "pack": Stage(pack.PackConfig, pack.pack),
    "pretrain": Stage(pretrain.PretrainConfig, pretrain.pretrain),
    "dpo": Stage(dpo.DpoConfig, dpo.dpo),
    "evaluate": Stage(evaluate.EvaluateConfig, evaluate.evaluate),
    "evaluate-generation": Stage(
        evaluate_generation.EvaluateGenerationConfig, evaluate_generation.evaluate_generation
    ),
    "generate": Stage(generate.GenerateConfig, generate.generate),
    "export": Stage(export.ExportConfig, export.export),
    "report": Stage(report.ReportConfig, report.report),
}


@dataclass(frozen=True)
class Step:
    """One stage with its settings, its inputs resolved to paths."""

    name: str
    stage: str
    config: Any
    out: Path


@dataclass(frozen=True)
class Recipe:
    """Steps in order, and the folder that holds theirs."""

    path: Path
    folder: Path
    jobs: int  # steps that may be made at the same time
    steps: tuple[Step, ...]


def load_recipe(path: Path, *, folder: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the TOML file: `folder`, `jobs`, and a table `[steps.NAME]` for each step in order.
        folder: where the steps' folders go, instead of the recipe's own `folder`.
        overrides: settings as `STEP.KEY=VALUE`, the value in TOML.

    Raises:
        InputError: the file is missing or is not TOML.
        ConfigError: a key, stage, step or value cannot be meant; the line says where.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML ({error})") from None
    _check_keys(content, _RECIPE_KEYS, f"{path}")
    tables = content.get("steps")
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{path}: holds no steps; write a table [steps.NAME] for each")
    for override in overrides:
        _override(tables, override)
    root = folder if folder is not None else Path(content.get("folder", Path("work") / path.stem))
    steps: dict[str, Step] = {}
    for name in tables:
        try:
            steps[name] = _step(name, tables, steps, root)
        except ConfigError as error:
            raise ConfigError(f"{path}: step {name!r}: {error}") from None
    jobs = content.get("jobs", 1)
    if type(jobs) is not int or jobs < 1:
        raise ConfigError(f"{path}: jobs = {jobs!r}: must be a whole number, at least 1")
    return Recipe(path, root, jobs, tuple(steps.values()))


def _step(name: str, tables: Mapping[str, Any], steps: Mapping[str, Step], root: Path) -> Step:
    """One table → a step, its inputs found among the `steps` before it."""
    table = tables[name]
    if not _NAME.fullmatch(name):
        raise ConfigError("a step's name is its folder's: letters, digits, '-' and '_' only")
    if not isinstance(table, dict) or not isinstance(table.get("stage"), str):
        raise ConfigError(f'name its stage: stage = "…", one of {", ".join(STAGES)}')
    if table["stage"] not in STAGES:
        raise ConfigError(f"no stage is called {table['stage']!r}; {_hint(table['stage'], STAGES)}")
    config = _config(STAGES[table["stage"]].config, table, steps, list(tables))
    return Step(name, table["stage"], config, root / name)


def _config(
    kind: type[Any], table: Mapping[str, Any], steps: Mapping[str, Step], names: Sequence[str]
) -> Any:
    """A step's table → its stage's settings."""
    settings = {key: value for key, value in table.items() if key != "stage"}
    known = {item.name: item for item in fields(kind)}
    _check_keys(settings, known, "")
    for key, value in settings.items():
        if known[key].metadata.get("source"):
            settings[key] = _resolve(value, steps, names)
    hints = get_type_hints(kind)
    for key, value in settings.items():
        if is_dataclass(hints[key]) and isinstance(value, dict):
            _check_keys(value, [item.name for item in fields(hints[key])], f"{key}: ")
    try:
        return msgspec.convert(settings, kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error).replace(" - at `$.", " in `")) from None


def _resolve(value: Any, steps: Mapping[str, Step], names: Sequence[str]) -> Any:
    """Replace the names of earlier steps by their folders, "*" by all of them; leave paths."""
    if value == "*":
        return {name: str(step.out) for name, step in steps.items()}
    if isinstance(value, dict):
        return {key: _resolve(item, steps, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, steps, names) for item in value]
    if value in steps:
        return str(steps[value].out)
    if value in names:
        raise ConfigError(f"refers to {value!r}, which comes later; move it before this step")
    if isinstance(value, str) and not Path(value).exists():
        raise ConfigError(f"no step and no path is called {value!r}; {_hint(value, steps)}")
    return value


def _decode(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ConfigError(f"expected a {kind.__name__}, got {value!r}")


def _check_keys(table: Mapping[str, Any], known: Sequence[str] | Mapping[str, Any], where: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(
                f"{where}{': ' if where and where[-1] != ' ' else ''}unknown key {key!r}; {_hint(key, known)}"
            )


def _hint(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"


def _override(tables: dict[str, Any], text: str) -> None:
    """Apply `STEP.KEY=VALUE`, the value in TOML, or a bare string."""
    target, sign, value = text.partition("=")
    step, *keys = target.strip().split(".")
    if not sign or not keys:
        raise ConfigError(f"{text!r}: write a setting as STEP.KEY=VALUE")
    if step not in tables:
        raise ConfigError(f"{text!r}: no step is called {step!r}; {_hint(step, tables)}")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    table = tables[step]
    for key in keys[:-1]:
        table = table.setdefault(key, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise ConfigError(f"{text!r}: {'.'.join((step, *keys[:-1]))!r} is no table of settings")
    table[keys[-1]] = parsed
