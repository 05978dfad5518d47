"""A sound made from units → its distance from the recording, and the units not heard in it again."""

import math

import numpy as np

from slam.audio import Audio
from slam.tokenizers import SpeechTokenizer
from slam.units import Units

_SAMPLE_RATE = 16_000  # Hz
_HOP = 160  # samples
_DECIBELS = 10.0 / math.log(10.0)  # in a natural logarithm of power


def log_mel_distance(heard: Audio, meant: Audio) -> float:
    """Mean absolute difference of 80 log-mel bands of 64 ms frames, 10 ms apart, in dB.

    The longer of the two is cut to the other's length; no sound at all is at no distance.
    """
    import torch

    from slam.vocoders.mel_networks import log_mel

    samples = [audio.resample(_SAMPLE_RATE).samples for audio in (heard, meant)]
    length = min(map(len, samples))
    if not length:
        return 0.0
    one, other = (log_mel(torch.from_numpy(np.ascontiguousarray(some[:length])), _HOP) for some in samples)
    return float((one - other).abs().mean()) * _DECIBELS


def unit_errors(tokenizer: SpeechTokenizer, heard: Audio, meant: Units) -> int:
    """How many units must be put in, left out or replaced to get `meant` from the sound's own."""
    from rapidfuzz.distance import Levenshtein

    (found,) = tokenizer.encode([heard.resample(tokenizer.sample_rate)])
    return Levenshtein.distance(found.ids.tolist(), meant.ids.tolist())
