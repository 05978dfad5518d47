"""Speech → a tokenizer: k-means over log-mel frames or a layer of a speech model, and how well it fitted.

The tokenizer is the one that `slam encode` with the same settings would fit for itself. Fitted alone, it can
be looked at before hours of speech are encoded, and several can be made and compared (`slam probe-units`).
"""

import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slam.audio import read_blocks
from slam.errors import ConfigError, InputError
from slam.fitting import FitConfig, fit_tokenizer
from slam.metrics.unit_quality import perplexity
from slam.progress import bar
from slam.recordings import BLOCK_SECONDS, Recording, find_recordings
from slam.run import Results, effort, read_json, stage, write_json
from slam.tokenizers import ABOUT_FILE, SpeechTokenizer, load_tokenizer
from slam.units import TOKENIZER_FOLDER, Units

CURVE_FILE = "inertia.json"


@dataclass(frozen=True, kw_only=True)
class FitUnitsConfig(FitConfig):
    """Settings of `slam fit-units`."""

    num_workers: int = effort(lambda: os.cpu_count() or 1)
    """Recordings that are encoded at the same time, to count the units in use."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_workers < 1:
            raise ConfigError("num_workers must be more than 0")
        self.check_settings()


@stage
def fit_units(config: FitUnitsConfig, out: Path) -> Results:
    """Fit a tokenizer into `out/tokenizer`, then encode its sample again to see which units are in use.

    Raises:
        InputError: there is no recording that can be read, or too little speech.
        ConfigError: the tokenizer does not take the settings.
    """
    recordings = find_recordings(config.audio)
    folder = out / TOKENIZER_FOLDER
    if not (folder / ABOUT_FILE).is_file():
        tokenizer, curve = _fitted(config, recordings)
        write_json(out / CURVE_FILE, curve)  # first, so that a saved tokenizer has told of its fit
        tokenizer.save(folder)
    tokenizer = load_tokenizer(folder, named=config.named)
    return {
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "frame_rate": tokenizer.frame_rate,
        "inertia_per_frame": [row["inertia_per_frame"] for row in read_json(out / CURVE_FILE)],
        **_usage(config, tokenizer, recordings),
    }


def _fitted(
    config: FitUnitsConfig, recordings: Sequence[Recording]
) -> tuple[SpeechTokenizer, list[dict[str, Any]]]:
    """A tokenizer and its inertia curve, which is empty if it was not fitted here or does not tell."""
    curve: list[dict[str, Any]] = []

    def watch(iterations: int, inertia: float) -> None:
        curve.append({"iterations": iterations, "inertia_per_frame": round(inertia, 6)})

    return fit_tokenizer(config, recordings, watch), curve


def _usage(config: FitUnitsConfig, tokenizer: SpeechTokenizer, recordings: Sequence[Recording]) -> Results:
    """What the tokenizer makes of the sample that it was fitted on, and what of it could not be read."""
    counts = np.zeros(tokenizer.num_units, np.int64)
    seconds, num_frames, num_recordings = 0.0, 0, 0
    failures: list[str] = []
    with bar("counting units", config.fit_seconds) as progress:
        for blocks, reason in _encoded(config, tokenizer, recordings):
            failures += [] if reason is None else [reason]
            num_recordings += bool(blocks)
            for length, units in blocks:
                if seconds < config.fit_seconds:
                    counts += np.bincount(units.ids, minlength=len(counts))
                    num_frames += units.num_frames
                    seconds += length
            progress.reach(seconds)
            if seconds >= config.fit_seconds:
                break
    if not num_recordings:
        raise InputError(f"{config.audio}: no recording can be read, the first: {failures[0]}")
    return {
        "num_recordings": num_recordings,
        "num_failures": len(failures),
        "failures": failures[:20],
        "seconds_of_speech": round(seconds, 2),
        "num_frames": num_frames,
        "num_units": int(counts.sum()),
        "units_per_second": round(float(counts.sum()) / max(seconds, 1e-9), 2),
        "vocabulary_used": int((counts > 0).sum()),
        "vocabulary": tokenizer.num_units,
        "unit_perplexity": round(perplexity(counts), 2),
    }


def _encoded(
    config: FitUnitsConfig, tokenizer: SpeechTokenizer, recordings: Sequence[Recording]
) -> Iterator[tuple[list[tuple[float, Units]], str | None]]:
    """What `_encode` makes of each recording, in the sample's order."""
    from threadpoolctl import threadpool_limits

    order = list(recordings)
    random.Random(config.seed).shuffle(order)  # noqa: S311 - as `sample_recordings` has it
    with threadpool_limits(1), ThreadPoolExecutor(config.num_workers) as workers:
        for start in range(0, len(order), config.num_workers):
            yield from workers.map(
                partial(_encode, tokenizer=tokenizer, most_seconds=config.fit_seconds),
                order[start : start + config.num_workers],
            )


def _encode(
    recording: Recording, tokenizer: SpeechTokenizer, most_seconds: float
) -> tuple[list[tuple[float, Units]], str | None]:
    """Seconds and units of a recording's blocks, as far as they are wanted; and why it went no further."""
    found: list[tuple[float, Units]] = []
    try:
        for audio in read_blocks(recording.path, BLOCK_SECONDS):
            units = tokenizer.encode([audio.resample(tokenizer.sample_rate)])[0]
            found.append((audio.seconds, units))
            if sum(seconds for seconds, _ in found) >= most_seconds:
                break
    except InputError as error:
        return found, str(error)
    return found, None
