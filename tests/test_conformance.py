"""The built-in parts keep the contract of `conformance.py`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

import pytest

from conformance import check_synthesizer, check_tokenizer, check_vocoder
from conftest import sound
from slam import synthesizers, tokenizers, vocoders
from slam.errors import ConfigError, MismatchError
from slam.synthesizers import load_synthesizer
from slam.tokenizers import SpeechTokenizer, check_settings, load_tokenizer, tokenizer_class
from slam.vocoders import load_vocoder
from slam.vocoders.unit_mel import UnitMel, about, new_networks
from tiny_speech_models import save_as_published, save_model
from tiny_vocoders import SPEAKS_25_HZ, save_vocoder

RECORDINGS = [sound(1.3, 100), sound(2.0, 101), sound(1.1, 102, rate=22_050)]


FITTED = {
    "logmel-kmeans": lambda _: {},
    "hubert": lambda folder: {"layer": 3, "model": save_model(folder / "model")},
}


def preset(name: str, folder: Path) -> SpeechTokenizer:
    """A preset with a small model and centroids in the place of the published ones."""
    about = resolve_name(tokenizers.BUILT_IN[name])
    family = {25.0: "mhubert-25hz", 50.0: "hubert-base"}[about.frame_rate]
    model, kmeans = save_as_published(folder, layers=about.layer, family=family)
    return replace(about, kmeans_sha256=None).fit([], num_units=1, seed=0, model=model, kmeans=kmeans)


@pytest.mark.parametrize("name", sorted(tokenizers.BUILT_IN))
def test_every_tokenizer_conforms(name: str, tmp_path: Path) -> None:
    if name in FITTED:
        settings = FITTED[name](tmp_path)
        check_settings(name, settings)
        recordings = [sound(2.0, seed) for seed in range(6)]
        tokenizer = tokenizer_class(name).fit(recordings, num_units=16, seed=1, **settings)
        assert tokenizer.num_units == 16
    else:
        tokenizer = preset(name, tmp_path)
        assert tokenizer.num_units == 500
    check_tokenizer(tokenizer, tmp_path / "saved", RECORDINGS)
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("name", sorted(FITTED))
def test_fitting_is_a_function_of_recordings_and_seed(name: str, tmp_path: Path) -> None:
    recordings, settings = [sound(2.0, seed) for seed in range(6)], FITTED[name](tmp_path)
    one, again, other = (
        tokenizer_class(name).fit(iter(recordings), num_units=16, seed=seed, **settings) for seed in (1, 1, 2)
    )
    assert one.fingerprint == again.fingerprint != other.fingerprint


def fitted_voice(folder: Path, tokenizer: SpeechTokenizer) -> Path:
    description = about(tokenizer, width=16)
    UnitMel(new_networks(description).eval(), description).save(folder)
    return folder


# the folder of weights that a vocoder of 12 units at 25 Hz speaks with
VOICES: dict[str, Callable[[Path, SpeechTokenizer], Path | None]] = {
    "griffin-lim": lambda *_: None,
    "unit-hifigan": lambda folder, _: save_vocoder(folder, SPEAKS_25_HZ),
    "unit-mel": fitted_voice,
}


@pytest.mark.parametrize("name", sorted(vocoders.BUILT_IN))
def test_every_vocoder_conforms(name: str, tiny_tokenizer: SpeechTokenizer, tmp_path: Path) -> None:
    vocoder = load_vocoder(name, tiny_tokenizer, VOICES[name](tmp_path, tiny_tokenizer))
    assert vocoder.name == name
    check_vocoder(vocoder, tiny_tokenizer.encode(RECORDINGS), samples_per_frame=640)


@pytest.mark.parametrize("name", sorted(vocoders.BUILT_IN))
def test_a_vocoder_refuses_units_that_it_cannot_speak(
    name: str, tiny_tokenizer: SpeechTokenizer, tmp_path: Path
) -> None:
    class Strange:
        name = "strange"
        fingerprint = "f"
        num_units = 7
        frame_rate = 12.5

    with pytest.raises((ConfigError, MismatchError), match="'strange'"):
        load_vocoder(name, Strange(), VOICES[name](tmp_path, tiny_tokenizer))


# Kokoro and Piper conform in their own tests, with the folders that they need
def test_espeak_conforms() -> None:
    pytest.importorskip("espeakng_loader", reason="slam[espeak] is not installed")
    assert set(synthesizers.BUILT_IN) == {"espeak", "kokoro", "piper"}
    check_synthesizer(load_synthesizer("espeak"), "en-us")


def test_espeak_lists_the_voices_that_it_has() -> None:
    pytest.importorskip("espeakng_loader", reason="slam[espeak] is not installed")
    espeak = load_synthesizer("espeak")
    with pytest.raises(ConfigError, match=r"no voice 'en-nowhere'; it has .*en-us"):
        espeak.check_voice("en-nowhere")
    with pytest.raises(ConfigError, match=r"no variant 'nobody'; it has .*f3"):
        espeak.check_voice("en-us+nobody")
    espeak.check_voice("en-us+f3")
