"""A file of times → which phone or word is spoken when, in each recording.

TSV or JSON lines, a row a phone or word: the recording's id, its first and last second, its label, and the
speaker where speakers are to be told apart.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.errors import InputError
from slam.run import read_json_lines, read_lines

LABELS_FILES = ("labels.jsonl", "labels.tsv")
_COLUMNS = ("id", "start", "end", "label", "speaker")


@dataclass(frozen=True)
class Label:
    """A phone or word of a recording."""

    start: float  # seconds
    end: float
    name: str
    speaker: str | None = None

    def frames(self, frame_rate: float, num_frames: int) -> slice:
        """The frames whose middle lies in the label, of those that there are."""
        first, last = (min(num_frames, frame_at(second, frame_rate)) for second in (self.start, self.end))
        return slice(first, last)


def frame_at(second: float, frame_rate: float) -> int:
    """The first frame whose middle is not before `second`."""
    # a time that was written with few digits and meant the middle itself must not fall behind it
    return max(0, int(np.ceil(second * frame_rate - 0.5 - 1e-9)))


def read_labels(path: Path) -> dict[str, list[Label]]:
    """The labels of each recording, by its id, in their order in time.

    Args:
        path: a .tsv or .jsonl file, or a folder that holds one called labels. A first line of TSV that
            says id, start, end, label is passed over.

    Raises:
        InputError: the file is missing, a row of it is malformed, or two labels of a recording overlap.
    """
    if path.is_dir():
        path = next((path / name for name in LABELS_FILES if (path / name).is_file()), path / LABELS_FILES[0])
    rows = read_json_lines(path) if path.suffix == ".jsonl" else _tsv_rows(path)
    found: dict[str, list[Label]] = {}
    for number, row in enumerate(rows, 1):
        found.setdefault(str(row.get("id")), []).append(_label(row, f"{path}: row {number}"))
    if not found:
        raise InputError(f"{path}: holds no labels")
    for name, labels in found.items():
        labels.sort(key=lambda label: label.start)
        for one, other in pairwise(labels):
            if other.start < one.end - 1e-6:
                raise InputError(
                    f"{path}: {name}: {one.name!r} and {other.name!r} overlap at {other.start:g} s; "
                    "keep phones and words in files of their own"
                )
    return found


def _tsv_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a TSV file, blank lines and a heading left out."""
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        cells = line.rstrip("\r").split("\t")
        if not line.strip() or (number == 1 and cells[:4] == list(_COLUMNS[:4])):
            continue
        if not 4 <= len(cells) <= len(_COLUMNS):  # noqa: PLR2004 - the speaker may be left out
            raise InputError(f"{path}:{number}: {len(cells)} cells; write {', '.join(_COLUMNS)} with tabs")
        rows.append(dict(zip(_COLUMNS, cells, strict=False)))
    return rows


def _label(row: dict[str, Any], where: str) -> Label:
    for column in _COLUMNS[:4]:
        if row.get(column) in (None, ""):
            raise InputError(f"{where}: has no {column!r}")
    try:
        start, end = float(row["start"]), float(row["end"])
    except (TypeError, ValueError):
        raise InputError(
            f"{where}: start and end are seconds, not {row['start']!r}, {row['end']!r}"
        ) from None
    if not (isfinite(end) and 0 <= start < end):
        raise InputError(f"{where}: from {start:g} to {end:g} s; a label ends after it starts")
    speaker = row.get("speaker")
    return Label(start, end, str(row["label"]), str(speaker) if speaker not in (None, "") else None)


def frame_labels(
    labels: list[Label], numbers: dict[str, int], frame_rate: float, num_frames: int
) -> npt.NDArray[np.int64]:
    """The number of each frame's label, `[num_frames]`; `len(numbers)` where a frame has none.

    Args:
        labels: of one recording, none overlapping another.
        numbers: label → number.
        frame_rate: in Hz.
        num_frames: of the recording.
    """
    found = np.full(num_frames, len(numbers), np.int64)
    for label in labels:
        found[label.frames(frame_rate, num_frames)] = numbers[label.name]
    return found
