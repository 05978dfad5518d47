"""Speech → k-means units of log-mel frames at 25 Hz: offline, no weights to download.

One frame sees 128 ms, most of it the middle 64, and frames are 40 ms apart, so every sample is heard. A unit
carries its centroid, a log-mel spectrum, so the units alone can be turned back into sound (see
`slam.vocoders.griffin_lim`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from slam.audio import Audio
from slam.errors import InputError
from slam.run import digest, replacing, write_json
from slam.tokenizers.centroids import Watch
from slam.units import Units, deduplicate

SAMPLE_RATE = 16_000  # Hz
FRAME_RATE = 25.0  # Hz
HOP = 640  # samples between frames
WINDOW = 2048  # samples in a frame: shorter ones follow how the frames happen to fall on the phones
NUM_MELS = 80
FLOOR = 1e-5  # power below which all is silence; full scale is about 1e4
_FIT_FRAMES = 60_000  # more does not move 100 centroids
_ITERATIONS = 30


@dataclass(frozen=True)
class LogMelKMeans:
    """Nearest of `num_units` centroids for each normalised log-mel frame."""

    centroids: npt.NDArray[np.float32]  # [K, 80] normalised log-mel
    mean: npt.NDArray[np.float32]  # [80] of log-mel over the fitting sample
    scale: npt.NDArray[np.float32]  # [80] standard deviation over the same
    mean_durations: npt.NDArray[np.float32]  # [K] frames, over the fitting sample

    name = "logmel-kmeans"
    sample_rate = SAMPLE_RATE
    frame_rate = FRAME_RATE

    @property
    def num_units(self) -> int:
        """How many centroids there are."""
        return len(self.centroids)

    @cached_property
    def fingerprint(self) -> str:
        """Of the centroids, the normalisation and the framing."""
        arrays = (self.centroids, self.mean, self.scale, self.mean_durations)
        return digest([SAMPLE_RATE, HOP, WINDOW, NUM_MELS, FLOOR, *(a.tobytes().hex() for a in arrays)])

    @classmethod
    def fit(cls, audios: Iterable[Audio], *, num_units: int, seed: int, watch: Watch | None = None) -> Self:
        """Fit k-means (scikit-learn, k-means++) on a seeded sample of the frames of `audios`.

        Args:
            audios: recordings at any rate; their frames, 29 MB an hour, are held in memory.
            num_units: how many units to fit.
            seed: decides the sample and the first centroids.
            watch: hears the inertia a frame after 1, 2, 4 … iterations and at the end; changes nothing.

        Raises:
            InputError: the recordings hold fewer distinct frames than units are wanted.
        """
        # a limit holds for libraries that are loaded already
        import scipy.fft  # noqa: F401
        import sklearn.cluster  # noqa: F401
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):  # the order of summation is part of the result
            return cls._fit(audios, num_units, seed, watch)

    @classmethod
    def _fit(cls, audios: Iterable[Audio], num_units: int, seed: int, watch: Watch | None) -> Self:
        from sklearn.cluster import KMeans

        recordings = [log_mel(audio) for audio in audios]
        frames = np.concatenate([np.zeros((0, NUM_MELS), np.float32), *recordings])
        if len(np.unique(frames, axis=0)) < num_units:
            raise InputError(
                f"{len(frames)} frames of speech are too few to fit {num_units} units; "
                "give more recordings or ask for fewer units"
            )
        mean, scale = frames.mean(axis=0), frames.std(axis=0) + 1e-3
        generator = np.random.default_rng(seed)
        sample = frames[generator.permutation(len(frames))[:_FIT_FRAMES]]
        model = KMeans(num_units, n_init=1, max_iter=_ITERATIONS, random_state=seed)
        normalised = (sample - mean) / scale
        model.fit(normalised)
        if watch is not None:
            _tell(watch, model, normalised)
        centroids = np.ascontiguousarray(model.cluster_centers_, dtype=np.float32)
        fitted = cls(centroids, mean, scale, np.ones(num_units, np.float32))
        runs = [fitted.quantize(recording) for recording in recordings]
        ids = np.concatenate([units.ids for units in runs])
        durations = np.concatenate([units.known_durations for units in runs])
        counts = np.bincount(ids, minlength=num_units)
        totals = np.bincount(ids, weights=durations, minlength=num_units)
        return cls(centroids, mean, scale, (totals / np.maximum(counts, 1)).astype(np.float32).clip(1))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the tensors that `save` wrote.

        Raises:
            InputError: they are missing, damaged or of the wrong shapes.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = folder / "kmeans.safetensors"
        try:
            tensors = load_file(path)
            loaded = cls(**tensors)
        except (OSError, SafetensorError, TypeError) as error:
            raise InputError(f"{path}: no k-means of log-mel frames ({error})") from None
        if loaded.centroids.ndim != 2 or loaded.centroids.shape[1] != NUM_MELS:  # noqa: PLR2004
            raise InputError(f"{path}: centroids of shape {loaded.centroids.shape}, expected [K, {NUM_MELS}]")
        return loaded

    def save(self, folder: Path) -> None:
        """Write `kmeans.safetensors` and `tokenizer.json`."""
        from safetensors.numpy import save_file

        with replacing(folder / "kmeans.safetensors") as partial:
            save_file(
                {
                    "centroids": self.centroids,
                    "mean": self.mean,
                    "scale": self.scale,
                    "mean_durations": self.mean_durations,
                },
                partial,
            )
        write_json(
            folder / "tokenizer.json",
            {
                "name": self.name,
                "fingerprint": self.fingerprint,
                "num_units": self.num_units,
                "sample_rate": SAMPLE_RATE,
                "frame_rate": FRAME_RATE,
            },
        )

    def encode(self, batch: Sequence[Audio]) -> list[Units]:
        """Each recording by itself, so that no neighbour can change a unit."""
        return [self.quantize(log_mel(audio)) for audio in batch]

    def quantize(self, frames: npt.NDArray[np.float32]) -> Units:
        """Log-mel frames `[F, 80]` → units: the nearest centroid by squared distance, one matrix product."""
        normalised = (frames - self.mean) / self.scale
        # |x - c|² = |x|² - 2 x·c + |c|², and |x|² is the same for every c
        distances = (self.centroids**2).sum(axis=1) - 2.0 * (normalised @ self.centroids.T)
        return deduplicate(distances.argmin(axis=1), FRAME_RATE)

    def spectra(self) -> npt.NDArray[np.float32]:
        """The log-mel spectrum that each unit stands for, `[K, 80]`."""
        return self.centroids * self.scale + self.mean


def _tell(watch: Watch, model: Any, frames: npt.NDArray[np.float32]) -> None:
    """Tell `watch` how far the fit of `model` to `frames` had come on its way.

    Equal seeds make equal iterations, so a fit that is cut short is an earlier state of the whole one.
    """
    from sklearn.base import clone

    iterations = 1
    while iterations < model.n_iter_:
        earlier = clone(model).set_params(max_iter=iterations).fit(frames)
        watch(iterations, float(earlier.inertia_) / len(frames))
        iterations *= 2
    watch(int(model.n_iter_), float(model.inertia_) / len(frames))


def log_mel(audio: Audio) -> npt.NDArray[np.float32]:
    """Audio `[T]` at any rate → log-mel power `[⌈T / 640⌉, 80]` at 25 Hz; T counted at 16 kHz.

    Frames are centred on their 40 ms, edges padded with silence.
    """
    from scipy.fft import rfft

    samples = audio.resample(SAMPLE_RATE).samples
    num_frames = -(-len(samples) // HOP)
    if not num_frames:
        return np.zeros((0, NUM_MELS), np.float32)
    margin = (WINDOW - HOP) // 2
    padded = np.pad(samples, (margin, num_frames * HOP - len(samples) + margin))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    spectrum = rfft(windows * _hann())
    power = spectrum.real**2 + spectrum.imag**2
    return np.asarray(np.log(power @ mel_filters(WINDOW) + FLOOR), dtype=np.float32)


@cache
def _hann() -> npt.NDArray[np.float32]:
    from scipy.signal.windows import hann

    return np.asarray(hann(WINDOW, sym=False), dtype=np.float32)


@cache
def mel_filters(window: int) -> npt.NDArray[np.float32]:
    """Slaney's mel filters, `[window / 2 + 1, 80]`, from power spectrum to mel."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=window // 2 + 1,
        num_mel_filters=NUM_MELS,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return np.asarray(filters, dtype=np.float32)
