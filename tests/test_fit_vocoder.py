import json
import shutil
import signal
from dataclasses import replace
from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import reference
from conformance import check_vocoder
from conftest import TINY_UNITS, sound, write_recordings
from slam.audio import Audio, read_audio, write_audio
from slam.encode import EncodeConfig, encode
from slam.errors import ConfigError, InputError, MismatchError
from slam.fit_vocoder import Fitting, FitVocoderConfig, fit_vocoder
from slam.metrics.resynthesis import log_mel_distance, unit_errors
from slam.run import fingerprint_of, read_json, write_json
from slam.tokenizers import load_tokenizer
from slam.tokenizers.logmel_kmeans import LogMelKMeans, mel_filters
from slam.units import Units, deduplicate
from slam.vocoders import load_vocoder
from slam.vocoders.mel_networks import log_mel
from slam.vocoders.speech_stream import SpeechStream
from slam.vocoders.unit_mel import UnitMel, about, hop_of, new_networks, places
from tiny_speech_models import save_model

NAME = "slam.vocoders.unit_mel:UnitMel"


@pytest.fixture(scope="module")
def config(toy_units, toy_recordings):
    return FitVocoderConfig(
        units=toy_units, audio=toy_recordings, budget="80 steps", width=24, batch_seconds=4.0, held_out=0.2
    )


@pytest.fixture(scope="module")
def fitted(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("fitted") / "voice"
    return out, fit_vocoder(config, out)


@pytest.fixture(scope="module")
def short(config, tmp_path_factory):
    """The same, hardly begun."""
    out = tmp_path_factory.mktemp("short") / "voice"
    return out, fit_vocoder(replace(config, budget="10 steps"), out)


@pytest.fixture(scope="module")
def tokenizer(toy_units):
    return load_tokenizer(toy_units / "tokenizer")


@pytest.fixture(scope="module")
def vocoder(fitted, tokenizer):
    return load_vocoder(NAME, tokenizer, fitted[0])


# What is fitted


def test_a_fitted_vocoder_conforms(vocoder, tokenizer):
    assert vocoder.name == "unit-mel"
    check_vocoder(vocoder, tokenizer.encode([sound(1.3, 100), sound(2.0, 101)]), samples_per_frame=640)


def test_fitting_brings_held_out_sound_nearer_than_a_start_at_random(fitted, short):
    (_, long), (_, begun) = fitted, short
    for name in ("unit-mel", "copy-synthesis"):
        assert long.results["log_mel_distance"][name] < 0.6 * begun.results["log_mel_distance"][name]
        assert long.results["unit_error_rate"][name] < begun.results["unit_error_rate"][name]


def test_results_are_those_of_the_sounds_that_were_written(fitted, tokenizer, vocoder):
    out, run = fitted
    results = run.results
    assert (results["num_recordings"], results["num_held_out"], results["num_unmatched"]) == (10, 2, 0)
    assert results["steps"] == 80
    assert results["num_parameters"] == sum(w.numel() for w in vocoder.networks.parameters())
    speakers = {"unit-mel", "griffin-lim", "copy-synthesis"}
    assert set(results["log_mel_distance"]) == set(results["unit_error_rate"]) == speakers
    for name in speakers:
        errors = total = 0
        distances = []
        for number in range(2):
            recording = read_audio(out / "samples" / f"{number:03d}-recording.wav")
            heard = read_audio(out / "samples" / f"{number:03d}-{name}.wav")
            (meant,) = tokenizer.encode([recording])
            distances.append(log_mel_distance(heard, recording))
            errors += unit_errors(tokenizer, heard, meant)
            total += len(meant)
        # to 16 bits a sound loses what is far below its noise, and a unit may change with it
        assert results["log_mel_distance"][name] == pytest.approx(np.mean(distances), rel=0.15)
        assert results["unit_error_rate"][name] == pytest.approx(errors / total, abs=0.15)


def test_held_out_recordings_are_not_fitted_on(config, tmp_path, monkeypatch):
    seen = []
    before = SpeechStream.of.__func__
    monkeypatch.setattr(
        SpeechStream,
        "of",
        classmethod(lambda cls, spoken, *, hop: seen.append(spoken) or before(cls, spoken, hop=hop)),
    )
    fit_vocoder(replace(config, budget="10 steps"), tmp_path / "voice")
    lengths = {len(audio.samples) for _, audio in seen[0]}
    held_out = [read_audio(tmp_path / "voice" / "samples" / f"00{n}-recording.wav") for n in range(2)]
    assert len(seen[0]) == 10
    assert not lengths & {len(audio.samples) for audio in held_out}  # all toys differ in length


def test_units_without_durations_are_given_likely_ones(vocoder, fitted, tokenizer):
    assert 0.6 < fitted[1].results["length_ratio"] < 1.6
    (units,) = tokenizer.encode([sound(2.0, 100)])
    foretold = vocoder.durations(units)
    assert len(foretold) == len(units)
    assert foretold.min() >= 1
    (written,) = vocoder.decode([Units(units.ids, None, 25.0)])
    (spelled,) = vocoder.decode([Units(units.ids, foretold.astype(np.uint16), 25.0)])
    assert written.samples.tobytes() == spelled.samples.tobytes()
    assert len(written.samples) == 640 * foretold.sum()


def test_durations_follow_the_units_that_have_them(tiny_tokenizer):
    """Planted: unit n lasts n + 1 frames, but 6 frames before unit 0."""
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 4, 3000)
    ids = ids[np.concatenate(([True], ids[1:] != ids[:-1]))]
    durations = np.where(np.append(ids[1:], 1) == 0, 6, ids + 1)
    units = Units(ids.astype(np.uint16), durations.astype(np.uint16), 25.0)
    description = about(tiny_tokenizer, 32)
    networks = new_networks(description)
    silence = Audio(np.zeros(units.num_frames * 640, np.float32), 16_000)
    stream = SpeechStream.of([(units, silence)], hop=160)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=5e-3)
    for step in range(150):
        loss = stream._duration_loss(networks, np.random.default_rng(step), 8)  # noqa: SLF001 - one of three
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = UnitMel(networks.eval(), description).durations(units)
    assert np.abs(found - durations).mean() < 0.5
    assert found.sum() == pytest.approx(durations.sum(), rel=0.1)


def test_no_units_are_no_sound_and_one_frame_is_one_frame(vocoder):
    empty, unspoken = (Units(np.zeros(0, np.uint16), d, 25.0) for d in (np.zeros(0, np.uint16), None))
    single = Units(np.array([1], np.uint16), np.array([1], np.uint16), 25.0)
    assert [len(audio.samples) for audio in vocoder.decode([empty, unspoken, single])] == [0, 0, 640]


def test_a_sound_never_clips(vocoder, tokenizer):
    loud = UnitMel(new_networks(vocoder.about).eval(), vocoder.about)
    loud.networks.load_state_dict(vocoder.networks.state_dict())
    with torch.no_grad():
        loud.networks.to_sound.out.bias[:513] += 5.0
    (audio,) = loud.decode(tokenizer.encode([sound(1.0, 100)]))
    assert np.abs(audio.samples).max() == pytest.approx(0.99, abs=1e-4)


def test_units_of_a_speech_model_at_50_hz_are_spoken_too(toy_recordings, tmp_path):
    model = save_model(tmp_path / "model")
    encode(
        EncodeConfig(
            audio=toy_recordings, tokenizer="hubert", model=model, layer=2, num_units=8, num_workers=1
        ),
        tmp_path / "units",
    )
    settings = FitVocoderConfig(
        units=tmp_path / "units", audio=toy_recordings, budget="10 steps", width=16, batch_seconds=5.0
    )
    run = fit_vocoder(settings, tmp_path / "voice")
    assert set(run.results["unit_error_rate"]) == {"unit-mel", "copy-synthesis"}
    tokenizer = load_tokenizer(tmp_path / "units" / "tokenizer")
    vocoder = load_vocoder(NAME, tokenizer, tmp_path / "voice")
    units = tokenizer.encode([sound(1.0, 5), sound(1.5, 6)])
    for one, audio in zip(units, vocoder.decode(units), strict=True):
        assert len(audio.samples) == 320 * one.num_frames


# A fitting that is interrupted


@pytest.mark.parametrize("how", ["killed", "asked to stop"])
def test_an_interrupted_fitting_ends_in_the_same_weights(how, config, short, tmp_path, monkeypatch):
    going, update = [], Fitting._update  # noqa: SLF001 - where it is interrupted

    def interrupted(self, share):
        going.append(self.state.step)
        if len(going) == 8:
            if how == "killed":
                raise MemoryError
            signal.raise_signal(signal.SIGTERM)
        return update(self, share)

    monkeypatch.setattr(Fitting, "_update", interrupted)
    often = replace(config, budget="10 steps", checkpoint_seconds=1e-9)
    with pytest.raises((MemoryError, SystemExit)):
        fit_vocoder(often, tmp_path / "cut")
    assert len(going) == 8  # it has not gone on to the end of its budget
    assert not (tmp_path / "cut" / "vocoder.json").exists()
    run = fit_vocoder(often, tmp_path / "cut")
    assert going[8] == (7 if how == "killed" else 8)  # and not from the first
    assert run.results["steps"] == 10
    whole, cut = (load_file(folder / "vocoder.safetensors") for folder in (short[0], tmp_path / "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_a_budget_of_seconds_ends_on_the_clock_and_another_seed_is_another_voice(
    config, short, tmp_path, monkeypatch
):
    clock = SimpleNamespace(perf_counter=partial(next, count(0.0, 1 / 32)))  # whatever this machine takes
    with monkeypatch.context() as patched:
        patched.setattr("slam.fit_vocoder.time", clock)
        timed = fit_vocoder(replace(config, budget="1 s or 5000 steps"), tmp_path / "timed")
    assert 10 <= timed.results["steps"] <= 32
    assert timed.results["fitting_seconds"] >= 1
    fit_vocoder(replace(config, budget="10 steps", seed=1), tmp_path / "1")
    one, other = (load_file(folder / "vocoder.safetensors") for folder in (short[0], tmp_path / "1"))
    assert not torch.equal(one["to_mel.out.weight"], other["to_mel.out.weight"])


def test_a_loss_that_is_no_number_stops_with_a_word(config, tmp_path, monkeypatch):
    broken = {"mel": torch.tensor(float("nan"), requires_grad=True)}
    monkeypatch.setattr(SpeechStream, "losses", lambda *_, **__: broken)
    with pytest.raises(InputError, match=r"the loss is .*nan.* at step 0; lower learning_rate"):
        fit_vocoder(config, tmp_path / "voice")


# Measures and their pieces


@given(st.lists(st.integers(0, 4), max_size=12), st.lists(st.integers(0, 4), max_size=12))
@settings(max_examples=200, deadline=None)
def test_unit_errors_are_the_edits_of_the_textbook(one, other):
    class Hears:
        sample_rate = 16_000

        def encode(self, batch):
            return [Units(np.array(one, np.uint16), None, 50.0) for _ in batch]

    meant = Units(np.array(other, np.uint16), None, 50.0)
    found = unit_errors(Hears(), Audio(np.zeros(160, np.float32), 16_000), meant)
    assert found == reference.edit_distance(one, other)


def test_log_mel_is_that_of_scipy():
    samples = sound(0.5, 3).samples
    _, _, spectra = scipy.signal.stft(
        samples, nperseg=1024, noverlap=864, window="hann", boundary="zeros", padded=False, scaling="spectrum"
    )
    power = np.abs(spectra * 512).T ** 2  # scipy divides by the sum of the window
    wanted = np.log(power @ mel_filters(1024) + 1e-5)
    found = log_mel(torch.from_numpy(samples), 160).numpy()
    assert found.shape == (len(samples) // 160 + 1, 80)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_the_distance_is_in_decibels():
    noise = Audio(np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32), 16_000)
    half = Audio(noise.samples / 2, 16_000)
    assert log_mel_distance(noise, noise) == 0
    assert log_mel_distance(half, noise) == pytest.approx(6.02, abs=0.05)
    assert (
        log_mel_distance(Audio(noise.samples[:12_000], 16_000), noise) < 0.5
    )  # its last frames alone differ


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
@settings(deadline=None)
def test_a_frame_knows_its_place_in_its_unit(durations):
    expected = [
        [min(into, 10) / 5, min(length - 1 - into, 10) / 5, np.log(length)]
        for length in durations
        for into in range(length)
    ]
    np.testing.assert_allclose(places(np.array(durations, np.uint16)), expected, atol=1e-6)


def test_the_stream_keeps_units_spectra_and_samples_together(tiny_tokenizer: LogMelKMeans):
    spoken = []
    for seed in (1, 2, 3):
        audio = sound(1.0, seed)
        spoken.append((tiny_tokenizer.encode([audio])[0], audio))
    stream = SpeechStream.of(spoken, hop=160)
    assert len(stream.samples) == 160 * len(stream.spectra) == 640 * len(stream.frames)
    for number, (units, audio) in enumerate(spoken):
        frames = slice(25 * number, 25 * (number + 1))
        assert stream.frames[frames].tolist() == units.expand().tolist()
        assert torch.equal(
            stream.spectra[100 * number : 100 * (number + 1)],
            log_mel(torch.from_numpy(audio.samples), 160)[:-1],
        )
        assert torch.equal(stream.samples[16_000 * number :][:16_000], torch.from_numpy(audio.samples))


@pytest.mark.parametrize(("rate", "hop"), [(25.0, 160), (50.0, 160), (100.0, 160), (12.5, 160), (40.0, 200)])
def test_a_hop_divides_a_frame(rate, hop):
    assert hop_of(rate) == hop


@pytest.mark.parametrize("rate", [75.0, 49.95, 0.0, 16_000 / 641])
def test_a_frame_of_no_whole_number_of_hops_is_refused(rate):
    with pytest.raises(ConfigError, match="unit-mel cannot speak units at"):
        hop_of(rate)


# Bad input


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"budget": "9 steps"}, "fewer than 10"),
        ({"budget": "1M tokens"}, "counts no tokens"),
        ({"budget": "5"}, "write a number with its unit"),
        ({"learning_rate": float("nan")}, "learning_rate = nan: must be more than 0"),
        ({"held_out": 1.0}, "held_out = 1.0: must be a share"),
        ({"width": 4}, "width = 4"),
        ({"fit_seconds": 0.0}, "fit_seconds = 0.0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(setting, line, config):
    with pytest.raises(ConfigError, match=line):
        replace(config, **setting)


def test_a_clock_that_buys_no_training_is_refused(config, tmp_path):
    for budget in ("0.001 s", "0.1 s"):
        with pytest.raises(ConfigError, match="fewer than 10"):
            fit_vocoder(replace(config, budget=budget, batch_seconds=30.0), tmp_path / "voice")
    assert not (tmp_path / "voice").exists()  # so that another budget can be tried in the same place


def test_recordings_of_others_are_refused(config, tmp_path):
    strange = tmp_path / "strange"
    for number in range(5):
        write_audio(strange / f"{number}.wav", sound(0.5, number))
    with pytest.raises(InputError, match="0 of its 5 recordings have units in"):
        fit_vocoder(replace(config, audio=strange), tmp_path / "voice")


def test_what_has_no_other_side_is_counted_and_named(config, toy_recordings, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(toy_recordings, some)
    rows = (some / "manifest.jsonl").read_text().splitlines()
    extra = json.dumps(json.loads(rows[3]) | {"id": "never-encoded"})
    (some / "manifest.jsonl").write_text("\n".join([*rows[2:], extra]) + "\n")
    run = fit_vocoder(replace(config, audio=some, budget="10 steps"), tmp_path / "voice")
    assert run.results["num_unmatched"] == 3
    assert run.results["unmatched"] == ["never-encoded", "toy-00", "toy-01"]


def test_other_recordings_under_the_same_names_are_refused(config, tmp_path):
    other = write_recordings(tmp_path / "other")
    write_audio(other / "audio/05.wav", sound(3.0, 1))
    with pytest.raises(MismatchError, match=r"05\.wav: lasts 3\.00 s, its units 1\.\d+ s"):
        fit_vocoder(replace(config, audio=other), tmp_path / "voice")


def test_a_voice_of_other_units_is_refused(fitted):
    other = LogMelKMeans.fit([sound(2.0, 60)], num_units=TINY_UNITS, seed=3)
    with pytest.raises(MismatchError, match=r"speaks units of logmel-kmeans .* fit a vocoder on these"):
        load_vocoder(NAME, other, fitted[0])
    fewer = LogMelKMeans.fit([sound(2.0, 60)], num_units=7, seed=3)
    line = "speaks 12 units at 25 Hz, the tokenizer 'logmel-kmeans' has 7 at 25 Hz"
    with pytest.raises(MismatchError, match=line):
        load_vocoder(NAME, fewer, fitted[0])


def test_units_that_the_voice_does_not_know_are_refused(vocoder):
    with pytest.raises(MismatchError, match="a unit 12 at 25 Hz, but this vocoder speaks 12"):
        vocoder.decode([deduplicate(np.array([1, 12]), 25.0)])
    with pytest.raises(MismatchError, match="a unit 1 at 50 Hz"):
        vocoder.decode([deduplicate(np.array([1, 1]), 50.0)])


def test_a_voice_needs_its_folder(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="unit-mel needs vocoder_from"):
        load_vocoder(NAME, tokenizer)
    with pytest.raises(InputError, match="holds no vocoder"):
        load_vocoder(NAME, tokenizer, tmp_path)


def spoil_weights(folder):
    content = bytearray((folder / "vocoder.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "vocoder.safetensors").write_bytes(content)


def put_nan(folder):
    weights = load_file(folder / "vocoder.safetensors")
    weights["to_mel.out.bias"][3] = float("nan")
    renew(folder, weights)


def drop_a_weight(folder):
    weights = load_file(folder / "vocoder.safetensors")
    del weights["to_sound.out.bias"]
    renew(folder, weights)


def renew(folder, weights):
    import hashlib

    save_file(weights, folder / "vocoder.safetensors")
    digest = hashlib.sha256((folder / "vocoder.safetensors").read_bytes()).hexdigest()
    write_json(folder / "vocoder.json", read_json(folder / "vocoder.json") | {"weights": digest})


def change(key, value):
    return lambda folder: write_json(
        folder / "vocoder.json", read_json(folder / "vocoder.json") | {key: value}
    )


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: (folder / "vocoder.safetensors").unlink(), "no weights of a unit-mel vocoder"),
        (spoil_weights, "is not what was written"),
        (put_nan, "holds weights that are not finite"),
        (drop_a_weight, "no weights of a unit-mel vocoder"),
        (change("width", 10**9), "describes no unit-mel vocoder"),
        (change("width", 48), "no weights of a unit-mel vocoder"),
        (change("name", "strange"), "describes another vocoder, strange at 16000 Hz"),
        (change("sample_rate", 24_000), "describes another vocoder, unit-mel at 24000 Hz"),
        (lambda folder: (folder / "vocoder.json").write_text("{"), "not JSON"),
    ],
)
def test_a_damaged_voice_is_known_for_what_it_is(damage, line, fitted, tokenizer, tmp_path):
    folder = tmp_path / "voice"
    shutil.copytree(fitted[0], folder)
    damage(folder)
    with pytest.raises(InputError, match=line):
        load_vocoder(NAME, tokenizer, folder)


def test_a_finished_voice_is_left_alone(config, fitted):
    out, run = fitted
    before = (out / "vocoder.safetensors").stat().st_mtime_ns
    assert fit_vocoder(config, out) == run
    assert (out / "vocoder.safetensors").stat().st_mtime_ns == before
    assert fingerprint_of(out) == run.fingerprint
