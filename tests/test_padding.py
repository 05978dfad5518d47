import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import assert_same_units
from conftest import sound
from slam.audio import Audio
from slam.errors import InputError
from slam.tokenizers import hubert
from slam.tokenizers.hubert import Hubert
from slam.tokenizers.speech_features import open_features
from tiny_speech_models import FAMILIES, save_model

LENGTHS = (2.9, 0.4, 1.7, 0.031, 0.001, 1.2)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hubert]:
    """Each family with centroids among its own frames, normalised or not as it is published."""
    found = {}
    for name in FAMILIES:
        folder = save_model(tmp_path_factory.mktemp("model") / name, name, normalize="large" in name)
        features = open_features(str(folder), layer=4)
        frames = torch.cat([features(sound(2.0, number)) for number in range(3)])
        found[name] = Hubert(features, frames[:: len(frames) // 30].numpy().copy())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_no_frame_hears_the_padding(family: str, tokenizers: dict[str, Hubert]) -> None:
    features = tokenizers[family].features
    batch = [sound(seconds, number) for number, seconds in enumerate(LENGTHS)]
    for audio, frames in zip(batch, features.together(batch), strict=True):
        alone = features(audio)
        assert frames.shape == alone.shape
        torch.testing.assert_close(frames, alone, rtol=0, atol=3e-5)


@pytest.mark.parametrize("family", ["hubert-base", "mhubert-batch-norm", "data2vec-audio"])
def test_transformers_own_mask_alone_would_not_do(
    family: str, tokenizers: dict[str, Hubert], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = tokenizers[family].features
    batch = [sound(3.0, 1), sound(1.0, 2)]
    kept = features.padded._batch  # noqa: SLF001 - what the model asks
    with monkeypatch.context() as patch:
        patch.setattr(features.padded, "_batch", type(kept)())
        patch.setattr(type(features.padded), "behind", lambda *_: ThreadPoolExecutor(1))  # does nothing
        masked = features.together(batch)[1]
    assert (masked - features(batch[1])).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["hubert-base", "wavlm-large", "data2vec-audio"])
def test_company_changes_no_unit(family: str, tokenizers: dict[str, Hubert]) -> None:
    tokenizer = tokenizers[family]

    @settings(max_examples=12, deadline=None, database=None)
    @given(seconds=st.lists(st.floats(0.001, 2.0), min_size=2, max_size=6), seed=st.integers(0, 1000))
    def same(seconds: list[float], seed: int) -> None:
        batch = [sound(length, seed + number) for number, length in enumerate(seconds)]
        for audio, units in zip(batch, tokenizer.encode(batch), strict=True):
            assert_same_units(units, tokenizer.encode([audio])[0])

    same()


def test_where_rounding_could_decide_the_recording_is_encoded_alone(
    tokenizers: dict[str, Hubert], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs of centroids with a frame midway between them; company moves each by a rounding's length."""
    plain = tokenizers["hubert-base"]
    batch = [sound(seconds, number) for number, seconds in enumerate((1.9, 1.0, 0.6, 1.4))]
    frames = torch.cat([plain.features(audio) for audio in batch]).numpy()[::3]
    aside = np.random.default_rng(0).normal(0, 0.2, frames.shape).astype(np.float32)
    tokenizer = dataclasses.replace(plain, centroids=np.concatenate([frames + aside, frames - aside]))
    solo = [tokenizer.encode([audio])[0] for audio in batch]
    together = type(plain.features).together

    def moved(*given: Any) -> list[torch.Tensor]:
        found = together(*given)
        noise = [torch.randn(one.shape, generator=torch.Generator().manual_seed(0)) for one in found]
        return [
            one + 5e-6 * one.norm(dim=1, keepdim=True) * some / some.norm(dim=1, keepdim=True)
            for one, some in zip(found, noise, strict=True)
        ]

    monkeypatch.setattr(type(plain.features), "together", moved)
    for one, other in zip(tokenizer.encode(batch), solo, strict=True):
        assert_same_units(one, other)
    monkeypatch.setattr(hubert, "_ROUNDING", -1.0)  # below which not even equal distances are doubtful
    assert any(
        one.ids.tolist() != other.ids.tolist()
        for one, other in zip(tokenizer.encode(batch), solo, strict=True)
    )


def test_recordings_clear_of_doubt_are_not_encoded_twice(
    tokenizers: dict[str, Hubert], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizers["mhubert-25hz"]
    alone = []
    monkeypatch.setattr(Hubert, "_alone", lambda _, audio: alone.append(audio))
    batch = [sound(1.0 + number / 7, number) for number in range(12)]
    tokenizer.encode(batch)
    assert len(alone) <= 3


def test_a_batch_is_divided_by_its_seconds_padding_counted(
    tokenizers: dict[str, Hubert], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizers["hubert-base"]
    sizes = []
    together = type(tokenizer.features).together

    def counted(features: object, batch: list[Audio]) -> list[torch.Tensor]:
        sizes.append(len(batch) * max(audio.seconds for audio in batch))
        return together(features, batch)

    monkeypatch.setattr(type(tokenizer.features), "together", counted)
    monkeypatch.setattr(hubert, "_BATCH_SECONDS", 3.0)
    batch = [sound(seconds, number) for number, seconds in enumerate((0.5, 2.0, 0.5, 1.0, 1.0, 0.5, 4.0))]
    units = tokenizer.encode(batch)
    assert sizes
    assert max(sizes) <= 3.0
    for audio, one in zip(batch, units, strict=True):
        assert_same_units(one, tokenizer.encode([audio])[0])


def test_batches_in_several_threads_do_not_mix(tokenizers: dict[str, Hubert]) -> None:
    tokenizer = tokenizers["hubert-base"]
    batches = [[sound(0.3 + (number * k) % 5 / 4, number) for number in range(3)] for k in range(8)]
    expected = [tokenizer.encode(batch) for batch in batches]
    with ThreadPoolExecutor(4) as workers:
        for found, wanted in zip(workers.map(tokenizer.encode, batches), expected, strict=True):
            for one, other in zip(found, wanted, strict=True):
                assert_same_units(one, other)


def test_in_bf16_most_units_are_those_of_fp32(tokenizers: dict[str, Hubert]) -> None:
    tokenizer = tokenizers["mhubert-25hz"]
    half = tokenizer.at_precision("bf16")
    assert half.fingerprint == tokenizer.fingerprint
    batch = [sound(2.0 + number / 5, number) for number in range(6)]
    pairs = list(zip(tokenizer.encode(batch), half.encode(batch), strict=True))
    differing = sum((one.expand() != other.expand()).sum() for one, other in pairs)
    assert 0 < differing < 0.2 * sum(one.num_frames for one, _ in pairs)


def test_a_bad_recording_in_a_batch_is_an_error(tokenizers: dict[str, Hubert]) -> None:
    samples = sound(1.0, 0).samples.copy()
    samples[100] = np.inf
    with pytest.raises(InputError, match="not finite"):
        tokenizers["hubert-base"].encode([sound(1.5, 1), Audio(samples, 16_000)])
