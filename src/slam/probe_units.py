"""Folders of units, and labels or none → a table by which to choose a tokenizer, and a page of it.

Rates, entropies and durations need only the units. With phones or words and their times it is seen what the
units tell of them: purity, PNMI, and how well segments of one label are told from those of another (ABX).
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np

from slam.errors import ConfigError, InputError
from slam.labels import Label, frame_labels, read_labels
from slam.metrics.unit_quality import (
    Speakers,
    abx,
    agreement,
    bigram_entropy,
    distances,
    entropy,
    perplexity,
)
from slam.plots import COLOURS, figure, svg
from slam.progress import bar
from slam.run import Results, atomic_write, read_json, source, stage, write_json
from slam.units import UNITS_FILE, Ids, UnitsFolder, deduplicate, read_rows, read_units

PROBE_FILE = "probe.json"
PAGE_FILE = "probe.html"
MODES: tuple[Speakers, ...] = ("any", "within", "across")
_LONGEST_MS = 800  # on the page; what lasts longer is counted there
_SHOWN_LABELS = 30


@dataclass(frozen=True, kw_only=True)
class ProbeUnitsConfig:
    """Settings of `slam probe-units`."""

    units: dict[str, Path] = source(required=True)
    """The units to compare: the name to report → folder that `slam encode` wrote."""
    labels: Path | None = source()
    """Phones or words and their times: a .tsv or .jsonl file, or a folder with a file called labels."""
    abx_labels: int = 100
    """How many labels, the most frequent ones, ABX compares."""
    abx_segments: int = 10
    """Segments of each label that ABX compares, drawn at random."""
    seed: int = 0
    """Decides the segments and the bootstrap's resamples."""

    def __post_init__(self) -> None:
        if not self.units:
            raise ConfigError("units: name at least one folder of units")
        if self.abx_labels < 2 or self.abx_segments < 2:  # noqa: PLR2004 - A and X, and B of another label
            raise ConfigError("abx_labels and abx_segments must each be at least 2")


@dataclass(frozen=True)
class Segment:
    """A label of a recording."""

    recording: str
    label: Label


@stage
def probe_units(config: ProbeUnitsConfig, out: Path) -> Results:
    """Write `probe.json` and `probe.html` into the folder `out`.

    Raises:
        InputError: a folder holds no units, the labels are malformed, or none of them fits the units.
    """
    opened = {name: read_units(folder) for name, folder in config.units.items()}
    labels = read_labels(config.labels) if config.labels is not None else {}
    rows = []
    with bar("probing", len(opened)) as progress:
        shared = set.intersection(*(set(folder.names) for folder in opened.values()))
        chosen = _segments(config, {name: labels[name] for name in labels if name in shared}, opened)
        for name, folder in opened.items():
            row = {"name": name, **_statistics(folder)}
            if labels:
                row |= {"labels": _labelled(folder, labels), "abx": _abx(config, folder, chosen)}
            rows.append(row)
            progress.advance()
    write_json(out / PROBE_FILE, rows)
    page = _page(rows, len(shared))
    atomic_write(out / PAGE_FILE, page)
    return {
        "num_recordings_shared": len(shared),
        "probes": {row["name"]: _summary(row) for row in rows},
        "page_bytes": len(page.encode()),
    }


def _statistics(folder: UnitsFolder) -> dict[str, Any]:
    """What the units alone tell."""
    num_units = folder.vocabulary.num_units
    num_shards = read_json(folder.path / UNITS_FILE)["num_shards"]
    if not len(folder.ids):
        raise InputError(f"{folder.path}: holds no unit; its recordings are too short")
    counts = np.bincount(folder.ids, minlength=num_units)
    pairs = bigram_entropy((folder[index].ids for index in range(len(folder))), num_units)
    bits, bigram_bits = entropy(counts) / log(2), pairs / log(2)
    statistics = {
        "tokenizer": folder.tokenizer,
        "tokenizer_fingerprint": folder.tokenizer_fingerprint,
        "frame_rate": folder.frame_rate,
        "num_recordings": len(folder),
        "num_units": len(folder.ids),
        "vocabulary": num_units,
        "vocabulary_used": int((counts > 0).sum()),
        "unit_perplexity": perplexity(counts),
        "bits_per_unit": bits,
        "bigram_bits_per_unit": bigram_bits,
        "bigram_perplexity": exp(pairs),
        "frequencies": sorted(counts.tolist(), reverse=True),
    }
    lasted = [row["seconds"] for row in read_rows(folder.path, num_shards) if "seconds" in row]
    if len(lasted) == len(folder):  # imported units may come without times
        rate = len(folder.ids) / sum(lasted)
        statistics |= {"seconds_of_speech": round(sum(lasted), 2), "units_per_second": rate}
        statistics |= {"bits_per_second": rate * bits, "bigram_bits_per_second": rate * bigram_bits}
    if folder.durations is not None:
        statistics |= _durations(folder.durations, folder.frame_rate)
    return statistics


def _durations(frames: Ids, frame_rate: float) -> dict[str, Any]:
    """How long units last, where that was kept."""
    return {
        "mean_duration_ms": 1000 * float(frames.mean()) / frame_rate,
        "durations": np.bincount(frames).tolist(),  # units of 0, 1, 2 … frames
    }


def _labelled(folder: UnitsFolder, labels: Mapping[str, list[Label]]) -> dict[str, Any]:
    """How far units and labels tell of each other, frame by frame; and which labels could not be used."""
    names = sorted({label.name for found in labels.values() for label in found})
    numbers = {name: number for number, name in enumerate(names)}
    by_name = folder.by_name()
    here = [name for name in labels if name in by_name]
    if not here:
        raise InputError(
            f"{folder.path}: none of its recordings has labels; the first label is {next(iter(labels))!r}, "
            f"the first recording {folder.names[0]!r}; give labels of these recordings"
        )
    units, found, empty = [], [], 0
    for name in here:
        frames = by_name[name].expand()
        units.append(frames)
        found.append(frame_labels(labels[name], numbers, folder.frame_rate, len(frames)))
        empty += sum(_is_empty(label, folder.frame_rate, len(frames)) for label in labels[name])
    of_frames = np.concatenate(found)
    known = of_frames < len(names)
    agreed = agreement(np.concatenate(units)[known], of_frames[known])
    elsewhere = sum(len(found) for name, found in labels.items() if name not in by_name)
    total = sum(map(len, labels.values()))
    return {
        "kinds_of_label": len(names),
        "num_labels": total - elsewhere - empty,
        "num_recordings": len(here),
        "labels_of_other_recordings": elsewhere,
        "labels_without_a_frame": empty,
        "frames_without_label": int((~known).sum()),
        **(asdict(agreed) if agreed else {}),
    }


def _is_empty(label: Label, frame_rate: float, num_frames: int) -> bool:
    frames = label.frames(frame_rate, num_frames)
    return not range(num_frames)[frames]


def _segments(
    config: ProbeUnitsConfig, labels: Mapping[str, list[Label]], opened: Mapping[str, UnitsFolder]
) -> list[Segment]:
    """The segments that ABX compares: the same for all folders, each with a frame in every one of them."""
    lengths = []
    for folder in opened.values():
        units = folder.by_name()
        lengths.append((folder.frame_rate, {name: units[name].num_frames for name in labels}))
    found: dict[str, list[Segment]] = {}
    for name, spoken in labels.items():
        for label in spoken:
            if not any(_is_empty(label, rate, frames[name]) for rate, frames in lengths):
                found.setdefault(label.name, []).append(Segment(name, label))
    frequent = Counter({name: len(segments) for name, segments in sorted(found.items())})
    generator = random.Random(config.seed)  # noqa: S311 - reproducible, not secret
    chosen = []
    for name, count in frequent.most_common(config.abx_labels):
        chosen += generator.sample(found[name], min(count, config.abx_segments))
    return chosen


def _abx(config: ProbeUnitsConfig, folder: UnitsFolder, segments: Sequence[Segment]) -> dict[str, Any]:
    """The error of each mode that has triples, and that of each label."""
    by_name = folder.by_name()
    rows = []
    for segment in segments:
        frames = by_name[segment.recording].expand()
        cut = frames[segment.label.frames(folder.frame_rate, len(frames))]
        rows.append(deduplicate(cut, folder.frame_rate).ids)
    names = sorted({segment.label.name for segment in segments})
    labels = np.array([names.index(segment.label.name) for segment in segments], np.int64)
    voices = [segment.label.speaker for segment in segments]
    known = None not in voices  # else some could be somebody's who is known
    speakers = np.unique([str(voice) for voice in voices], return_inverse=True)[1] if known else None
    between = distances(rows)
    found: dict[str, Any] = {"num_segments": len(segments), "kinds_of_label": len(names)}
    for mode in MODES if known else MODES[:1]:
        result = abx(between, labels, speakers, mode, seed=config.seed)
        if result is not None:
            by_label = {names[label]: error for label, error in result.by_label.items()}
            found[mode] = asdict(result.error) | {"num_triples": result.num_triples, "by_label": by_label}
    return found


def _summary(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures to choose by."""
    keys = ("units_per_second", "vocabulary_used", "unit_perplexity", "bigram_bits_per_second")
    found = {key: round(row[key], 2) for key in keys if key in row}
    if "pnmi" in row.get("labels", {}):
        found["pnmi"] = round(row["labels"]["pnmi"], 4)
    if "any" in row.get("abx", {}):
        found["abx_error"] = round(row["abx"]["any"]["value"], 4)
    return found


def _page(rows: Sequence[Mapping[str, Any]], num_shared: int) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("slam", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("probe.html.j2").render(
        rows=rows,
        num_shared=num_shared,
        modes=[mode for mode in MODES if any(mode in row.get("abx", {}) for row in rows)],
        durations=_duration_plot(rows) if any("durations" in row for row in rows) else None,
        longest_ms=_LONGEST_MS,
        frequencies=_frequency_plot(rows),
        hardest=_hardest(rows),
    )


def _duration_plot(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Which share of the units lasts how long, a line a folder."""
    drawing, axes = figure()
    for index, row in enumerate(rows):
        if "durations" not in row:
            continue
        counts = np.array(row["durations"][1:])
        lasted = 1000 * np.arange(1, len(counts) + 1) / row["frame_rate"]
        shown = lasted <= _LONGEST_MS
        longer = 100 * counts[~shown].sum() / counts.sum()
        label = f"{row['name']} ({longer:.2g} % longer)" if longer else row["name"]
        axes.plot(
            lasted[shown], 100 * counts[shown] / counts.sum(), marker="o", markersize=4, label=label,
            color=COLOURS[index % len(COLOURS)],
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("% of the units")
    axes.legend(frameon=False)
    return svg(drawing)


def _frequency_plot(rows: Sequence[Mapping[str, Any]]) -> Any:
    """How often each unit stands, the commonest first."""
    drawing, axes = figure()
    for index, row in enumerate(rows):
        counts = np.array([count for count in row["frequencies"] if count])
        share = 100 * counts / counts.sum()
        axes.plot(np.arange(1, len(share) + 1), share, label=row["name"], color=COLOURS[index % len(COLOURS)])
    axes.set_yscale("log")
    axes.set_xlim(left=1)
    axes.set_xlabel("unit, the commonest first")
    axes.set_ylabel("% of the units")
    axes.legend(frameon=False)
    return svg(drawing)


def _hardest(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float | None]]]:
    """The labels that ABX confuses most, each with its errors, a folder each."""
    errors = [row.get("abx", {}).get("any", {}).get("by_label", {}) for row in rows]
    names = sorted({name for found in errors for name in found})
    table = [(name, [found.get(name) for found in errors]) for name in names]
    table.sort(key=lambda line: -max(error for error in line[1] if error is not None))
    return table[:_SHOWN_LABELS]
