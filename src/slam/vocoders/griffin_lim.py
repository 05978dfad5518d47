"""Units whose centroids are spectra → sound: expand by durations, invert the mel filters, find the phases.

Phases come from the fast Griffin-Lim algorithm (Perraudin et al., 2013). It speaks no voice of its own:
what is heard is what the units kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from slam.audio import Audio
from slam.errors import ConfigError
from slam.tokenizers import SpeechTokenizer
from slam.tokenizers.logmel_kmeans import HOP, SAMPLE_RATE, LogMelKMeans, mel_filters
from slam.tokenizers.logmel_kmeans import WINDOW as ANALYSIS_WINDOW
from slam.units import Units

_WINDOW = 1024  # samples in a frame of the inverted spectrogram
_STEP = 160  # samples between frames of the inverted spectrogram: a quarter of a unit's frame
_ITERATIONS = 48
_MOMENTUM = 0.99
_PEAK = 0.9  # full scale is 1


@dataclass(frozen=True)
class GriffinLim:
    """For tokenizers whose units stand for log-mel spectra."""

    log_spectra: npt.NDArray[np.float32]  # [K, 80] log-mel power
    mean_durations: npt.NDArray[np.float32]  # [K] frames

    name = "griffin-lim"
    sample_rate = SAMPLE_RATE

    @classmethod
    def for_tokenizer(cls, tokenizer: SpeechTokenizer, *, folder: Path | None = None) -> Self:
        """Take the spectra from the tokenizer's centroids.

        Raises:
            ConfigError: its units stand for something else, or a folder of weights is given.
        """
        if folder is not None:
            raise ConfigError("griffin-lim has no weights; leave out vocoder_from")
        if not isinstance(tokenizer, LogMelKMeans):
            raise ConfigError(
                f"griffin-lim cannot speak the units of {tokenizer.name!r}: they are no spectra"
            )
        return cls(tokenizer.spectra(), tokenizer.mean_durations)

    def decode(self, batch: Sequence[Units]) -> list[Audio]:
        """Each `Units` → 640 samples a frame at 16 kHz; without durations, each unit lasts its mean."""
        return [Audio(self._invert(self._frames(units)), SAMPLE_RATE) for units in batch]

    def durations(self, units: Units) -> npt.NDArray[np.int64]:
        """About the mean of each unit, in frames, `[N]`."""
        # the fractions are carried on, so that a long utterance keeps its length
        ends = np.rint(np.cumsum(self.mean_durations[units.ids])).astype(np.int64)
        return np.diff(ends, prepend=0)

    def _frames(self, units: Units) -> npt.NDArray[np.int64]:
        """One unit id a frame, `[F]`."""
        lasting = self.durations(units) if units.durations is None else units.durations
        return np.repeat(units.ids, lasting).astype(np.int64)

    def _invert(self, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Unit ids `[F]` → samples `[640 F]`."""
        import torch

        if not len(frames):
            return np.zeros(0, np.float32)
        length = len(frames) * HOP
        magnitudes = torch.from_numpy(self._magnitudes(frames))  # [513, 4 F + 1]
        window = torch.hann_window(_WINDOW)
        generator = torch.Generator().manual_seed(0)
        phases = torch.polar(
            torch.ones_like(magnitudes), 2 * np.pi * torch.rand(magnitudes.shape, generator=generator)
        )
        before = torch.zeros_like(phases)
        for _ in range(_ITERATIONS):
            signal = torch.istft(magnitudes * phases, _WINDOW, _STEP, window=window, length=length)
            after = torch.stft(signal, _WINDOW, _STEP, window=window, return_complex=True)
            moved = after + _MOMENTUM * (after - before)
            phases, before = moved / moved.abs().clamp_min(1e-8), after
        samples = torch.istft(magnitudes * phases, _WINDOW, _STEP, window=window, length=length).numpy()
        peak = np.abs(samples).max()
        return np.asarray(samples * (_PEAK / peak) if peak > _PEAK else samples, dtype=np.float32)

    def _magnitudes(self, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Unit ids `[F]` → magnitudes `[513, 4 F + 1]`, log-mel interpolated between the frames' centres."""
        log_mel = self.log_spectra[frames]
        times = np.arange(len(frames) * HOP // _STEP + 1) * _STEP / HOP - 0.5  # in frames
        below = np.clip(np.floor(times).astype(np.int64), 0, len(frames) - 1)
        above = np.clip(below + 1, 0, len(frames) - 1)
        weight = np.clip(times - below, 0, 1)[:, None]
        # a tone's power grows with the square of the window that measures it
        scale = (_WINDOW / ANALYSIS_WINDOW) ** 2
        mel = scale * np.exp((1 - weight) * log_mel[below] + weight * log_mel[above])
        return np.sqrt(np.maximum(mel @ _inverse_filters(), 0)).T.astype(np.float32)


def _inverse_filters() -> npt.NDArray[np.float32]:
    """From mel to power spectrum, `[80, 513]`: each filter's energy spread back over its own bins.

    A pseudo-inverse would be exact on the mel axis but rings below zero between narrow filters.
    """
    filters = mel_filters(_WINDOW).T  # [80, 513]
    share = filters / np.maximum(filters.sum(axis=0, keepdims=True), 1e-8)
    return np.asarray(
        share / np.maximum((filters * share).sum(axis=1, keepdims=True), 1e-8), dtype=np.float32
    )
