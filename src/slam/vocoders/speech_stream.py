"""Recordings with their units → one long stream, crops of it, and what the networks lose on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from slam.audio import Audio
from slam.tokenizers.logmel_kmeans import FLOOR
from slam.units import Units
from slam.vocoders.mel_networks import Networks, log_mel
from slam.vocoders.unit_mel import SAMPLE_RATE, places

_CROP_SECONDS = 2.5  # of units, for the spectra
_SOUND_SECONDS = 1.0  # of spectra, for the sound
_SOUND_SHARE = 5  # a fifth of the batch's seconds is heard: an hour's sound varies less than its units
_CROP_UNITS = 64  # for the durations
_WINDOWS = (2048, 1024, 512, 256, 128)  # samples, at which sound is compared
_QUIET = 1e-3  # magnitude below which all is silence
_POOL_SECONDS = 0.128  # over which power must agree too: tokenizers hear no less
_LOUDEST = 12.0  # log-mel, so that its power is finite


@dataclass(frozen=True)
class SpeechStream:
    """All recordings end to end. Crops may reach from one into the next."""

    frames: Tensor  # [F] unit ids
    places: Tensor  # [F, 3]
    spectra: Tensor  # [F * per_frame, 80] log-mel
    samples: Tensor  # [F * per_frame * hop]
    ids: Tensor  # [N] deduplicated unit ids
    durations: Tensor  # [N] frames
    hop: int

    @classmethod
    def of(cls, spoken: Sequence[tuple[Units, Audio]], *, hop: int) -> Self:
        """Lay out recordings, each exactly as long as its units."""
        samples = [torch.from_numpy(audio.samples) for _, audio in spoken]
        units = [one for one, _ in spoken]
        return cls(
            frames=_tensor([one.expand() for one in units]),
            places=torch.cat([torch.from_numpy(places(one.known_durations)) for one in units]),
            spectra=torch.cat([log_mel(some, hop)[:-1] for some in samples]),
            samples=torch.cat(samples),
            ids=_tensor([one.ids for one in units]),
            durations=_tensor([one.known_durations for one in units]).float(),
            hop=hop,
        )

    @property
    def mean(self) -> Tensor:
        """Of the spectra, `[80]`."""
        return self.spectra.mean(dim=0)

    @property
    def scale(self) -> Tensor:
        """Standard deviation of the spectra, `[80]`."""
        return self.spectra.std(dim=0) + 1e-3

    def losses(self, networks: Networks, *, seconds: float, seed: Sequence[int]) -> dict[str, Tensor]:
        """Losses of the three networks on crops that `seed` draws, `seconds` of speech in all."""
        draw = np.random.default_rng(seed)
        return {
            "durations": self._duration_loss(networks, draw, max(1, round(seconds / _CROP_SECONDS))),
            "mel": self._mel_loss(networks, draw, max(1, round(seconds / _CROP_SECONDS))),
            "sound": self._sound_loss(networks, draw, max(1, round(seconds / _SOUND_SECONDS / _SOUND_SHARE))),
        }

    def _duration_loss(self, networks: Networks, draw: np.random.Generator, number: int) -> Tensor:
        """Of a Poisson distribution of the frames beyond the first: its best answer is their mean."""
        starts, length = self._starts(draw, number, len(self.ids), _CROP_UNITS)
        ids, durations = (crops(some, starts, length) for some in (self.ids, self.durations))
        device = networks.mean.device
        logs = networks.durations(ids.to(device))
        return functional.poisson_nll_loss(logs, durations.to(device) - 1.0)

    def _mel_loss(self, networks: Networks, draw: np.random.Generator, number: int) -> Tensor:
        """Mean absolute difference of the spectra, and of the log of their power over 128 ms.

        The first draws to the median, which is softer than speech; the second keeps its loudness.
        """
        per_frame = networks.to_mel.per_frame
        frame_seconds = per_frame * self.hop / SAMPLE_RATE
        starts, length = self._starts(draw, number, len(self.frames), round(_CROP_SECONDS / frame_seconds))
        device = networks.mean.device
        ids, where = (crops(some, starts, length).to(device) for some in (self.frames, self.places))
        wanted = crops(self.spectra, starts * per_frame, length * per_frame + 1).to(device)
        found = networks.to_mel(ids, where) * networks.scale + networks.mean
        window = min(round(_POOL_SECONDS * SAMPLE_RATE / self.hop), wanted.shape[1])
        pooled = (_pooled(found, window) - _pooled(wanted, window)).abs().mean()
        loss: Tensor = (found - wanted).abs().mean() + pooled
        return loss

    def _sound_loss(self, networks: Networks, draw: np.random.Generator, number: int) -> Tensor:
        """Of spectra at several resolutions (Yamamoto et al., 2020), and of log-mel."""
        starts, length = self._starts(
            draw, number, len(self.spectra), round(_SOUND_SECONDS * SAMPLE_RATE / self.hop)
        )
        device = networks.mean.device
        spectra = crops(self.spectra, starts, length + 1).to(device)
        wanted = crops(self.samples, starts * self.hop, length * self.hop).to(device)
        found = networks.to_sound(networks.normalised(spectra))
        total = (log_mel(found, self.hop) - log_mel(wanted, self.hop)).abs().mean()
        for window in _WINDOWS:
            one, other = _magnitudes(found, window), _magnitudes(wanted, window)
            convergence = (one - other).norm() / (other.norm() + _QUIET)
            logs = ((one + _QUIET).log() - (other + _QUIET).log()).abs().mean()
            total = total + (convergence + logs) / len(_WINDOWS)
        return total

    @staticmethod
    def _starts(
        draw: np.random.Generator, number: int, total: int, length: int
    ) -> tuple[npt.NDArray[np.int64], int]:
        """Where crops begin, and their length: as asked, or less of a stream that is shorter."""
        length = max(1, min(length, total - 1))
        return draw.integers(0, max(1, total - length), number), length


def crops(stream: Tensor, starts: npt.NDArray[np.int64], length: int) -> Tensor:
    """`[B, length, …]` of a stream `[T, …]`."""
    return torch.stack([stream[start : start + length] for start in starts.tolist()])


def _tensor(some: Sequence[npt.NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate(some).astype(np.int64))


def _pooled(log_mels: Tensor, window: int) -> Tensor:
    """Log of the mean power over `window` spectra, weighted as a Hann window hears them."""
    shape = torch.hann_window(window, device=log_mels.device).square()
    power = log_mels.clamp(max=_LOUDEST).exp().transpose(1, 2)
    flat = power.reshape(-1, 1, power.shape[-1])
    return (functional.conv1d(flat, (shape / shape.sum())[None, None]) + FLOOR).log()


def _magnitudes(samples: Tensor, window: int) -> Tensor:
    shape = torch.hann_window(window, device=samples.device)
    return torch.stft(samples, window, window // 4, window=shape, return_complex=True).abs()
