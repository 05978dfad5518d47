"""The JSON lines that the reference toolkit (slamkit) writes → utterances: name, unit ids, durations.

Features are `{"file_name": …, "units": [17, 3], "duration": [2, 1]}`, equal neighbours merged unless the
toolkit was told not to, durations in frames. Tokens are `{"file_name": …, "audio_repr": "<Un17><Un3>"}`, the
same without durations. Its files may hold more, which is passed over.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

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


class _Line(msgspec.Struct):
    file_name: Annotated[str, Meta(min_length=1)]
    units: list[Annotated[int, Meta(ge=0, le=_LARGEST_UNIT)]] | UnsetType = UNSET
    duration: list[Annotated[int, Meta(ge=1, le=_MOST_FRAMES)]] | UnsetType = UNSET
    audio_repr: str | UnsetType = UNSET


_DECODER = msgspec.json.Decoder(_Line)


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


def parse_line(line: bytes) -> tuple[str, Numbers, Numbers | None]:
    """A line → the utterance's name, its unit ids `[N]`, and their durations `[N]` in frames if it has any.

    Raises:
        InputError: the line is malformed; the reason alone, without a place.
    """
    try:
        content = _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(" ".join(str(error).replace("`", "").split())) from None
    if isinstance(content.units, UnsetType):
        return content.file_name, _spelled_ids(content.audio_repr), None
    ids = np.array(content.units, np.int64)
    if isinstance(content.duration, UnsetType):
        return content.file_name, ids, None
    if len(content.duration) != len(ids):
        raise InputError(f"{len(content.duration)} durations for {len(ids)} units")
    if sum(content.duration) > _MOST_FRAMES:
        raise InputError(f"lasts {sum(content.duration)} frames, more than {_MOST_FRAMES}")
    return content.file_name, ids, np.array(content.duration, np.int64)


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
