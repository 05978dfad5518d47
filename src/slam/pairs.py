"""A folder of units and its `pairs.jsonl` → pairs: a prompt with a better and a worse continuation.

DPO trains on pairs and benchmarks rank pairs: one type. On disk a pair names two utterances of the same
folder — the prompt joined with the better side, and with the worse — and when each
side begins, so that the seam is one that was spoken, not glued. Where the units of prompt and sides were made
apart, as another toolkit does, the row says instead how many units are the prompt's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slam.errors import InputError
from slam.run import read_json_lines, write_json_lines
from slam.units import Units, UnitsFolder

PAIRS_FILE = "pairs.jsonl"
_REACH = 4  # frames before the seam in which a tokenizer may hear what follows
_REQUIRED = ("id", "benchmark", "kind", "chosen", "rejected")
_STARTS = ("chosen_start", "rejected_start")
_OPTIONAL = ("prompt_units", "item", "cluster", "groups")  # not written where they say nothing


@dataclass(frozen=True)
class PairRow:
    """A line of `pairs.jsonl`: utterance ids, not sound."""

    id: str
    benchmark: str  # which set it belongs to
    kind: str  # group within the set: a phenomenon, a kind of contradiction
    chosen: str  # id of the utterance: prompt and better side
    rejected: str  # id of the utterance: prompt and worse side
    chosen_start: float | None  # seconds at which the better side begins; 0 where there is no prompt
    rejected_start: float | None  # seconds at which the worse side begins
    reason: str = ""  # why the worse side is wrong
    story: str | None = None  # key of the story it was made from
    prompt_units: int | None = None  # in both utterances, where units know the seam; then no start is needed
    item: str | None = None  # what it asks, where several voices ask it: a pair each
    cluster: str | None = None  # what it shares with other pairs, a word say; without one its story or item
    groups: dict[str, str] = field(default_factory=dict)  # more that it is counted by: voice, paradigm …

    @property
    def resampled_with(self) -> str:
        """Pairs of one such key are no independent evidence: a bootstrap draws them together."""
        return self.cluster or self.story or self.item or self.id


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
    written = [
        {name: value for name, value in row.__dict__.items() if name not in _OPTIONAL or value}
        | ({} if row.prompt_units is None else {"prompt_units": row.prompt_units})
        for row in rows
    ]
    write_json_lines(folder / PAIRS_FILE, written)


def read_pair_rows(folder: Path) -> list[PairRow]:
    """Read `pairs.jsonl`.

    Raises:
        InputError: there is none, it is empty, or a line lacks a field or repeats an id.
    """
    path = folder / PAIRS_FILE
    rows, seen = [], set()
    for number, content in enumerate(read_json_lines(path), 1):
        try:
            _check(content)
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
        if content["id"] in seen:
            raise InputError(f"{path}:{number}: a second pair named {content['id']!r}")
        seen.add(content["id"])
        known: dict[str, Any] = dict.fromkeys(_STARTS)
        known |= {k: v for k, v in content.items() if k in PairRow.__dataclass_fields__}
        rows.append(PairRow(**known))
    if not rows:
        raise InputError(f"{path}: holds no pairs")
    return rows


def _check(content: dict[str, Any]) -> None:
    """Raise InputError, without a place, if a row lacks something or its seam cannot be meant."""
    exact = content.get("prompt_units") is not None
    missing = [name for name in (_REQUIRED if exact else _REQUIRED + _STARTS) if name not in content]
    if missing:
        raise InputError(f"lacks {', '.join(missing)}")
    if exact and (type(content["prompt_units"]) is not int or content["prompt_units"] < 0):
        raise InputError(f"prompt_units = {content['prompt_units']!r}: expected how many units")
    for name in ("item", "cluster"):
        if not isinstance(content.get(name), str | None):
            raise InputError(f"{name} = {content[name]!r}: expected a text")
    groups = content.get("groups", {})
    if not isinstance(groups, dict) or not all(isinstance(value, str) for value in groups.values()):
        raise InputError(f"groups = {groups!r}: expected a table of texts")
    for name in _STARTS:
        start = content.get(name)
        if not (exact and start is None) and (not isinstance(start, (int, float)) or start < 0):
            raise InputError(f"{name} = {start!r}: expected seconds")


def read_pairs(units: UnitsFolder) -> list[Pair]:
    """The pairs of an encoded folder, in the order of `pairs.jsonl`.

    The prompt's units are those of the better utterance before the seam; each continuation's are its own
    utterance's from the seam on, without the rest of a unit that spans the seam: prompt and continuation end
    to end are deduplicated units, as whole files are. Where `prompt_units` counts the prompt's units, they
    and all others are given as they are.

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
        prompt, chosen, rejected = _parts(by_name[row.chosen], by_name[row.rejected], row)
        if not (len(chosen) and len(rejected)):
            raise InputError(f"{units.path}: pair {row.id!r} has a side without units after its prompt")
        pairs.append(Pair(row.id, row.benchmark, row.kind, prompt, chosen, rejected))
    return pairs


def _parts(one: Units, other: Units, row: PairRow) -> tuple[Units, Units, Units]:
    """Prompt, better and worse side, of the better and the worse utterance."""
    if row.prompt_units is not None:
        before, after = slice(row.prompt_units), slice(row.prompt_units, None)
        return _window(one, before), _window(one, after), _window(other, after)
    assert row.chosen_start is not None  # noqa: S101 - was checked when it was read
    assert row.rejected_start is not None  # noqa: S101
    frames = [round(start * one.frame_rate) for start in (row.chosen_start, row.rejected_start)]
    early = heard_early(one, other, frames)
    prompt, chosen = one.split(frames[0] - early)
    _, rejected = other.split(frames[1] - early)
    return prompt, _after(prompt, chosen), _after(prompt, rejected)


def _window(units: Units, window: slice) -> Units:
    durations = None if units.durations is None else units.durations[window]
    return Units(units.ids[window], durations, units.frame_rate)


def _after(prompt: Units, side: Units) -> Units:
    """`side` without a first unit that goes on with the prompt's last."""
    if len(prompt) and len(side) and prompt.ids[-1] == side.ids[0]:
        return Units(side.ids[1:], side.known_durations[1:], side.frame_rate)
    return side


def heard_early(chosen: Units, rejected: Units, frames: Sequence[int]) -> int:
    """How many of the prompt's last frames, before the seam of each, already differ between the sides.

    A tokenizer hears a little beyond a frame, so the last frames before the seam may tell of what follows.
    Left in the prompt, which is the better utterance's, they would favour the better side.
    """
    reach = min(_REACH, *frames)
    one, other = (
        units.expand()[frame - reach : frame] for units, frame in zip((chosen, rejected), frames, strict=True)
    )
    if not reach or len(one) != len(other):
        return 0
    differing = np.flatnonzero(one != other)
    # sides that differ all the way were spoken apart: nothing was heard early
    return reach - int(differing[0]) if len(differing) and differing[0] else 0
