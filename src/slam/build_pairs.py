"""Preferences that others made → pairs to speak or to encode: SWAG, HellaSwag, lines of text or recordings.

Pairs of text are written for `slam synthesize`, which speaks prompt and side as one utterance of one voice.
Pairs of recordings are joined here, as they are. What cannot teach a preference is left out and counted.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.audio import audio_seconds
from slam.errors import ConfigError, InputError
from slam.joined_recordings import Joined, join_pair
from slam.pair_filters import Filters, balance, length_accuracy
from slam.pair_layouts import Candidate, LayoutName, Part, Reading, Sides, read_candidate, read_rows
from slam.pairs import PairRow, write_pair_rows
from slam.progress import bar
from slam.recordings import MANIFEST_FILE
from slam.run import Results, effort, source, stage, write_json_lines

TEXT_PAIRS_FILE = "text-pairs.jsonl"
_FAILURES_FILE, _LEFT_OUT_FILE = "failures.jsonl", "left-out.jsonl"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_AUDIO = Path("audio")
_FOLDER_SIZE = 1000  # pairs whose sound files share a folder
_HUNDREDTHS = 100  # of a second, in which the lengths of recordings are compared
# every reason for which a pair is left out, as the results name it
_REASONS = {
    "not_gold": "num_not_gold",
    "without_label": "num_without_label",
    "with_markup": "num_with_markup",
    "empty": "num_empty",
    "equal": "num_equal",
    "near_identical": "num_near_identical",
    "duplicate": "num_duplicates",
    "repetitive": "num_repetitive",
    "not_drawn": "num_not_drawn",
    "length": "num_dropped_for_length",
}


@dataclass(frozen=True, kw_only=True)
class BuildPairsConfig:
    """Settings of `slam build-pairs`."""

    files: tuple[Path, ...] = source(required=True)
    """Files of pairs, in order: .csv or .jsonl, or either with .gz."""
    layout: LayoutName
    """What their rows hold: swag, hellaswag, or pairs (prompt, chosen and rejected)."""
    sides: Sides = "text"
    """What prompt, chosen and rejected are, in the layout pairs: text, or paths of recordings."""
    benchmark: str = "preferences"
    """Name of the set."""
    gold_only: bool = True
    """With SWAG, take only endings that were found, and none that a model wrote to be right."""
    max_auto_bleu: float | None = 0.3
    """Keep pairs of whose prompt and chosen text fewer bigrams than this share are repeated (auto-BLEU-2)."""
    max_similarity: float | None = 0.97
    """Most of the letters that the sides may share in order (1 less the edits a letter)."""
    balance_lengths: bool = True
    """Leave out pairs, by the seed, until chosen sides are as often longer as shorter, by as much."""
    num_pairs: int | None = None
    """At most so many pairs, drawn by the seed before lengths are balanced."""
    sample_rate: int = 16_000
    """Sample rate in Hz of recordings that are joined."""
    seed: int = 0
    """Decides which wrong ending is taken, and which pairs are left out."""
    max_failures: float = 0.0
    """Share of rows that may be malformed, or whose recordings cannot be read, before the stage fails."""
    num_workers: int = effort(lambda: os.cpu_count() or 1)
    """Recordings that are joined at the same time."""

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError("files: name at least one file of pairs")
        if not _NAME.fullmatch(self.benchmark):
            raise ConfigError(
                f"benchmark = {self.benchmark!r}: use letters, digits, - _ . only; it names files"
            )
        if self.sides == "audio" and self.layout != "pairs":
            raise ConfigError(f'sides = "audio" goes with layout = "pairs"; {self.layout!r} is text')
        for name in ("max_auto_bleu", "max_similarity", "max_failures"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} = {value}: is a share, between 0 and 1")
        for name, least in (("num_pairs", 1), ("sample_rate", 8000), ("num_workers", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} = {value}: must be at least {least}")

    @property
    def reading(self) -> Reading:
        """How rows are read."""
        return Reading(layout=self.layout, sides=self.sides, gold_only=self.gold_only, seed=self.seed)


@dataclass(frozen=True)
class _Kept:
    """A pair that stays, so far."""

    id: str
    file: Path
    line: int
    pair: Candidate
    longer: int  # by how much the chosen side is: characters of text, or hundredths of a second


@dataclass
class _Tally:
    """What became of the rows."""

    num_rows: int = 0
    left_out: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def leave_out(self, file: Path, line: int, why: str) -> None:
        self.left_out.append({"file": str(file), "line": line, "why": why})

    def fail(self, file: Path, line: int, reason: str, config: BuildPairsConfig) -> None:
        """Note a row that cannot be read.

        Raises:
            InputError: none may be.
        """
        failure = {"file": str(file), "line": line, "reason": reason}
        if not config.max_failures:
            raise InputError(_where(failure))
        self.failures.append(failure)

    @property
    def counts(self) -> dict[str, int]:
        found = Counter(row["why"] for row in self.left_out)
        return {named: found[why] for why, named in _REASONS.items()}


@stage
def build_pairs(config: BuildPairsConfig, out: Path) -> Results:
    """Write the pairs of `config.files` into the folder `out`.

    Raises:
        InputError: a file cannot be read, too large a share of its rows is malformed, or no pair is left.
    """
    tally = _Tally()
    found = list(_passed(config, tally))
    drawn = _drawn(found, config.num_pairs, config.seed)
    kept = balance(drawn, _longer(drawn), config.seed) if config.balance_lengths else drawn
    for why, before, after in (("not_drawn", found, drawn), ("length", drawn, kept)):
        stay = {one.id for one in after}
        for one in before:
            if one.id not in stay:
                tally.leave_out(one.file, one.line, why)
    try:
        if config.sides == "audio":
            rows, pairs = _join_all(kept, config, out, tally)
            written = {row.id for row in pairs}
            kept = [one for one in kept if one.id in written]
        _check(config, out, tally, len(kept))
    except InputError:  # nothing half-written stays
        shutil.rmtree(out / _AUDIO, ignore_errors=True)
        raise
    if config.sides == "audio":
        write_json_lines(out / MANIFEST_FILE, rows)
        write_pair_rows(out, pairs)
    else:
        write_json_lines(out / TEXT_PAIRS_FILE, [_text_row(one, config.benchmark) for one in kept])
    write_json_lines(out / _FAILURES_FILE, tally.failures)
    write_json_lines(out / _LEFT_OUT_FILE, tally.left_out)
    unit = 1 if config.sides == "text" else 1 / _HUNDREDTHS
    return {
        "num_rows": tally.num_rows,
        "num_pairs": len(kept),
        "num_failures": len(tally.failures),
        "failures": [_where(row) for row in tally.failures[:20]],
        **tally.counts,
        "length_accuracy_before": round(length_accuracy(_longer(drawn)), 4),
        "length_accuracy": round(length_accuracy(_longer(kept)), 4),
        "mean_longer": round(float(_longer(kept).mean()) * unit, 4),
    }


def _passed(config: BuildPairsConfig, tally: _Tally) -> Iterator[_Kept]:
    """The pairs that no filter refuses, in order; the others are counted."""
    filters = Filters(config.max_similarity, config.max_auto_bleu)
    for file in config.files:
        for line, raw in read_rows(file):
            tally.num_rows += 1
            try:
                found = read_candidate(raw, file, config.reading)
                why = found if isinstance(found, str) else filters.refuse(found)
                longer = 0 if isinstance(found, str) or why else _difference(found)
            except InputError as error:
                tally.fail(file, line, str(error), config)
                continue
            if isinstance(found, str) or why:
                tally.leave_out(file, line, str(why))
            else:
                yield _Kept(f"{config.benchmark}-{tally.num_rows:07d}", file, line, found, longer)


def _difference(pair: Candidate) -> int:
    """By how much the chosen side is longer: characters, or hundredths of a second."""
    if pair.prompt.audio is not None:
        audio_seconds(pair.prompt.audio)  # that it can be read
    return _length(pair.chosen) - _length(pair.rejected)


def _length(part: Part) -> int:
    return len(part.text) if part.audio is None else round(_HUNDREDTHS * audio_seconds(part.audio))


def _longer(kept: Sequence[_Kept]) -> npt.NDArray[np.int64]:
    return np.array([one.longer for one in kept], np.int64)


def _drawn(found: list[_Kept], count: int | None, seed: int) -> list[_Kept]:
    """`count` of the pairs, in their order, or all."""
    if count is None or len(found) <= count:
        return found
    numbers = np.random.default_rng(seed).choice(len(found), count, replace=False)
    return [found[number] for number in sorted(numbers.tolist())]


def _text_row(one: _Kept, benchmark: str) -> dict[str, Any]:
    """A pair as `slam synthesize` reads it."""
    row = {"id": one.id, "benchmark": benchmark} | asdict(one.pair)
    row |= {part: row[part]["text"] for part in ("prompt", "chosen", "rejected")}
    if row["voice"] is None:
        del row["voice"]
    return row | {"origin": f"{one.file.name}:{one.line}"}


def _join_all(
    kept: Sequence[_Kept], config: BuildPairsConfig, out: Path, tally: _Tally
) -> tuple[list[dict[str, Any]], list[PairRow]]:
    """Write each pair's two sound files; gives the rows of the manifest and of `pairs.jsonl`."""
    rows: list[dict[str, Any]] = []
    pairs: list[PairRow] = []

    def join(number: int) -> Joined | str:
        folder = _AUDIO / f"{number // _FOLDER_SIZE:05d}"
        try:
            return join_pair(kept[number].pair, kept[number].id, config.sample_rate, out, folder)
        except InputError as error:
            return str(error)

    workers = ThreadPoolExecutor(config.num_workers)
    try:
        with bar("joining", len(kept)) as progress:
            for one, joined in zip(kept, workers.map(join, range(len(kept))), strict=True):
                progress.advance()
                if isinstance(joined, str):
                    tally.fail(one.file, one.line, joined, config)
                    continue
                rows += [row | {"source": config.benchmark} for row in joined.rows]
                chosen, rejected = (row["id"] for row in joined.rows)
                sides = (chosen, rejected, joined.seam_seconds, joined.seam_seconds)
                pairs.append(
                    PairRow(one.id, config.benchmark, one.pair.kind, *sides, one.pair.reason, one.pair.story)
                )
    finally:
        workers.shutdown(cancel_futures=True)
    return rows, pairs


def _check(config: BuildPairsConfig, out: Path, tally: _Tally, num_pairs: int) -> None:
    """Raise InputError if too much is malformed or nothing is left."""
    if len(tally.failures) > config.max_failures * tally.num_rows:
        write_json_lines(out / _FAILURES_FILE, tally.failures)
        raise InputError(
            f"{len(tally.failures)} of {tally.num_rows} rows are malformed, the first: "
            f"{_where(tally.failures[0])}; all are named in {out / _FAILURES_FILE}"
        )
    if not num_pairs:
        counts = [f"{count} {name.removeprefix('num_')}" for name, count in tally.counts.items() if count]
        found = f" ({', '.join(counts)})".replace("_", " ") if counts else ""
        raise InputError(f"{config.files[0]}: no pair is left of {tally.num_rows} rows{found}")


def _where(failure: dict[str, Any]) -> str:
    return f"{failure['file']}:{failure['line']}: {failure['reason']}"
