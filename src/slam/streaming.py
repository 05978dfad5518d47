"""Units as a model draws them → their sound in chunks, while the rest is being made.

A chunk is spoken together with units before it and some after it, as the vocoder would hear them in the whole
utterance, cut where a unit ends, and faded over into the next. Units that are spoken last as long as in the
whole, so all chunks end to end are as long as it.
"""

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from slam.audio import Audio
from slam.units import Units
from slam.vocoders import Vocoder

_FIRST_UNITS = 8  # in the first chunk: about half a second
_UNITS = 24  # in the others
_AHEAD = 8  # units drawn behind a chunk before it is spoken
_BEHIND = 16  # units spoken again before it
_FADE_SECONDS = 0.02


class Stream:
    """The chunks of one continuation, to be iterated over once, and what is known of it so far.

    A chunk comes as soon as its units and a few behind it are drawn. Chunks end to end are as long as the
    vocoder's sound of the whole; around seams the two may differ.

    Attributes:
        units: unit ids drawn so far.
        ended: whether the model ended the continuation by itself; None while it goes on.
        seconds_to_first_sound: from the call that made the stream to the first chunk; None before it.
    """

    def __init__(
        self, drawn: Iterator[int], vocoder: Vocoder, frame_rate: float, *, begun: float, most: int
    ) -> None:
        self.units: list[int] = []
        self.ended: bool | None = None
        self.seconds_to_first_sound: float | None = None
        self._seconds_of_work = time.perf_counter() - begun
        self._seconds_of_sound = 0.0
        self._most = most
        self._chunks = _chunks(drawn, vocoder, frame_rate, self.units)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Audio:
        begun = time.perf_counter()
        chunk = next(self._chunks, None)
        self._seconds_of_work += time.perf_counter() - begun
        if chunk is None:
            self.ended = len(self.units) < self._most
            raise StopIteration
        self._seconds_of_sound += chunk.seconds
        if self.seconds_to_first_sound is None:
            self.seconds_to_first_sound = self._seconds_of_work
        return chunk

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work for a second of sound, so far; None before the first chunk.

        Below 1, sound is made faster than it is heard. What happens between chunks does not count.
        """
        return self._seconds_of_work / self._seconds_of_sound if self._seconds_of_sound else None


def _chunks(drawn: Iterator[int], vocoder: Vocoder, frame_rate: float, ids: list[int]) -> Iterator[Audio]:
    """Speak units as they are drawn, noting them in `ids`."""
    seams = _Seams(vocoder, frame_rate)
    due = _FIRST_UNITS
    for unit in drawn:
        ids.append(unit)
        if len(ids) == due + _AHEAD:
            yield seams.speak(ids, due)
            due += _UNITS
    if ids:
        yield seams.speak(ids, len(ids))


class _Seams:
    """Where the last chunk ended, and how it would have gone on."""

    def __init__(self, vocoder: Vocoder, frame_rate: float) -> None:
        self._vocoder, self._frame_rate = vocoder, frame_rate
        self._durations = np.zeros(0, np.int64)  # [N] frames of the units spoken; they last as they did
        self._tail = np.zeros(0, np.float32)  # samples behind the last chunk, to be faded out

    def speak(self, ids: list[int], end: int) -> Audio:
        """The sound of the units from where the last chunk ended to `end`; those behind are only heard."""
        spoken = len(self._durations)
        known = np.array(ids, np.uint16)
        likely = self._vocoder.durations(Units(known, None, self._frame_rate))
        durations = np.concatenate([self._durations, likely[spoken:]])
        first = max(0, spoken - _BEHIND)
        window = Units(known[first:], durations[first:].astype(np.uint16), self._frame_rate)
        (sound,) = self._vocoder.decode([window])
        in_frame = len(sound.samples) // window.num_frames
        begin, stop = (int(durations[first:place].sum()) * in_frame for place in (spoken, end))
        samples = _faded(self._tail, sound.samples[begin:stop])
        fade = round(_FADE_SECONDS * sound.sample_rate)
        self._durations, self._tail = durations[:end], sound.samples[stop : stop + fade]
        return Audio(samples, sound.sample_rate)


def _faded(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`after`, beginning as `before` and changing over while that lasts; equal sounds stay as they are."""
    length = min(len(before), len(after))
    rise = (np.arange(length, dtype=np.float32) + 0.5) / max(length, 1)
    faded = after.copy()
    faded[:length] = before[:length] + rise * (after[:length] - before[:length])
    return faded
