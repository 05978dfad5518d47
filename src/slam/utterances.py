"""A recording → the units of its utterances, and what became of it; alone, or beside others in a batch.

A recording of ordinary length is one utterance. A longer one is read as a stream and either cut at silences
into several, or encoded in overlapping windows and put together again, so that memory does not grow with it.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.audio import Audio, audio_seconds, read_audio
from slam.errors import InputError, MismatchError
from slam.long_audio import Detector, pieces, stream_audio
from slam.recordings import Recording
from slam.tokenizers import SpeechTokenizer
from slam.units import Ids, Units, deduplicate

_CONTEXT_SECONDS = 4.0  # that a window hears on either side of what is kept of it
_AHEAD = 4  # batches that are read while one is encoded


@dataclass(frozen=True)
class Outcome:
    """What became of a recording."""

    recording: Recording
    seconds: float = 0.0  # read of it
    utterances: Sequence[tuple[dict[str, Any], Units]] = ()  # manifest row and units of each
    cuts: Sequence[float] = ()  # seconds at which it was cut
    reason: str | None = None  # why it failed

    @property
    def row(self) -> dict[str, Any]:
        """The recording's row in the manifest of inputs."""
        fate = "encoded" if self.reason is None else "failed"
        row: dict[str, Any] = {"id": self.recording.id, "fate": fate, "seconds": round(self.seconds, 4)}
        row["num_units"] = sum(len(units) for _, units in self.utterances)
        if self.cuts:
            row["cuts"] = [round(second, 4) for second in self.cuts]
        return row | ({} if self.reason is None else {"reason": self.reason})


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, and how recordings are brought to it."""

    tokenizer: SpeechTokenizer
    max_seconds: float  # a longer recording is not encoded at once
    detector: Detector | None  # of voice, for cuts at silences; None encodes long recordings in windows
    batch_seconds: float  # of recordings encoded together; 0 for one at a time, beside each other
    workers: ThreadPoolExecutor

    def outcomes(self, recordings: Sequence[Recording]) -> Iterator[tuple[int, Outcome]]:
        """Each recording's outcome beside its index, as they are done."""
        if not self.batch_seconds:
            yield from enumerate(self.workers.map(self._alone, recordings))
            return
        lengths = list(self.workers.map(_length, recordings))
        order = sorted(range(len(recordings)), key=lambda index: lengths[index])
        batches = list(self._batches(order, lengths))
        reading: deque[list[Future[Audio | str]]] = deque()
        for number, batch in enumerate(batches):
            for later in batches[number + len(reading) : number + _AHEAD]:
                reading.append([self.workers.submit(self._read, recordings[index]) for index in later])
            read = [future.result() for future in reading.popleft()]
            yield from zip(batch, self._together([recordings[index] for index in batch], read), strict=True)
        for index in order:
            if lengths[index] > self.max_seconds:
                yield index, self._alone(recordings[index])

    def _batches(self, order: Sequence[int], lengths: Sequence[float]) -> Iterator[list[int]]:
        """Indices of recordings of like and ordinary length, as many as `batch_seconds` hold."""
        batch: list[int] = []
        for index in order:
            if lengths[index] > self.max_seconds:
                continue
            if batch and (len(batch) + 1) * lengths[index] > self.batch_seconds:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _read(self, recording: Recording) -> Audio | str:
        """The recording, or the reason why it cannot be read."""
        try:
            return read_audio(recording.path, self.tokenizer.sample_rate)
        except InputError as error:
            return str(error)

    def _together(self, recordings: Sequence[Recording], read: Sequence[Audio | str]) -> Iterator[Outcome]:
        audios = [audio for audio in read if isinstance(audio, Audio)]
        try:
            encoded = iter(self.tokenizer.encode(audios))
        except InputError:  # of one of them; by itself it will be named
            yield from map(self._alone, recordings)
            return
        for recording, audio in zip(recordings, read, strict=True):
            if isinstance(audio, Audio):
                yield _whole(recording, audio.seconds, next(encoded))
            else:
                yield Outcome(recording, reason=audio)

    def _alone(self, recording: Recording) -> Outcome:
        try:
            if audio_seconds(recording.path) > self.max_seconds:
                return self._cut(recording) if self.detector else self._in_windows(recording)
            audio = read_audio(recording.path, self.tokenizer.sample_rate)
            return _whole(recording, audio.seconds, self.tokenizer.encode([audio])[0])
        except InputError as error:
            return Outcome(recording, reason=str(error))

    def _cut(self, recording: Recording) -> Outcome:
        """A long recording, cut at silences: an utterance for each piece, called by its number."""
        rate = self.tokenizer.sample_rate
        utterances, cuts, seconds = [], [], 0.0
        assert self.detector is not None  # noqa: S101 - the caller has looked
        parts = pieces(recording.path, rate, max_seconds=self.max_seconds, detector=self.detector)
        for number, piece in enumerate(parts):
            (units,) = self.tokenizer.encode([piece.audio])
            seconds = piece.start / rate
            cuts.append(seconds)
            name = f"{recording.id}#{number:04d}"
            row = {"id": name, "source": recording.id, "start": seconds, "seconds": piece.audio.seconds}
            utterances.append((row | {"num_units": len(units)}, units))
            seconds += piece.audio.seconds
        return Outcome(recording, seconds, utterances, cuts[1:])

    def _in_windows(self, recording: Recording) -> Outcome:
        """A long recording as one utterance, encoded in windows that overlap."""
        frames, cuts, seconds = [], [], 0.0
        blocks = stream_audio(recording.path, self.tokenizer.sample_rate)
        for start, kept, length in windows(blocks, self.tokenizer, self.max_seconds):
            frames.append(kept)
            cuts.append(start / self.tokenizer.sample_rate)
            seconds += length / self.tokenizer.sample_rate
        units = deduplicate(np.concatenate(frames), self.tokenizer.frame_rate)
        return _whole(recording, seconds, units, cuts[1:])


def windows(
    blocks: Iterator[npt.NDArray[np.float32]], tokenizer: SpeechTokenizer, max_seconds: float
) -> Iterator[tuple[int, Ids, int]]:
    """A stream of samples at the tokenizer's rate → windows: `(first sample, unit ids a frame, samples)`.

    A window hears 4 s more on either side than is kept of it, so that the frames kept are those of the
    unbroken recording but for what a model hears from further away. All begin on the recording's grid of
    frames.

    Raises:
        MismatchError: the tokenizer's frames are no whole number of samples apart.
    """
    hop = round(tokenizer.sample_rate / tokenizer.frame_rate)
    if hop * tokenizer.frame_rate != tokenizer.sample_rate:
        raise MismatchError(
            f"{tokenizer.frame_rate:g} frames a second of {tokenizer.sample_rate} Hz fall between samples; "
            'cut long recordings instead: long_audio = "cut"'
        )
    margin = round(_CONTEXT_SECONDS * tokenizer.frame_rate)  # frames
    core = max(1, round(max_seconds * tokenizer.frame_rate) - 2 * margin)  # frames
    before, start, buffer = 0, 0, np.zeros(0, np.float32)  # frames of context in front; first sample kept
    blocks = iter(blocks)
    at_end = False
    while not at_end:
        need = (before + core + margin) * hop
        while len(buffer) <= need and not at_end:
            block = next(blocks, None)
            at_end = block is None
            buffer = buffer if block is None else np.concatenate((buffer, block))
        heard = buffer if at_end else buffer[:need]
        (units,) = tokenizer.encode([Audio(heard, tokenizer.sample_rate)])
        ids = units.expand()
        if at_end:
            yield start, ids[before:], len(buffer) - before * hop
            return
        yield start, ids[before : before + core], core * hop
        start += core * hop
        drop = max(0, before + core - margin)
        buffer = buffer[drop * hop :]
        before = before + core - drop


def _length(recording: Recording) -> float:
    """Seconds by the file's header; 0 for a file that cannot be read, which says so in its turn."""
    try:
        return audio_seconds(recording.path)
    except InputError:
        return 0.0


def _whole(recording: Recording, seconds: float, units: Units, cuts: Sequence[float] = ()) -> Outcome:
    row = {"id": recording.id, "seconds": seconds, "num_units": len(units)}
    return Outcome(recording, seconds, [(row, units)], cuts)
