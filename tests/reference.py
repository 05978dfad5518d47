"""Slow, obvious oracles for the data half: plain loops that can be checked by reading them."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile


def run_lengths(frames: Sequence[int], longest: int = 65_535) -> list[tuple[int, int]]:
    """`[(label, how often in a row)]`; a run longer than `longest` is cut."""
    runs: list[tuple[int, int]] = []
    for label in frames:
        if runs and runs[-1][0] == label and runs[-1][1] < longest:
            runs[-1] = (label, runs[-1][1] + 1)
        else:
            runs.append((label, 1))
    return runs


def expanded(runs: Sequence[tuple[int, int]]) -> list[int]:
    """Every label as often as it came."""
    return [label for label, times in runs for _ in range(times)]


def framed(
    documents: Sequence[Sequence[int]], offset: int = 2, boundary: int = 1
) -> tuple[list[int], list[int]]:
    """Tokens and ends of the documents, written one by one; empty ones are left out."""
    tokens: list[int] = []
    ends: list[int] = []
    for document in documents:
        if document:
            tokens += [boundary, *(unit + offset for unit in document), boundary]
            ends.append(len(tokens))
    return tokens, ends


def batches(order: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Documents in that order, a new batch whenever the next one would not fit."""
    batch: list[int] = []
    for document in order:
        if batch and sum(lengths[d] for d in batch) + lengths[document] > size:
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch


def slaney_mel(hertz: float) -> float:
    """Hertz → mel: straight up to 1 kHz, logarithmic above (Slaney, Auditory Toolbox, 1998)."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + math.log(hertz / 1000) * 27 / math.log(6.4)


def slaney_hertz(mel: float) -> float:
    """Mel → hertz, the inverse of `slaney_mel`."""
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


def mel_filters(window: int, rate: int, num_mels: int) -> np.ndarray:
    """Triangles of unit area, `[window / 2 + 1, num_mels]`, evenly spaced in mel from 0 to half the rate."""
    top = slaney_mel(rate / 2)
    edges = [slaney_hertz(top * i / (num_mels + 1)) for i in range(num_mels + 2)]
    filters = np.zeros((window // 2 + 1, num_mels))
    for mel in range(num_mels):
        low, middle, high = edges[mel : mel + 3]
        for bin_ in range(window // 2 + 1):
            hertz = bin_ * rate / window
            rise, fall = (hertz - low) / (middle - low), (high - hertz) / (high - middle)
            filters[bin_, mel] = max(0.0, min(rise, fall)) * 2 / (high - low)
    return filters


def log_mel(
    samples: np.ndarray, *, hop: int, window: int, rate: int, num_mels: int, floor: float
) -> np.ndarray:
    """Log-mel power of frames centred on their `hop` samples, one frame at a time, in float64."""
    filters = mel_filters(window, rate, num_mels)
    hann = np.array([0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)])
    frames = []
    for start in range(0, len(samples), hop):
        first = start + hop // 2 - window // 2
        cut = np.array([samples[n] if 0 <= n < len(samples) else 0.0 for n in range(first, first + window)])
        power = np.abs(np.fft.rfft(cut.astype(np.float64) * hann)) ** 2
        frames.append(np.log(power @ filters + floor))
    return np.array(frames)


def nearest(point: np.ndarray, centroids: np.ndarray) -> int:
    """The centroid at the least distance, all of them tried."""
    return min(range(len(centroids)), key=lambda k: float(((point - centroids[k]) ** 2).sum()))


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Fewest insertions, deletions and exchanges that turn one row into the other."""
    above = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
        above = row
    return above[-1]


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file's content, but for what tells of the run itself (times, memory)."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(found.items()) if name != "run.json"}


def pcm(path: Path) -> np.ndarray:
    """The 16-bit samples of a sound file, as libsndfile gives them."""
    samples, _ = soundfile.read(path, dtype="int16")
    return samples
