import numpy as np
import pytest
import scipy.signal

import reference
from conftest import sound
from slam.audio import Audio
from slam.errors import ConfigError
from slam.tokenizers.logmel_kmeans import LogMelKMeans, log_mel
from slam.units import Units
from slam.vocoders import griffin_lim, load_vocoder
from slam.vocoders.griffin_lim import GriffinLim


@pytest.fixture(scope="module")
def vocoder(tiny_tokenizer: LogMelKMeans) -> GriffinLim:
    return load_vocoder("griffin-lim", tiny_tokenizer)


def test_the_sound_has_the_spectra_of_its_units(vocoder: GriffinLim, tiny_tokenizer: LogMelKMeans) -> None:
    generator = np.random.default_rng(0)
    for units in tiny_tokenizer.encode([sound(2.0, seed) for seed in (50, 51, 52)]):
        (audio,) = vocoder.decode([units])
        frames = units.expand()
        spectra = tiny_tokenizer.centroids * tiny_tokenizer.scale + tiny_tokenizer.mean
        noise = Audio(generator.normal(0, audio.samples.std(), len(audio.samples)).astype(np.float32), 16_000)

        def distance(heard: Audio, meant: np.ndarray, spectra: np.ndarray = spectra) -> float:
            return float(np.abs(log_mel(heard) - spectra[meant]).mean())

        own = distance(audio, frames)
        assert own < distance(noise, frames) / 2
        assert own < distance(audio, generator.permutation(frames)) / 2


def test_the_phases_agree_with_the_magnitudes(
    vocoder: GriffinLim, tiny_tokenizer: LogMelKMeans, monkeypatch: pytest.MonkeyPatch
) -> None:
    (units,) = tiny_tokenizer.encode([sound(2.0, 50)])
    wanted = vocoder._magnitudes(units.expand().astype(int))  # noqa: SLF001 - what the phases are sought for

    def inconsistency() -> float:
        """How far the sound's own magnitudes are from those wanted, whatever its loudness."""
        (audio,) = vocoder.decode([units])
        _, _, found = scipy.signal.stft(
            audio.samples, nperseg=1024, noverlap=864, window="hann", padded=False
        )
        found = np.abs(found[:, : wanted.shape[1]])
        meant = wanted[:, : found.shape[1]]
        gain = (meant * found).sum() / (found * found).sum()
        return float(np.linalg.norm(gain * found - meant) / np.linalg.norm(meant))

    iterated = inconsistency()
    monkeypatch.setattr(griffin_lim, "_ITERATIONS", 0)
    assert iterated < inconsistency() / 2


def test_units_are_heard_again_in_their_sound(vocoder: GriffinLim, tiny_tokenizer: LogMelKMeans) -> None:
    generator = np.random.default_rng(0)
    wrong, by_chance, total = 0, 0, 0
    for units in tiny_tokenizer.encode([sound(2.0, seed) for seed in range(50, 58)]):
        (heard,) = tiny_tokenizer.encode(vocoder.decode([units]))
        shuffled = generator.permutation(heard.expand())
        wrong += int((heard.expand() != units.expand()).sum())
        by_chance += int((shuffled != units.expand()).sum())
        total += units.num_frames
    assert wrong / total < 0.3
    assert by_chance / total > 0.7


def test_real_speech_survives_units_and_back(shared_data: object) -> None:
    from slam.audio import read_audio

    recordings = [read_audio(path) for path in sorted(shared_data.glob("librispeech/*.flac"))[:4]]
    tokenizer = LogMelKMeans.fit(recordings, num_units=32, seed=0)
    vocoder = load_vocoder("griffin-lim", tokenizer)
    units = tokenizer.encode([recordings[2]])[0]
    (heard,) = tokenizer.encode(vocoder.decode([units]))
    errors = reference.edit_distance(units.ids.tolist(), heard.ids.tolist())
    chance = reference.edit_distance(
        units.ids.tolist(), np.random.default_rng(0).permutation(heard.ids).tolist()
    )
    assert errors / len(units) < 0.45
    assert chance / len(units) > 0.75


def test_units_without_durations_last_their_mean(vocoder: GriffinLim) -> None:
    ids = np.array([0, 3, 5, 3, 1, 7, 2, 11] * 3, np.uint16)
    written = Units(ids, None, 25.0)
    (audio,) = vocoder.decode([written])
    means = vocoder.mean_durations[ids]
    assert len(audio.samples) == 640 * round(float(means.sum()))
    # the same as with the durations written out, of which none is far from its unit's mean
    ends = np.rint(np.cumsum(means))
    durations = np.diff(ends, prepend=0).astype(np.uint16)
    assert np.abs(durations - means).max() <= 1
    (spelled,) = vocoder.decode([Units(ids, durations, 25.0)])
    assert audio.samples.tobytes() == spelled.samples.tobytes()


def test_no_units_are_no_sound_and_one_frame_is_one_frame(vocoder: GriffinLim) -> None:
    empty = Units(np.zeros(0, np.uint16), np.zeros(0, np.uint16), 25.0)
    single = Units(np.array([1], np.uint16), np.array([1], np.uint16), 25.0)
    silent, short = vocoder.decode([empty, single])
    assert len(silent.samples) == 0
    assert len(short.samples) == 640


def test_loud_spectra_never_clip(vocoder: GriffinLim) -> None:
    loud = GriffinLim(vocoder.log_spectra + 20, vocoder.mean_durations)
    units = Units(np.array([1, 4, 1], np.uint16), np.array([3, 2, 3], np.uint16), 25.0)
    (audio,) = loud.decode([units])
    assert np.abs(audio.samples).max() == pytest.approx(0.9, abs=1e-3)


def test_an_unknown_vocoder_is_answered_with_the_known_ones(tiny_tokenizer: LogMelKMeans) -> None:
    with pytest.raises(ConfigError, match="no vocoder is called 'griffin'; did you mean 'griffin-lim'"):
        load_vocoder("griffin", tiny_tokenizer)
