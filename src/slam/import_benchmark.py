"""Benchmarks as their makers hand them on → a folder of pairs of recordings; no file is copied or renamed.

ZeroSpeech 2021's sWUGGY and sBLIMP, the paired wavs of TWIST and Slam, SALMon, and tables of the user's own.
Pairs are matched by id. Whatever keeps a file from being half of a pair is named and counted.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam.audio import audio_seconds
from slam.benchmark_layouts import SALMON_PARTS, Found, Layout, LayoutName, Split, read_layout
from slam.errors import ConfigError, InputError
from slam.pairs import PairRow, write_pair_rows
from slam.progress import bar, console
from slam.recordings import MANIFEST_FILE
from slam.run import Results, effort, source, stage, write_json_lines

_FAILURES_FILE = "failures.jsonl"
_SHOWN = 20  # kinds whose counts stand in run.json
# as published, four voices each; sBLIMP's follow from 50,400 and 126,000 files
_OFFICIAL_ITEMS = {"swuggy-dev": 5_000, "swuggy-test": 20_000, "sblimp-dev": 6_300, "sblimp-test": 15_750}
_SALMON_PAIRS = 200  # of a part


@dataclass(frozen=True, kw_only=True)
class ImportBenchmarkConfig:
    """Settings of `slam import-benchmark`."""

    source: Path = source(required=True)
    """The folder as it was unpacked, or a table (.csv or .jsonl) of id, better, worse, group."""
    layout: LayoutName = "auto"
    """How it is laid out: swuggy, sblimp (sLM21), salmon, paired-wavs, table; auto finds out."""
    split: Split | None = None
    """Which half of sLM21's sets, where both are there."""
    benchmark: str | None = None
    """Name of the set; if not given, the layout's (swuggy-dev …), or the folder's."""
    max_failures: float = 0.0
    """Share of pairs that may lack a partner or a readable file before the stage fails."""
    num_workers: int = effort(lambda: os.cpu_count() or 1)
    """Files that are looked into at the same time."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_failures <= 1:
            raise ConfigError(f"max_failures = {self.max_failures}: is a share, between 0 and 1")
        if self.num_workers < 1:
            raise ConfigError("num_workers must be at least 1")
        if self.benchmark is not None and (not self.benchmark or "\t" in self.benchmark):
            raise ConfigError(f"benchmark = {self.benchmark!r}: give a name, without tabs")


@dataclass(frozen=True)
class _Sound:
    """A file that was looked into."""

    path: Path
    row: dict[str, Any]  # of the manifest, without an id
    seconds: float = 0.0
    reason: str | None = None  # why it cannot be used


@stage
def import_benchmark(config: ImportBenchmarkConfig, out: Path) -> Results:
    """Describe the pairs of `config.source` in the folder `out`.

    Raises:
        InputError: the layout is unknown, there is no pair, or too many are incomplete or unreadable.
        ConfigError: a half of the set must be chosen.
    """
    layout = read_layout(config.source, config.layout, config.split, config.benchmark)
    whole, failures = [], [{"reason": fault} for fault in layout.faults]
    for pair in layout.pairs:
        if pair.fault is None:
            whole.append(pair)
        else:
            failures.append({"pair": pair.id, "reason": pair.fault})
    sounds = _looked_into(whole, config.num_workers)
    kept = []
    for pair in whole:
        reasons = [r for path in (pair.better[0], pair.worse[0]) if (r := sounds[path].reason) is not None]
        if pair.better[0] == pair.worse[0]:
            reasons.append("its sides are one file")
        if reasons:
            failures.append({"pair": pair.id, "reason": f"pair {pair.id!r}: {'; '.join(reasons)}"})
        else:
            kept.append(pair)
    write_json_lines(out / _FAILURES_FILE, failures)
    _check(config, layout, failures, len(kept), out)
    rows, names = _rows(kept, layout.benchmark)
    write_json_lines(out / MANIFEST_FILE, [{"id": name} | sounds[path].row for path, name in names.items()])
    write_pair_rows(out, rows)
    about = _counts(kept, [sounds[path] for path in names], layout)
    for word in about["remarks"]:
        console.print(f"{config.source}: {word}", style="yellow", soft_wrap=True, markup=False)
    return about | {"num_failures": len(failures), "failures": [row["reason"] for row in failures[:20]]}


def _looked_into(pairs: Sequence[Found], num_workers: int) -> dict[Path, _Sound]:
    """Every file of the pairs, each once: its digest, and whether it is a whole recording."""
    paths = list(dict.fromkeys(path for pair in pairs for path in (pair.better[0], pair.worse[0])))
    with bar("reading", len(paths)) as progress, ThreadPoolExecutor(num_workers) as workers:
        found = {}
        for sound in workers.map(_look_into, paths):
            found[sound.path] = sound
            progress.advance()
    return found


def _look_into(path: Path) -> _Sound:
    try:
        seconds = audio_seconds(path)
        stat = path.stat()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except InputError as error:
        return _Sound(path, {}, reason=str(error))
    except OSError as error:
        return _Sound(path, {}, reason=f"{path}: cannot be read ({error.strerror})")
    row = {
        "audio": str(path.resolve()),
        "seconds": round(seconds, 4),
        "sha256": digest,
        "bytes": stat.st_size,
        "modified_ns": stat.st_mtime_ns,
    }
    return _Sound(path, row, seconds)


def _check(
    config: ImportBenchmarkConfig,
    layout: Layout,
    failures: Sequence[dict[str, Any]],
    num_kept: int,
    out: Path,
) -> None:
    total = len(layout.pairs) + len(layout.faults)
    if len(failures) > config.max_failures * total or not num_kept:
        raise InputError(
            f"{config.source}: {len(failures)} of {total} pairs and stray files of the layout {layout.name} "
            f"cannot be used, the first: {failures[0]['reason']}; all are named in {out / _FAILURES_FILE}"
        )


def _rows(pairs: Sequence[Found], benchmark: str) -> tuple[list[PairRow], dict[Path, str]]:
    """Rows of `pairs.jsonl`, and the name of each recording; one that several pairs share has one name."""
    names: dict[Path, str] = {}
    rows = []
    for pair in pairs:
        for role, (path,) in (("better", pair.better), ("worse", pair.worse)):
            names.setdefault(path, f"{pair.id}-{role}")
        rows.append(
            PairRow(
                id=pair.id,
                benchmark=benchmark,
                kind=pair.kind,
                chosen=names[pair.better[0]],
                rejected=names[pair.worse[0]],
                chosen_start=pair.prompt_seconds,
                rejected_start=pair.prompt_seconds,
                item=pair.item,
                cluster=pair.cluster,
                groups=dict(pair.groups),
            )
        )
    return rows, names


def _counts(pairs: Sequence[Found], sounds: Sequence[_Sound], layout: Layout) -> Results:
    kinds = Counter(pair.kind for pair in pairs)
    voices = {pair.groups["voice"] for pair in pairs if "voice" in pair.groups}
    items = {pair.item or pair.id for pair in pairs}
    return {
        "layout": layout.name,
        "benchmark": layout.benchmark,
        "num_pairs": len(pairs),
        "num_items": len(items),
        "num_voices": len(voices) or None,
        "num_recordings": len(sounds),
        "seconds_of_speech": round(sum(sound.seconds for sound in sounds), 2),
        "num_kinds": len(kinds),
        "kinds": dict(sorted(kinds.items())) if len(kinds) <= _SHOWN else None,
        "remarks": list(_remarks(layout, len(items), kinds)),
    }


def _remarks(layout: Layout, num_items: int, kinds: "Counter[str]") -> Iterator[str]:
    """Where counts are not those of the published set."""
    expected = _OFFICIAL_ITEMS.get(layout.benchmark)
    if expected is not None and num_items != expected:
        yield f"{num_items:,} items; the published {layout.benchmark} has {expected:,}"
    if layout.name == "salmon":
        if missing := [part for part in SALMON_PARTS if part not in kinds]:
            yield f"SALMon's {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not here"
        if odd := [f"{count} of {part}" for part, count in kinds.items() if count != _SALMON_PAIRS]:
            yield f"{', '.join(odd)}; the published SALMon has {_SALMON_PAIRS} pairs of each part"
