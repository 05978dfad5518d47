"""A folder of units and its `pairs.jsonl` → pairs: a prompt with a better and a worse continuation.

DPO trains on pairs and benchmarks rank pairs: one type. On disk a pair names two utterances of the same
folder — the prompt joined with the better side, and with the worse — and when each
side begins, so that the seam is one that was spoken, not glued.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slam.errors import InputError
from slam.run import read_json_lines, write_json_lines
from slam.units import Units, UnitsFolder

PAIRS_FILE = "pairs.jsonl"
_REACH = 4  # frames before the seam in which a tokenizer may hear what follows
_REQUIRED = ("id", "benchmark", "kind", "chosen", "rejected", "chosen_start", "rejected_start")


@dataclass(frozen=True)
class PairRow:
    """A line of `pairs.jsonl`: utterance ids, not sound."""

    id: str
    benchmark: str  # which set it belongs to
    kind: str  # group within the set: a phenomenon, a kind of contradiction
    chosen: str  # id of the utterance: prompt and better side
    rejected: str  # id of the utterance: prompt and worse side
    chosen_start: float  # seconds at which the better side begins; 0 where there is no prompt
    rejected_start: float  # seconds at which the worse side begins
    reason: str = ""  # why the worse side is wrong
    story: str | None = None  # key of the story it was made from


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse continuation, in units."""

    id: str
    benchmark: str
    kind: str
    prompt: Units  # may be empty
    chosen: Units
    rejected: Units


def write_pair_rows(folder: Path, rows: Sequence[PairRow]) -> None:
    """Write `pairs.jsonl` into `folder`."""
    write_json_lines(folder / PAIRS_FILE, [row.__dict__ for row in rows])


def read_pair_rows(folder: Path) -> list[PairRow]:
    """Read `pairs.jsonl`.

    Raises:
        InputError: there is none, it is empty, or a line lacks a field or repeats an id.
    """
    path = folder / PAIRS_FILE
    rows, seen = [], set()
    for number, content in enumerate(read_json_lines(path), 1):
        missing = [name for name in _REQUIRED if name not in content]
        if missing:
            raise InputError(f"{path}:{number}: lacks {', '.join(missing)}")
        for name in ("chosen_start", "rejected_start"):
            if not isinstance(content[name], (int, float)) or content[name] < 0:
                raise InputError(f"{path}:{number}: {name} = {content[name]!r}: expected seconds")
        if content["id"] in seen:
            raise InputError(f"{path}:{number}: a second pair named {content['id']!r}")
        seen.add(content["id"])
        rows.append(PairRow(**{k: v for k, v in content.items() if k in PairRow.__dataclass_fields__}))
    if not rows:
        raise InputError(f"{path}: holds no pairs")
    return rows


def read_pairs(units: UnitsFolder) -> list[Pair]:
    """The pairs of an encoded folder, in the order of `pairs.jsonl`.

    The prompt's units are those of the better utterance before the seam; each continuation's are its own
    utterance's from the seam on, without the rest of a unit that spans the seam: prompt and continuation end
    to end are deduplicated units, as whole files are.

    Raises:
        InputError: a pair names an utterance that is not there, or a side has no units.
    """
    by_name = units.by_name()
    pairs = []
    for row in read_pair_rows(units.path):
        for name in (row.chosen, row.rejected):
            if name not in by_name:
                raise InputError(
                    f"{units.path}: pair {row.id!r} names the utterance {name!r}, which is not here"
                )
        one, other = by_name[row.chosen], by_name[row.rejected]
        early = _heard_early(one, other, row, units.frame_rate)
        prompt, chosen = one.split(round(row.chosen_start * units.frame_rate) - early)
        _, rejected = other.split(round(row.rejected_start * units.frame_rate) - early)
        chosen, rejected = _after(prompt, chosen), _after(prompt, rejected)
        if not (len(chosen) and len(rejected)):
            raise InputError(f"{units.path}: pair {row.id!r} has a side without units after its prompt")
        pairs.append(Pair(row.id, row.benchmark, row.kind, prompt, chosen, rejected))
    return pairs


def _after(prompt: Units, side: Units) -> Units:
    """`side` without a first unit that goes on with the prompt's last."""
    if len(prompt) and len(side) and prompt.ids[-1] == side.ids[0]:
        return Units(side.ids[1:], side.known_durations[1:], side.frame_rate)
    return side


def _heard_early(chosen: Units, rejected: Units, row: PairRow, frame_rate: float) -> int:
    """How many of the prompt's last frames already differ between the sides.

    A tokenizer hears a little beyond a frame, so the last frames before the seam may tell of what follows.
    Left in the prompt, which is the better utterance's, they would favour the better side.
    """
    frames = [round(row.chosen_start * frame_rate), round(row.rejected_start * frame_rate)]
    reach = min(_REACH, *frames)
    one, other = (
        units.expand()[frame - reach : frame] for units, frame in zip((chosen, rejected), frames, strict=True)
    )
    if not reach or len(one) != len(other):
        return 0
    differing = np.flatnonzero(one != other)
    # sides that differ all the way were spoken apart: nothing was heard early
    return reach - int(differing[0]) if len(differing) and differing[0] else 0
