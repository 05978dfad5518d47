"""A recording of any length → samples in blocks, or pieces cut at silences, in the memory of a few pieces.

Tokenizers hear a recording whole, so an hours-long one is brought to them in pieces. A piece says where in
the recording it starts, so that every time in it maps back to the source.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from slam import parts
from slam.audio import BLOCK_SECONDS, RESAMPLING, Audio, read_blocks
from slam.errors import ConfigError, InputError, MismatchError
from slam.voice import Probabilities, step_edges, step_power

DETECTORS = {"energy": "slam.voice:Energy", "silero": "slam.voice:Silero"}
LONGEST_SECONDS = 60.0  # of a prompt: a tokenizer hears all of it at once
_VOICE = 0.5  # from this probability on it is one


class Detector(Protocol):
    """Hears where a voice is. Recordings may be cut beside each other, so it is called from many threads."""

    def __call__(self, audio: Audio, /) -> Probabilities:
        """Probabilities of voice, `[n]` float32, one each 10 ms; the last step may be shorter."""
        ...


@dataclass(frozen=True)
class Piece:
    """A part of a recording."""

    start: int  # samples of the recording before it, at the piece's rate
    audio: Audio

    @property
    def start_seconds(self) -> float:
        """Where in the recording it begins."""
        return self.start / self.audio.sample_rate


def detector(name: str) -> Detector:
    """A voice detector by its name: `energy`, `silero`, or `package.module:Name`, made without arguments.

    Raises:
        ConfigError: there is no such detector.
        MissingExtraError: it needs a package that is not installed.
    """
    made: Detector = parts.resolve("voice detector", name, DETECTORS)()
    return made


def stream_audio(
    path: Path, sample_rate: int, block_seconds: float = BLOCK_SECONDS
) -> Iterator[npt.NDArray[np.float32]]:
    """A sound file as blocks of mono samples at `sample_rate` Hz, in memory that its length does not touch.

    End to end they are what `read_audio` gives: the resampler is the same, and keeps its state from block
    to block. About `block_seconds` each; a resampler gives its first samples late.

    Raises:
        InputError: as `read_audio`; what is wrong late in the file is found after its first blocks were
            given.
    """
    import soxr

    resampler, total = None, 0
    for block in read_blocks(path, block_seconds):
        samples = block.samples
        if block.sample_rate != sample_rate:
            if resampler is None:
                resampler = soxr.ResampleStream(block.sample_rate, sample_rate, 1, quality=RESAMPLING)
            samples = resampler.resample_chunk(samples)
        total += len(samples)
        if len(samples):
            yield samples
    if resampler is not None:
        rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        total += len(rest)
        if len(rest):
            yield rest
    if not total:  # of a few samples, resampling may leave none
        raise InputError(f"{path}: holds no samples")


def pieces(path: Path, sample_rate: int, *, max_seconds: float, detector: Detector) -> Iterator[Piece]:
    """Cut a recording at silences into pieces of at most `max_seconds`; end to end they are the recording.

    A piece ends in the later half of the longest that it may be (`cut_point`), but for the last, which is
    what is left.

    Args:
        path: the sound file.
        sample_rate: of the pieces, in Hz.
        max_seconds: at least 1.
        detector: tells voice from silence in a stretch of `max_seconds`.

    Raises:
        ConfigError: `max_seconds` is too small.
        InputError: as `read_audio`, perhaps after the first pieces were given.
        MismatchError: the detector does not give a probability each 10 ms.
    """
    if not max_seconds >= 1:
        raise ConfigError(f"max_seconds = {max_seconds}: a piece must have at least 1 second to be cut in")
    most = int(max_seconds * sample_rate)
    start, held, count = 0, [], 0
    for block in stream_audio(path, sample_rate, min(BLOCK_SECONDS, max_seconds)):
        held.append(block)
        count += len(block)
        if count <= most:
            continue
        samples = np.concatenate(held)
        while len(samples) > most:
            window = Audio(samples[:most], sample_rate)
            cut = cut_point(window, detector(window))
            yield Piece(start, Audio(samples[:cut].copy(), sample_rate))
            start += cut
            samples = samples[cut:]
        held, count = [samples], len(samples)
    if count:
        yield Piece(start, Audio(np.concatenate(held), sample_rate))


def cut_point(window: Audio, voice: Probabilities) -> int:
    """Where to cut `window`, in samples, given the probabilities of voice `[n]` in it.

    In the middle of the longest stretch without voice in its later half (the last of equally long ones). If
    voice is everywhere, in the middle of the 10 ms that are least likely one, of those the quietest.

    Raises:
        MismatchError: there is not one probability each 10 ms.
    """
    edges = step_edges(window)
    if len(voice) != len(edges) - 1:
        raise MismatchError(
            f"the voice detector gave {len(voice)} probabilities for {len(edges) - 1} steps of 10 ms"
        )
    half = len(voice) // 2
    later = voice[half:]
    silent = np.concatenate(([False], later < _VOICE, [False]))
    runs = np.flatnonzero(silent[1:] != silent[:-1]).reshape(-1, 2)  # first step, step after the last
    if len(runs):
        lengths = (runs[:, 1] - runs[:, 0])[::-1]
        first, end = runs[len(runs) - 1 - int(lengths.argmax())]
    else:
        power = np.where(later == later.min(), step_power(window)[half:], np.inf)
        first = int(power.argmin())
        end = first + 1
    return int(edges[half + first] + edges[half + end]) // 2
