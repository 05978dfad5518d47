"""A file of preferences that others made → its rows: a prompt with a better and a worse continuation each.

Four layouts: SWAG's (Zellers et al. 2018), HellaSwag's (2019), whose rows have one right ending and several
wrong ones, BLiMP's (Warstadt et al. 2020), and plain pairs. Files are CSV or JSON lines, packed with gzip or
not. What is unusable is named.
"""

import csv
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from slam.errors import InputError
from slam.text_files import byte_lines, text_lines

LayoutName = Literal["swag", "hellaswag", "blimp", "pairs", "words", "stories"]
Sides = Literal["text", "audio"]
Unlabelled = Literal["not_gold", "without_label", "with_markup"]

_MARKUP = re.compile(r"\[[^\]]*\]|https?:|www\.")
_NO_LABEL = (None, "", -1, "-1")  # as the published test parts have it
Raw = bytes | dict[str, Any]  # a line of JSON, or a row of CSV
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A prompt or a side."""

    text: str = ""  # on one line; empty where only the sound is known
    audio: Path | None = None

    def __bool__(self) -> bool:
        """Whether there is anything to hear."""
        return bool(self.text) or self.audio is not None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What a row says, before anything is asked of it."""

    prompt: Part
    chosen: Part
    rejected: Part
    kind: str = "all"
    reason: str = ""
    story: str | None = None
    voice: str | None = None
    cluster: str | None = None  # what it shares with other pairs
    groups: Mapping[str, str] = field(default_factory=dict)  # more that it is counted by
    bare: bool = False  # each side is an utterance by itself: no prompt is missed


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How rows are read."""

    layout: LayoutName
    sides: Sides
    gold_only: bool
    seed: int
    wrong_endings: int = 1
    columns: Mapping[str, str] = field(default_factory=dict)  # ours → a row's


def read_rows(path: Path) -> Iterator[tuple[int, Raw]]:
    """The rows of a file with the number of their line, blank ones passed over; one in memory at a time.

    Raises:
        InputError: the file cannot be read, or is of another kind.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in (".csv", ".jsonl", ".json"):
        raise InputError(f"{path}: expected a .csv or .jsonl file, or either with .gz")
    if suffix == ".csv":
        yield from _csv_rows(path)
        return
    for number, line in enumerate(byte_lines(path), 1):
        if line.strip():
            yield number, line


def _csv_rows(path: Path) -> Iterator[tuple[int, Raw]]:
    reader = csv.DictReader(text_lines(path), strict=True)
    try:
        for row in reader:
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.reader.line_num}: not CSV ({error})") from None


class _Swag(msgspec.Struct, rename={"gold_source": "gold-source"}):
    sent1: str
    sent2: str
    ending0: str
    ending1: str
    ending2: str
    ending3: str
    label: int | str | None = None
    gold_source: str | UnsetType = UNSET


class _HellaSwag(msgspec.Struct):
    endings: Annotated[list[str], Meta(min_length=2)]
    ctx_a: str | UnsetType = UNSET
    ctx_b: str = ""
    context: str | UnsetType = UNSET
    label: int | str | None = None


class _Blimp(msgspec.Struct, rename={"paradigm": "UID", "phenomenon": "linguistics_term"}):
    sentence_good: str
    sentence_bad: str
    paradigm: str
    phenomenon: str


class _Recording(msgspec.Struct):
    audio: str | UnsetType = UNSET
    text: str | UnsetType = UNSET


class _Pair(msgspec.Struct):
    prompt: str | _Recording | UnsetType = UNSET
    chosen: str | _Recording | UnsetType = UNSET
    rejected: str | _Recording | UnsetType = UNSET
    prompt_text: str | UnsetType = UNSET
    chosen_text: str | UnsetType = UNSET
    rejected_text: str | UnsetType = UNSET
    prompt_path: str | UnsetType = UNSET
    chosen_path: str | UnsetType = UNSET
    rejected_path: str | UnsetType = UNSET
    kind: str = "all"
    reason: str = ""
    story: str | None = None
    voice: str | None = None
    cluster: str | None = None
    groups: dict[str, str] = {}


def read_candidates(raw: Raw, path: Path, reading: Reading) -> tuple[Candidate, ...] | Unlabelled:
    """A row of the file `path` → what it says, or why nobody knows which side is right.

    Raises:
        InputError: the row is malformed; the reason alone, without a place.
    """
    match reading.layout:
        case "swag":
            return _from_swag(_convert(raw, _Swag), reading)
        case "hellaswag":
            return _from_hellaswag(_convert(raw, _HellaSwag), reading)
        case "blimp":
            return (_from_blimp(_convert(raw, _Blimp)),)
        case "pairs":
            row = _convert(_renamed(raw, reading.columns) if reading.columns else raw, _Pair)
            return (_from_pair(row, path.parent, reading),)
        case "words" | "stories":
            raise ValueError(f"the layout {reading.layout!r} is not read row by row")


def _convert(raw: Raw, kind: type[T]) -> T:
    try:
        if isinstance(raw, bytes):
            return msgspec.json.decode(raw, type=kind)
        if None in raw or None in raw.values():  # as csv tells of what is too much, and of what lacks
            raise InputError("has not as many fields as the first line names")
        return msgspec.convert(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(" ".join(str(error).replace("`", "").split())) from None


def _renamed(raw: Raw, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with what `columns` names under our names; `groups.NAME` is one of its groups."""
    row = _convert(raw, dict[str, Any])
    renamed = dict(row)
    for ours, theirs in columns.items():
        if theirs not in row:
            raise InputError(f"has no {theirs!r}, which columns names for {ours}")
        name, _, group = ours.partition(".")
        if group:
            renamed["groups"] = renamed.get("groups", {}) | {group: str(row[theirs])}
        else:
            renamed[name] = row[theirs]
    return renamed


def _from_blimp(row: _Blimp) -> Candidate:
    """The phenomenon is the group that papers report, the paradigm the finer one."""
    return Candidate(
        prompt=Part(),
        chosen=Part(_line(row.sentence_good)),
        rejected=Part(_line(row.sentence_bad)),
        kind=_line(row.phenomenon) or "all",
        reason=f"ungrammatical: {row.paradigm}",
        groups={"paradigm": row.paradigm},
        bare=True,
    )


def _from_swag(row: _Swag, reading: Reading) -> tuple[Candidate, ...] | Unlabelled:
    if reading.gold_only:
        if isinstance(row.gold_source, UnsetType):
            raise InputError('has no "gold-source"; with gold_only = false no row needs one')
        if row.gold_source != "gold":
            return "not_gold"
    endings = [row.ending0, row.ending1, row.ending2, row.ending3]
    return _with_endings(row.sent1, row.sent2, endings, row.label, reading)


def _from_hellaswag(row: _HellaSwag, reading: Reading) -> tuple[Candidate, ...] | Unlabelled:
    """Half of HellaSwag is of a web site's how-tos, whose marks for titles and steps nobody can speak."""
    opening = "" if isinstance(row.ctx_a, UnsetType) else row.ctx_b
    prompt = row.context if isinstance(row.ctx_a, UnsetType) else row.ctx_a
    if isinstance(prompt, UnsetType):
        raise InputError('has neither "ctx_a" nor "context"')
    if any(_MARKUP.search(text) for text in (prompt, opening, *row.endings)):
        return "with_markup"
    return _with_endings(prompt, opening, row.endings, row.label, reading)


def _with_endings(
    prompt: str, opening: str, endings: Sequence[str], label: int | str | None, reading: Reading
) -> tuple[Candidate, ...] | Unlabelled:
    """The right ending and wrong ones after `opening`; the draw depends on the row and the seed alone."""
    if label in _NO_LABEL:
        return "without_label"
    if str(label) not in map(str, range(len(endings))):
        raise InputError(f"label = {label!r}: expected 0 to {len(endings) - 1}")
    right = int(str(label))
    draw = random.Random("\t".join([str(reading.seed), prompt, opening, *endings]))  # noqa: S311 - reproducible
    wrong = [number for number in range(len(endings)) if number != right]
    first = draw.choice(wrong)
    wrong.remove(first)
    others = draw.sample(wrong, min(len(wrong), reading.wrong_endings - 1))
    sides = [Part(_line(f"{opening} {ending}") if ending.strip() else "") for ending in endings]
    return tuple(
        Candidate(
            prompt=Part(_line(prompt)),
            chosen=sides[right],
            rejected=sides[number],
            reason=f"ending {number} of {len(endings)}, and {right} is the right one",
        )
        for number in (first, *others)
    )


def _from_pair(row: _Pair, folder: Path, reading: Reading) -> Candidate:
    sides = reading.sides
    bare = bool(reading.columns) and not any(name.startswith("prompt") for name in reading.columns)
    given = {
        "prompt": (row.prompt, row.prompt_text, row.prompt_path),
        "chosen": (row.chosen, row.chosen_text, row.chosen_path),
        "rejected": (row.rejected, row.rejected_text, row.rejected_path),
    }
    parts = {}
    for name, (value, text, path) in given.items():
        if bare and name == "prompt":
            continue
        part = _spoken(value, text, path, folder) if sides == "audio" else _written(value, text)
        if part is None:
            raise InputError(f"has no {name}: no " + _WANTED[sides].format(name=name))
        parts[name] = part
    return Candidate(
        prompt=parts.pop("prompt", Part()),
        **parts,
        kind=_line(row.kind) or "all",
        reason=_line(row.reason),
        story=row.story or None,
        voice=row.voice or None,
        cluster=row.cluster or None,
        groups=row.groups,
        bare=bare,
    )


_WANTED = {
    "text": '"{name}" or "{name}_text" that is a text; for recordings set sides = "audio"',
    "audio": '"{name}", "{name}.audio" or "{name}_path" that names a recording',
}


def _written(value: str | _Recording | UnsetType, text: str | UnsetType) -> Part | None:
    found = value.text if isinstance(value, _Recording) else value
    found = text if isinstance(found, UnsetType) else found
    return None if isinstance(found, UnsetType) else Part(_line(found))


def _spoken(
    value: str | _Recording | UnsetType, text: str | UnsetType, path: str | UnsetType, folder: Path
) -> Part | None:
    if isinstance(value, _Recording):
        found, text = value.audio, (text if isinstance(value.text, UnsetType) else value.text)
    else:
        found = path if isinstance(value, UnsetType) else value
    if isinstance(found, UnsetType):
        return None
    words = "" if isinstance(text, UnsetType) else _line(text)
    return Part(words, folder / found) if found.strip() else Part()


def _line(text: str) -> str:
    return " ".join(text.split())
