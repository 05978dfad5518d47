"""Sound → how likely each 10 ms of it is a voice: by its loudness, or by a small network (silero).

A detector is a callable, `Audio → probabilities`; `slam.long_audio` cuts where they are low.
"""

import threading
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.audio import Audio
from slam.errors import MissingExtraError

Probabilities = npt.NDArray[np.float32]

STEPS_PER_SECOND = 100  # a probability each 10 ms
_SILENCE = 1e-10  # power, -100 dB; quieter is all the same
_SILERO_RATES = (8_000, 16_000)  # Hz
_SILERO_FRAMES_PER_SECOND = 31.25


def step_edges(audio: Audio) -> npt.NDArray[np.int64]:
    """Where each 10 ms begins, in samples, and the end: `[n + 1]`; the last step may be shorter."""
    length = len(audio.samples)
    num_steps = -(-length * STEPS_PER_SECOND // audio.sample_rate)
    return np.append(np.arange(num_steps) * audio.sample_rate // STEPS_PER_SECOND, length)


def step_power(audio: Audio) -> npt.NDArray[np.float64]:
    """Mean square of each 10 ms, `[n]`, its mean (a microphone's offset) left out."""
    edges = step_edges(audio)
    if len(edges) == 1:
        return np.zeros(0)
    samples = audio.samples.astype(np.float64)
    sizes = np.diff(edges)
    means = np.add.reduceat(samples, edges[:-1]) / sizes
    power: npt.NDArray[np.float64] = np.add.reduceat((samples - np.repeat(means, sizes)) ** 2, edges[:-1])
    return power / sizes


@dataclass(frozen=True)
class Energy:
    """Voice is what stands out of the noise floor: no weights, the same on every machine.

    Levels are in decibels, averaged over 30 ms. The floor and the loud level are percentiles of the sound
    itself, so that neither a quiet recording nor a noisy one needs other settings. At the floor the
    probability is 0, at `full_share` of the way to the loud level it is 1, and straight in between; so 0.5
    lies 40 % of the way up.
    """

    floor_percentile: float = 10.0
    loud_percentile: float = 95.0
    least_range: float = 6.0  # dB; less between floor and loud level is steady noise, and no voice
    most_range: float = 60.0  # dB; a floor below that is digital silence, not the room's noise
    full_share: float = 0.8
    hangover_seconds: float = 0.1  # a voice goes on so long: words end softly, and stops are silent

    def __call__(self, audio: Audio) -> Probabilities:
        """Probabilities of voice, `[n]`, one each 10 ms."""
        power = step_power(audio)
        if not len(power):
            return np.zeros(0, np.float32)
        around = np.convolve(np.pad(power, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
        level = 10 * np.log10(around + _SILENCE)
        floor, loud = np.percentile(level, (self.floor_percentile, self.loud_percentile))
        floor = max(floor, loud - self.most_range)
        span = max(loud - floor, self.least_range) * self.full_share
        now = np.clip((level - floor) / span, 0, 1).astype(np.float32)
        hangover = round(self.hangover_seconds * STEPS_PER_SECOND)
        recent = np.lib.stride_tricks.sliding_window_view(np.pad(now, (hangover, 0)), hangover + 1)
        held: Probabilities = recent.max(axis=1)
        return held


class Silero:
    """The network of the package silero-vad, whose weights come with it.

    It hears 32 ms at a time, each after those before it; a 10 ms step takes the probability of the 32 ms
    that its middle lies in. One at a time in a process: the network keeps a state while it listens.

    Raises:
        MissingExtraError: the package is not installed.
    """

    def __init__(self) -> None:
        self._model = _silero_model()
        self._lock = threading.Lock()

    def __call__(self, audio: Audio) -> Probabilities:
        """Probabilities of voice, `[n]`, one each 10 ms."""
        import torch

        num_steps = len(step_edges(audio)) - 1
        heard = audio if audio.sample_rate in _SILERO_RATES else audio.resample(max(_SILERO_RATES))
        if not len(heard.samples):
            return np.zeros(num_steps, np.float32)
        samples = torch.from_numpy(heard.samples.copy())[None]
        with self._lock, torch.inference_mode():
            frames = self._model.audio_forward(samples, heard.sample_rate)[0].numpy()
        middles = (np.arange(num_steps) + 0.5) / STEPS_PER_SECOND
        chosen = (middles * _SILERO_FRAMES_PER_SECOND).astype(int)
        found: Probabilities = frames[np.minimum(chosen, len(frames) - 1)].astype(np.float32)
        return found


def _silero_model() -> Any:
    """The network, in TorchScript; importing it sets torch to one thread, which is set back."""
    import torch

    num_threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the package's own, and TorchScript's
            import silero_vad

            return silero_vad.load_silero_vad()
    except ModuleNotFoundError:
        raise MissingExtraError(
            "the voice detector 'silero' is not installed: pip install 'slam[silero]'"
        ) from None
    finally:
        torch.set_num_threads(num_threads)
