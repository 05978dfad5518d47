"""Units → durations, units and durations → log-mel, log-mel → sound: three small convolutional networks.

The sound is made as in Vocos (Siuzdak, 2023): a frame's magnitudes and phases come from the network, and one
inverse Fourier transform turns them into samples. Blocks are those of ConvNeXt (Liu et al., 2022). Imported
only where they run: torch is heavy.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from slam.tokenizers.logmel_kmeans import FLOOR, NUM_MELS, mel_filters

WINDOW = 1024  # samples in a frame, for the analysis and for the sound
_BINS = WINDOW // 2 + 1
_DROPOUT = 0.2  # of the networks that see units: they see few speakers
_MOST_LOG_MAGNITUDE = 6.0  # louder than full scale can be
_PLACES = 3  # numbers that say where in its unit a frame is


def log_mel(samples: Tensor, hop: int) -> Tensor:
    """Samples `[..., M * hop]` at 16 kHz → log-mel power `[..., M + 1, 80]`, frames centred on `m * hop`."""
    shape = torch.hann_window(WINDOW, device=samples.device)
    spectra = torch.stft(samples, WINDOW, hop, window=shape, pad_mode="constant", return_complex=True)
    filters = torch.from_numpy(mel_filters(WINDOW)).to(samples.device)
    return torch.log(spectra.abs().square().transpose(-1, -2) @ filters + FLOOR)


class Block(nn.Module):
    """A filter over time for each channel, then two layers for each frame, added to what came in."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.over_time = nn.Conv1d(width, width, kernel_size=7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 3 * width)
        self.narrow = nn.Linear(3 * width, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.narrow.weight, std=0.02)  # a block begins by changing little

    def forward(self, frames: Tensor) -> Tensor:
        """`[B, F, width]` → the same."""
        change = self.over_time(frames.transpose(1, 2)).transpose(1, 2)
        change = self.narrow(functional.gelu(self.widen(self.norm(change))))
        changed: Tensor = frames + self.dropout(change)
        return changed


def _blocks(number: int, width: int, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(*(Block(width, dropout) for _ in range(number)))


class Durations(nn.Module):
    """Deduplicated units → how many frames each lasts, on average, between these neighbours."""

    def __init__(self, num_units: int, width: int) -> None:
        super().__init__()
        self.units = nn.Embedding(num_units, width)
        self.blocks = _blocks(2, width, _DROPOUT)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """`[B, N]` → the logarithm of the mean number of frames beyond the first, `[B, N]`."""
        out: Tensor = self.out(self.norm(self.blocks(self.units(ids))))
        return out[..., 0].clamp(-10.0, 8.0)


class UnitsToMel(nn.Module):
    """One unit id a frame → log-mel, `per_frame` spectra for each."""

    def __init__(self, num_units: int, per_frame: int, width: int) -> None:
        super().__init__()
        self.per_frame = per_frame
        self.units = nn.Embedding(num_units, width)
        self.places = nn.Linear(_PLACES, width)
        self.coarse = _blocks(4, width, _DROPOUT)
        self.split = nn.Linear(width, per_frame * width)
        self.fine = _blocks(3, width, _DROPOUT)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, NUM_MELS)

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        """`[B, F]` and `[B, F, 3]` → normalised log-mel `[B, F * per_frame + 1, 80]`."""
        coarse = self.coarse(self.units(ids) + self.places(places))
        fine = self.split(coarse).reshape(len(ids), -1, coarse.shape[-1])
        fine = torch.cat((fine, fine[:, -1:]), dim=1)  # a frame stands on either end of each hop
        spectra: Tensor = self.out(self.norm(self.fine(fine)))
        return spectra


class MelToSound(nn.Module):
    """Log-mel → magnitudes and phases → samples."""

    def __init__(self, hop: int, width: int) -> None:
        super().__init__()
        self.hop = hop
        self.spread = nn.Conv1d(NUM_MELS, width, kernel_size=7, padding=3)
        self.blocks = _blocks(4, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 2 * _BINS)

    def forward(self, spectra: Tensor) -> Tensor:
        """Normalised log-mel `[B, M + 1, 80]` → samples `[B, M * hop]`."""
        frames = self.blocks(self.spread(spectra.transpose(1, 2)).transpose(1, 2))
        magnitudes, phases = self.out(self.norm(frames)).transpose(1, 2).chunk(2, dim=1)
        bins = torch.polar(magnitudes.clamp(max=_MOST_LOG_MAGNITUDE).exp(), phases)
        shape = torch.hann_window(WINDOW, device=bins.device)
        length = (spectra.shape[1] - 1) * self.hop
        return torch.istft(bins, WINDOW, self.hop, window=shape, length=length)


class Networks(nn.Module):
    """The three, and the mean and spread of the log-mel spectra that they were fitted to."""

    mean: Tensor  # [80]
    scale: Tensor  # [80]

    def __init__(self, *, num_units: int, per_frame: int, hop: int, width: int) -> None:
        super().__init__()
        self.durations = Durations(num_units, width // 2)
        self.to_mel = UnitsToMel(num_units, per_frame, width)
        self.to_sound = MelToSound(hop, width)
        self.register_buffer("mean", torch.zeros(NUM_MELS))
        self.register_buffer("scale", torch.ones(NUM_MELS))

    def normalised(self, log_mels: Tensor) -> Tensor:
        """Log-mel `[..., 80]` as the networks know it."""
        return (log_mels - self.mean) / self.scale
