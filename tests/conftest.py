"""What the tests share: real recordings where there are any, and a small tokenizer and corpus made here."""

import os
from pathlib import Path

import numpy as np
import pytest

from slam.audio import Audio, write_audio
from slam.encode import EncodeConfig, encode
from slam.run import write_json_lines
from slam.tokenizers.logmel_kmeans import LogMelKMeans

RATE = 16_000
TINY_UNITS = 12
SHARED_DATA = Path(os.environ.get("SLAM_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def sound(seconds: float, seed: int, rate: int = RATE) -> Audio:
    """Something with as many colours as speech: a sweep with overtones, a burst of noise, a pause."""
    generator = np.random.default_rng(seed)
    times = np.arange(int(seconds * rate)) / rate
    low, high = generator.uniform(80, 400), generator.uniform(500, 3000)
    phase = 2 * np.pi * (low * times + (high - low) * times**2 / (2 * max(seconds, 1e-3)))
    loudness = generator.uniform(0.05, 0.2)
    tone = sum(np.sin(phase * k) / k for k in (1, 2, 3))
    noise = generator.normal(0, 0.1, len(times))
    part = (times * generator.uniform(2, 4)).astype(int) % 3  # tone, noise, silence by turns
    samples = np.where(part == 0, loudness * tone, np.where(part == 1, noise, 0.0))
    return Audio(samples.astype(np.float32), rate)


def write_recordings(folder: Path, count: int = 12, *, first_seed: int = 0) -> Path:
    """A folder as `slam synthesize` leaves one: sounds of different lengths and their manifest."""
    rows = []
    for number in range(count):
        audio = sound(0.5 + 0.13 * number, first_seed + number)
        name = f"audio/{number:02d}.wav"
        write_audio(folder / name, audio)
        rows.append(
            {"id": f"toy-{number:02d}", "audio": name, "seconds": audio.seconds, "text": f"toy {number}"}
        )
    write_json_lines(folder / "manifest.jsonl", rows)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings and word lists (see CONTRIBUTING)."""
    if not (SHARED_DATA / "librispeech").is_dir():
        pytest.skip(f"no shared data in {SHARED_DATA}; set SLAM_SHARED_DATA to its folder")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_tokenizer() -> LogMelKMeans:
    """Twelve units, fitted on a few seconds of `sound`."""
    return LogMelKMeans.fit((sound(2.0, seed) for seed in range(8)), num_units=TINY_UNITS, seed=0)


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tiny_tokenizer: LogMelKMeans, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `tiny_tokenizer` is saved."""
    folder = tmp_path_factory.mktemp("tiny-tokenizer")
    tiny_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def toy_recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen short sounds with a manifest; not to be written to."""
    return write_recordings(tmp_path_factory.mktemp("toy") / "recordings")


@pytest.fixture(scope="session")
def toy_units(toy_recordings: Path) -> Path:
    """`toy_recordings`, encoded with a tokenizer fitted on them; not to be written to."""
    out = toy_recordings.parent / "units"
    encode(
        EncodeConfig(
            audio=toy_recordings, num_units=TINY_UNITS, shard_size=5, num_workers=2, max_failures=0.0
        ),
        out,
    )
    return out
