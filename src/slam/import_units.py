"""Units that the reference toolkit (slamkit) wrote → units: its features, tokens or pairs, JSON lines.

Corpora are encoded once and at great cost, so those that are there already can be trained on here. The files
do not say which tokenizer made their units: the user says so, by a folder that holds it or by a name.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam.errors import ConfigError, InputError
from slam.imported import Imported
from slam.origins import check_named, named_origin, origin_in
from slam.pairs import write_pair_rows
from slam.progress import bar
from slam.run import Results, replacing, source, stage, write_json_lines
from slam.slamkit import numbered_lines
from slam.units import TOKENIZER_FOLDER, Units, finish_units, write_shard

_FAILURES_FILE = "failures.jsonl"


@dataclass(frozen=True, kw_only=True)
class ImportUnitsConfig:
    """Settings of `slam import-units`."""

    files: tuple[Path, ...] = source(required=True)
    """JSONL files of the reference toolkit, in order: features (units and durations), tokens, or pairs."""
    tokenizer_from: Path | None = source()
    """A folder of units, or one with a tokenizer, of the tokenizer that made the files' units."""
    tokenizer: str | None = None
    """Or a name for that tokenizer; units join units of the same name, `num_units` and `frame_rate`."""
    num_units: int | None = None
    """How many units that tokenizer has; needed with `tokenizer`."""
    frame_rate: float | None = None
    """Its frames a second, before duplicates are merged; needed with `tokenizer`."""
    benchmark: str = "preferences"
    """Name of the set, where the files hold preference pairs."""
    shard_size: int = 10_000
    """Utterances in a file of the folder."""
    max_failures: float = 0.0
    """Share of lines that may be malformed before the stage fails."""

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError("files: name at least one JSONL file")
        if not self.benchmark or "\t" in self.benchmark:
            raise ConfigError(f"benchmark = {self.benchmark!r}: give a name, without tabs")
        if self.shard_size < 1:
            raise ConfigError("shard_size must be more than 0")
        if not 0 <= self.max_failures <= 1:
            raise ConfigError(f"max_failures = {self.max_failures}: is a share, between 0 and 1")
        check_named(
            self.tokenizer_from,
            {"tokenizer": self.tokenizer, "num_units": self.num_units, "frame_rate": self.frame_rate},
            "the files do not say what made their units",
        )


@stage
def import_units(config: ImportUnitsConfig, out: Path) -> Results:
    """Import every line of `config.files` into the folder `out`.

    Raises:
        InputError: a file cannot be read, or too large a share of its lines is malformed.
        MismatchError: `tokenizer_from` was changed.
    """
    if config.tokenizer_from is not None:
        origin = origin_in(config.tokenizer_from)
    else:
        origin = named_origin(str(config.tokenizer), config.num_units or 0, config.frame_rate or 0)
    tally = Imported(origin, config.benchmark)
    try:
        num_shards = _write_shards(config, out, tally)
    except InputError:  # nothing half-written stays
        shutil.rmtree(out / "shards", ignore_errors=True)
        raise
    write_json_lines(out / _FAILURES_FILE, tally.failures)
    if len(tally.failures) > config.max_failures * tally.num_lines:
        shutil.rmtree(out / "shards", ignore_errors=True)
        raise InputError(
            f"{len(tally.failures)} of {tally.num_lines} lines are malformed, the first: "
            f"{_where(tally.failures[0])}; all are named in {out / _FAILURES_FILE}"
        )
    if tally.pairs:
        write_pair_rows(out, tally.pairs)
    if config.tokenizer_from is not None:
        _copy_tokenizer(config.tokenizer_from / TOKENIZER_FOLDER, out / TOKENIZER_FOLDER)
    has_durations = tally.has_durations is not False
    finish_units(
        out,
        num_units=origin.num_units,
        tokenizer=origin.name,
        fingerprint=origin.fingerprint,
        frame_rate=origin.frame_rate,
        num_shards=num_shards,
        durations=has_durations,
    )
    return {
        "num_utterances": tally.num_utterances,
        "num_empty": tally.num_empty,
        "num_failures": len(tally.failures),
        "failures": [_where(row) for row in tally.failures[:20]],
        "num_units": tally.num_units,
        "num_merged": tally.num_merged,
        "seconds_of_speech": round(tally.num_frames / origin.frame_rate, 2) if has_durations else None,
        "tokenizer": origin.name,
        "tokenizer_fingerprint": origin.fingerprint,
    } | ({"num_pairs": len(tally.pairs), "num_seam_repeats": tally.num_seam_repeats} if tally.pairs else {})


def _write_shards(config: ImportUnitsConfig, out: Path, tally: Imported) -> int:
    """Write the utterances of all files in order; gives the number of shards."""
    units: list[Units] = []
    rows: list[dict[str, Any]] = []
    num_shards = 0
    with bar("importing", sum(_size(path) for path in config.files)) as progress:
        for path in config.files:
            for number, line in numbered_lines(path):
                progress.advance(len(line))
                if not line.strip():
                    continue
                try:
                    utterances = tally.take(line, (path, number))
                except InputError as error:
                    failure = {"file": str(path), "line": number, "reason": str(error)}
                    if not config.max_failures:
                        raise InputError(_where(failure)) from None
                    tally.failures.append(failure)
                    continue
                for row, imported in utterances:
                    rows.append(row)
                    units.append(imported)
                if len(units) >= config.shard_size:
                    write_shard(out, num_shards, units, rows)
                    units, rows, num_shards = [], [], num_shards + 1
    if not tally.num_lines:
        raise InputError(f"{config.files[0]}: holds no units")
    if units:
        write_shard(out, num_shards, units, rows)
        num_shards += 1
    return num_shards


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _where(failure: dict[str, Any]) -> str:
    return f"{failure['file']}:{failure['line']}: {failure['reason']}"


def _copy_tokenizer(folder: Path, out: Path) -> None:
    """The tokenizer's files, so that more can be encoded by it and its units spoken; it may have none."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with replacing(out / path.relative_to(folder)) as partial:
                shutil.copyfile(path, partial)
