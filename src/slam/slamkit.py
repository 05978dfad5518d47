"""The JSON lines that the reference toolkit (slamkit) writes → utterances: name, ids, durations; and pairs.

Features are `{"file_name": …, "units": [17, 3], "duration": [2, 1]}`, equal neighbours merged unless the
toolkit was told not to, durations in frames. Tokens are `{"file_name": …, "audio_repr": "<Un17><Un3>"}`, the
same without durations. Its preference pairs are `{"prompt": …, "chosen": …, "rejected": …}`, each of them
features, or tokens as an object or bare. Its files may hold more, which is passed over; pairs keep it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET, Meta, UnsetType

from slam.errors import InputError

Numbers = npt.NDArray[np.int64]

_MOST_FRAMES = 2**31  # of an utterance: years of speech
_LARGEST_UNIT = 2**16 - 1
_UNIT = re.compile("<Un([0-9]{1,9})>")
_UNITS = re.compile("(?:<Un[0-9]{1,9}>)*")


class _Spoken(msgspec.Struct):
    units: list[Annotated[int, Meta(ge=0, le=_LARGEST_UNIT)]] | UnsetType = UNSET
    duration: list[Annotated[int, Meta(ge=1, le=_MOST_FRAMES)]] | UnsetType = UNSET
    audio_repr: str | UnsetType = UNSET


class _Line(_Spoken, kw_only=True):
    file_name: Annotated[str, Meta(min_length=1)]


class _PairLine(msgspec.Struct):
    prompt: _Spoken | str
    chosen: _Spoken | str
    rejected: _Spoken | str


class _Keys(msgspec.Struct):
    prompt: msgspec.Raw | UnsetType = UNSET
    chosen: msgspec.Raw | UnsetType = UNSET
    rejected: msgspec.Raw | UnsetType = UNSET


_LINES, _PAIRS = msgspec.json.Decoder(_Line), msgspec.json.Decoder(_PairLine)
_KEYS, _ALL = msgspec.json.Decoder(_Keys), msgspec.json.Decoder(dict[str, Any])
T = TypeVar("T")


@dataclass(frozen=True)
class Spoken:
    """The units of an utterance, as a line holds them: equal neighbours may be there."""

    ids: Numbers  # [N]
    durations: Numbers | None  # [N] frames


@dataclass(frozen=True)
class SpokenPair:
    """A line of preferences."""

    prompt: Spoken
    chosen: Spoken
    rejected: Spoken
    about: dict[str, Any]  # what else the line holds: paths, texts, the speaker


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1, one in memory at a time; no byte-order mark.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def holds_pair(line: bytes) -> bool:
    """Whether a line is of preferences, by its keys; False too where it is malformed."""
    try:
        keys = _KEYS.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return any(not isinstance(part, UnsetType) for part in (keys.prompt, keys.chosen, keys.rejected))


def parse_line(line: bytes) -> tuple[str, Spoken]:
    """A line → the utterance's name and its units.

    Raises:
        InputError: the line is malformed; the reason alone, without a place.
    """
    content = _decode(_LINES, line)
    return content.file_name, _spoken(content)


def parse_pair(line: bytes) -> SpokenPair:
    """A line of preferences → its three parts, and what else it holds.

    Raises:
        InputError: the line is malformed; the reason alone, without a place.
    """
    content, about = _decode(_PAIRS, line), _decode(_ALL, line)
    parts = {}
    for name in ("prompt", "chosen", "rejected"):
        try:
            parts[name] = _spoken(getattr(content, name))
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        del about[name]
    return SpokenPair(**parts, about=about)


def _decode(decoder: msgspec.json.Decoder[T], line: bytes) -> T:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(" ".join(str(error).replace("`", "").split())) from None


def _spoken(content: _Spoken | str) -> Spoken:
    """What was decoded → units; raises InputError where its parts disagree."""
    if isinstance(content, str):
        return Spoken(_spelled_ids(content), None)
    if isinstance(content.units, UnsetType):
        return Spoken(_spelled_ids(content.audio_repr), None)
    ids = np.array(content.units, np.int64)
    if isinstance(content.duration, UnsetType):
        return Spoken(ids, None)
    if len(content.duration) != len(ids):
        raise InputError(f"{len(content.duration)} durations for {len(ids)} units")
    if sum(content.duration) > _MOST_FRAMES:
        raise InputError(f"lasts {sum(content.duration)} frames, more than {_MOST_FRAMES}")
    return Spoken(ids, np.array(content.duration, np.int64))


def _spelled_ids(text: str | UnsetType) -> Numbers:
    """`<Un17><Un3>` → 17, 3."""
    if isinstance(text, UnsetType):
        raise InputError('has neither "units" (features) nor "audio_repr" (tokens)')
    known = _UNITS.match(text)
    end = known.end() if known else 0
    if end < len(text):
        strange = text[end : end + 20]
        raise InputError(f"audio_repr holds {strange!r}; only units, <Un0><Un1>…, can be imported")
    return np.array([int(digits) for digits in _UNIT.findall(text)], np.int64)
