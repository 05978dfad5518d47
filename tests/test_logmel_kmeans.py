import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from conftest import TINY_UNITS, sound
from slam.audio import Audio
from slam.errors import InputError, MismatchError
from slam.tokenizers import ABOUT_FILE, load_tokenizer
from slam.tokenizers.logmel_kmeans import (
    FLOOR,
    HOP,
    NUM_MELS,
    SAMPLE_RATE,
    WINDOW,
    LogMelKMeans,
    log_mel,
    mel_filters,
)


def naive(audio: Audio) -> np.ndarray:
    return reference.log_mel(
        audio.samples, hop=HOP, window=WINDOW, rate=SAMPLE_RATE, num_mels=NUM_MELS, floor=FLOOR
    )


@settings(max_examples=10, deadline=None)
@given(num_samples=st.integers(1, 8_000), seed=st.integers(0, 99))
def test_log_mel_equals_the_frame_by_frame_transform(num_samples: int, seed: int) -> None:
    audio = Audio(sound(0.5, seed).samples[:num_samples], SAMPLE_RATE)
    np.testing.assert_allclose(log_mel(audio), naive(audio), atol=2e-3)


@pytest.mark.parametrize("window", [1024, WINDOW])
def test_the_mel_filters_are_slaneys_triangles(window: int) -> None:
    expected = reference.mel_filters(window, SAMPLE_RATE, NUM_MELS)
    np.testing.assert_allclose(mel_filters(window), expected, atol=1e-7)


def test_every_frame_gets_its_nearest_centroid(tiny_tokenizer: LogMelKMeans) -> None:
    audio = sound(1.5, 60)
    points = (naive(audio) - tiny_tokenizer.mean) / tiny_tokenizer.scale
    expected = [reference.nearest(point, tiny_tokenizer.centroids) for point in points]
    assert tiny_tokenizer.encode([audio])[0].expand().tolist() == expected
    assert len(set(expected)) > 3


def test_mean_durations_are_those_of_the_fitting_sample(tiny_tokenizer: LogMelKMeans) -> None:
    lasted: dict[int, list[int]] = {unit: [] for unit in range(TINY_UNITS)}
    for units in tiny_tokenizer.encode([sound(2.0, seed) for seed in range(8)]):
        for unit, frames in reference.run_lengths(units.expand().tolist()):
            lasted[unit].append(frames)
    expected = [sum(frames) / len(frames) for frames in lasted.values()]
    np.testing.assert_allclose(tiny_tokenizer.mean_durations, expected, rtol=1e-6)


def test_too_little_speech_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match="too few to fit 50 units; give more recordings or ask for fewer"):
        LogMelKMeans.fit([sound(0.5, 0)], num_units=50, seed=0)
    with pytest.raises(InputError, match="too few"):
        LogMelKMeans.fit([], num_units=2, seed=0)
    with pytest.raises(InputError, match="too few"):
        LogMelKMeans.fit([Audio(np.zeros(160_000, np.float32), 16_000)], num_units=2, seed=0)


def test_a_changed_tokenizer_is_refused(tiny_tokenizer: LogMelKMeans, tmp_path: Path) -> None:
    tiny_tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == tiny_tokenizer.fingerprint
    path = tmp_path / "kmeans.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(MismatchError, match="the folder was changed"):
        load_tokenizer(tmp_path)


def test_a_damaged_or_missing_tokenizer_is_named(tiny_tokenizer: LogMelKMeans, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no speech tokenizer"):
        load_tokenizer(tmp_path)
    tiny_tokenizer.save(tmp_path)
    path = tmp_path / "kmeans.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"kmeans\.safetensors"):
        load_tokenizer(tmp_path)


def test_a_name_found_in_a_folder_is_never_imported(
    tiny_tokenizer: LogMelKMeans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_part.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    tiny_tokenizer.save(tmp_path / "t")
    about = json.loads((tmp_path / "t" / ABOUT_FILE).read_text())
    (tmp_path / "t" / ABOUT_FILE).write_text(json.dumps(about | {"name": "evil_part:Evil"}))
    with pytest.raises(InputError, match="name it in the recipe"):
        load_tokenizer(tmp_path / "t")
    with pytest.raises(MismatchError, match="holds the tokenizer 'evil_part:Evil', not 'mine:Mine'"):
        load_tokenizer(tmp_path / "t", named="mine:Mine")
