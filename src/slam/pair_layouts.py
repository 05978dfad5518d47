"""A file of preferences that others made → its rows: a prompt with a better and a worse continuation each.

Three layouts: SWAG's (Zellers et al. 2018), HellaSwag's (2019), whose rows have one right ending and several
wrong ones, and plain pairs. Files are CSV or JSON lines, packed with gzip or not. What is unusable is named.
"""

import csv
import gzip
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from slam.errors import InputError

LayoutName = Literal["swag", "hellaswag", "pairs"]
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


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How rows are read."""

    layout: LayoutName
    sides: Sides
    gold_only: bool
    seed: int


def read_rows(path: Path) -> Iterator[tuple[int, Raw]]:
    """The rows of a file with the number of their line, blank ones passed over; one in memory at a time.

    Raises:
        InputError: the file cannot be read, or is of another kind.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in (".csv", ".jsonl", ".json"):
        raise InputError(f"{path}: expected a .csv or .jsonl file, or either with .gz")
    with _opened(path) as file:
        if suffix == ".csv":
            yield from _csv_rows(path, file)
            return
        for number, line in enumerate(file, 1):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if content.strip():
                yield number, content


@contextmanager
def _opened(path: Path) -> Iterator[Iterable[bytes]]:
    try:
        with path.open("rb") as file:
            yield gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
    except OSError as error:  # gzip's own complaint is one of these
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path}: is damaged ({error})") from None


def _csv_rows(path: Path, file: Iterable[bytes]) -> Iterator[tuple[int, Raw]]:
    reader = csv.DictReader(_text_lines(path, file), strict=True)
    try:
        for row in reader:
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.reader.line_num}: not CSV ({error})") from None


def _text_lines(path: Path, file: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: not UTF-8 text ({error.reason})") from None


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


def read_candidate(raw: Raw, path: Path, reading: Reading) -> Candidate | Unlabelled:
    """A row of the file `path` → what it says, or why nobody knows which side is right.

    Raises:
        InputError: the row is malformed; the reason alone, without a place.
    """
    match reading.layout:
        case "swag":
            return _from_swag(_convert(raw, _Swag), reading)
        case "hellaswag":
            return _from_hellaswag(_convert(raw, _HellaSwag), reading)
        case "pairs":
            return _from_pair(_convert(raw, _Pair), path.parent, reading.sides)


def _convert(raw: Raw, kind: type[T]) -> T:
    try:
        if isinstance(raw, bytes):
            return msgspec.json.decode(raw, type=kind)
        if None in raw or None in raw.values():  # as csv tells of what is too much, and of what lacks
            raise InputError("has not as many fields as the first line names")
        return msgspec.convert(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(" ".join(str(error).replace("`", "").split())) from None


def _from_swag(row: _Swag, reading: Reading) -> Candidate | Unlabelled:
    if reading.gold_only:
        if isinstance(row.gold_source, UnsetType):
            raise InputError('has no "gold-source"; with gold_only = false no row needs one')
        if row.gold_source != "gold":
            return "not_gold"
    endings = [row.ending0, row.ending1, row.ending2, row.ending3]
    return _with_endings(row.sent1, row.sent2, endings, row.label, reading.seed)


def _from_hellaswag(row: _HellaSwag, reading: Reading) -> Candidate | Unlabelled:
    """Half of HellaSwag is of a web site's how-tos, whose marks for titles and steps nobody can speak."""
    opening = "" if isinstance(row.ctx_a, UnsetType) else row.ctx_b
    prompt = row.context if isinstance(row.ctx_a, UnsetType) else row.ctx_a
    if isinstance(prompt, UnsetType):
        raise InputError('has neither "ctx_a" nor "context"')
    if any(_MARKUP.search(text) for text in (prompt, opening, *row.endings)):
        return "with_markup"
    return _with_endings(prompt, opening, row.endings, row.label, reading.seed)


def _with_endings(
    prompt: str, opening: str, endings: Sequence[str], label: int | str | None, seed: int
) -> Candidate | Unlabelled:
    """The right ending and a wrong one after `opening`; the draw depends on the row and the seed alone."""
    if label in _NO_LABEL:
        return "without_label"
    if str(label) not in map(str, range(len(endings))):
        raise InputError(f"label = {label!r}: expected 0 to {len(endings) - 1}")
    right = int(str(label))
    draw = random.Random("\t".join([str(seed), prompt, opening, *endings]))  # noqa: S311 - reproducible
    wrong = draw.choice([number for number in range(len(endings)) if number != right])
    chosen, rejected = (
        Part(_line(f"{opening} {endings[number]}") if endings[number].strip() else "")
        for number in (right, wrong)
    )
    reason = f"ending {wrong} of {len(endings)}, and {right} is the right one"
    return Candidate(prompt=Part(_line(prompt)), chosen=chosen, rejected=rejected, reason=reason)


def _from_pair(row: _Pair, folder: Path, sides: Sides) -> Candidate:
    given = {
        "prompt": (row.prompt, row.prompt_text, row.prompt_path),
        "chosen": (row.chosen, row.chosen_text, row.chosen_path),
        "rejected": (row.rejected, row.rejected_text, row.rejected_path),
    }
    parts = {}
    for name, (value, text, path) in given.items():
        part = _spoken(value, text, path, folder) if sides == "audio" else _written(value, text)
        if part is None:
            raise InputError(f"has no {name}: no " + _WANTED[sides].format(name=name))
        parts[name] = part
    return Candidate(
        **parts,
        kind=_line(row.kind) or "all",
        reason=_line(row.reason),
        story=row.story or None,
        voice=row.voice or None,
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
