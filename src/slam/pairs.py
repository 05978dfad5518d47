"""A folder of units and its `pairs.jsonl` → pairs: a prompt with a better and a worse continuation.

DPO trains on pairs and benchmarks rank pairs: one type. On disk a pair names two utterances of the same
folder — the prompt joined with the better side, and with the worse — and when each
side begins, so that the seam is one that was spoken, not glued.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slam.errors import InputError
from slam.run import read_json_lines, write_json_lines
from slam.units import Units, UnitsFolder

PAIRS_FILE = "pairs.jsonl"
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
    utterance's from the seam on.

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
        prompt, chosen = by_name[row.chosen].split(round(row.chosen_start * units.frame_rate))
        _, rejected = by_name[row.rejected].split(round(row.rejected_start * units.frame_rate))
        if not (len(chosen) and len(rejected)):
            raise InputError(f"{units.path}: pair {row.id!r} has a side without units after its prompt")
        pairs.append(Pair(row.id, row.benchmark, row.kind, prompt, chosen, rejected))
    return pairs
