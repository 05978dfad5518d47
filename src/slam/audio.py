"""A sound file of any rate and channel count → mono float32 samples at the rate asked for, and back.

libsndfile reads (wav, flac, ogg, mp3 …) and soxr resamples; both are imported on first use, so that
training machines need neither.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slam.errors import InputError
from slam.run import replacing

if TYPE_CHECKING:
    import soundfile

BLOCK_SECONDS = 10.0
RESAMPLING = "HQ"  # soxr's name of a quality
# libsndfile's log of a wav or au that ends before its data does
_SHORT_DATA = re.compile(r"(?:data|Data Size) *: (\d+) \(should be (\d+)\)")
_UNKNOWN_LENGTH = 0x7FFF_0000  # bytes; a program that wrote into a pipe claims as much as it can
_MOST_SAMPLES_PER_BYTE = 65_536  # silence in flac, which packs best, stays far below
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)  # Hz; the format knows no others
SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64"})


@dataclass(frozen=True)
class Audio:
    """A mono recording."""

    samples: npt.NDArray[np.float32]  # [T], full scale is ±1
    sample_rate: int  # Hz

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.sample_rate

    def resample(self, sample_rate: int) -> "Audio":
        """The same sound at `sample_rate` Hz (soxr, high quality)."""
        if sample_rate == self.sample_rate:
            return self
        import soxr

        samples = soxr.resample(self.samples, self.sample_rate, sample_rate, quality=RESAMPLING)
        return Audio(np.asarray(samples, dtype=np.float32), sample_rate)


def read_audio(path: Path, sample_rate: int | None = None) -> Audio:
    """Read a sound file as mono, channels averaged, resampled to `sample_rate` Hz if one is given.

    Raises:
        InputError: the file is missing, unreadable, cut short or empty, or holds values that are not
            finite. (An ogg file does not say how long it was, so a cut one is not told from a short one.)
    """
    blocks = list(read_blocks(path))
    audio = Audio(np.concatenate([block.samples for block in blocks]), blocks[0].sample_rate)
    audio = audio if sample_rate is None else audio.resample(sample_rate)
    if not len(audio.samples):  # of a few samples, resampling may leave none
        raise InputError(f"{path}: holds no samples")
    return audio


def read_blocks(path: Path, block_seconds: float = BLOCK_SECONDS) -> Iterator[Audio]:
    """A sound file as mono blocks of `block_seconds`, in order, at its own rate; the last one is shorter.

    Memory is that of one block, whatever the header promises.

    Raises:
        InputError: as `read_audio`; what is wrong late in the file is found after its first blocks were
            given.
    """
    with _opened(path) as file:
        rate, total = file.samplerate, 0
        size = max(1, min(round(block_seconds * rate), file.frames))
        while len(samples := file.read(size, dtype="float32", always_2d=True)):
            if not np.isfinite(samples).all():
                raise InputError(f"{path}: holds samples that are not finite")
            total += len(samples)
            yield Audio(np.ascontiguousarray(samples.mean(axis=1)), rate)
        if total < file.frames:
            raise _cut_short(path, total / rate)
    if not total:
        raise InputError(f"{path}: holds no samples")


def audio_seconds(path: Path) -> float:
    """How long a sound file lasts, by its header: no sample is read.

    Raises:
        InputError: the file is missing, unreadable or empty, or shorter than its header says, where the
            header alone tells.
    """
    with _opened(path) as file:
        if not file.frames:
            raise InputError(f"{path}: holds no samples")
        return float(file.frames / file.samplerate)


@contextmanager
def _opened(path: Path) -> Iterator["soundfile.SoundFile"]:
    """The open file; what libsndfile finds wrong with it becomes one line."""
    import soundfile

    class Forward(soundfile.SoundFile):  # type: ignore[misc] # the library has no types
        def seekable(self) -> bool:
            """Never: soundfile would seek after each block, and an mp3 decoder then loses its place."""
            return False

    try:
        with Forward(path) as file:
            seconds, size = file.frames / file.samplerate, path.stat().st_size
            if _lacks_data(file.extra_info):
                raise _cut_short(path, seconds)
            if file.frames > _MOST_SAMPLES_PER_BYTE * size:
                raise InputError(f"{path}: is damaged; its header promises {seconds:.0f} s in {size} bytes")
            yield file
    except (soundfile.SoundFileError, OSError, MemoryError, ValueError) as error:
        reason = "no such file" if not path.exists() else f"unreadable ({error})".replace("\n", " ")
        raise InputError(f"{path}: {reason}") from None


def _cut_short(path: Path, seconds: float) -> InputError:
    return InputError(f"{path}: is cut short; {seconds:.2f} seconds are left of it")


def _lacks_data(log: str) -> bool:
    """Whether libsndfile's log of an opened file says that less follows the header than it promises."""
    found = _SHORT_DATA.search(log)
    return found is not None and int(found[2]) < int(found[1]) < _UNKNOWN_LENGTH


def write_audio(path: Path, audio: Audio) -> None:
    """Write a sound file in the format that the suffix names, whole or not at all.

    `.wav`, `.flac` and the like hold 16-bit samples, the same in each; `.opus` is Opus in Ogg, at one of
    `OPUS_RATES`. Two Opus files of the same samples hold the same sound, but not the same bytes.
    """
    import soundfile

    samples, kind, subtype = audio.samples, path.suffix[1:].upper(), "PCM_16"
    if kind == "OPUS":
        kind, subtype = "OGG", "OPUS"
    elif kind == "FLAC":  # libsndfile rounds for flac, and cuts for all others
        cut = _in_memory(samples, audio.sample_rate, "WAV", subtype)
        samples, _ = soundfile.read(io.BytesIO(cut), dtype="int16")
    content = _in_memory(samples, audio.sample_rate, kind, subtype)
    with replacing(path, flush=False) as partial:
        partial.write_bytes(content)


def _in_memory(samples: Any, sample_rate: int, kind: str, subtype: str) -> bytes:
    """A sound file; by way of memory, since libsndfile does not say that a disk is full."""
    import soundfile

    whole = io.BytesIO()
    soundfile.write(whole, samples, sample_rate, subtype=subtype, format=kind)
    return whole.getvalue()


def find_audio(folder: Path) -> Iterator[Path]:
    """The sound files under `folder`, by suffix, in sorted order; links to folders are not followed."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            yield path
