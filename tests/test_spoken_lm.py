"""What a Python program hears: continuations, streams, likelihoods; one line for what cannot be."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import slam
import toy_language
from conftest import sound
from reference_model import document_logits, load_plainly
from slam.audio import write_audio
from slam.errors import ConfigError, InputError, MismatchError
from slam.generate import GenerateConfig, generate
from slam.model import SpeechLM
from slam.run import read_json_lines
from slam.sampling import seed_of

FRAME_SECONDS = 0.04


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("spoken")
    toy_language.write_lm(root / "lm", toy_language.new_toy_lm(context=256))
    toy_language.write_units(root / "units", {"said": [1, 2, 3]})
    return root


@pytest.fixture(scope="module")
def slm(folder):
    return slam.load(str(folder / "lm"), tokenizer=str(folder / "units"), vocoder="griffin-lim")


@pytest.fixture(scope="module")
def audio():
    return sound(1.5, 3)


def test_a_continuation_is_that_of_slam_generate(slm, folder, audio, tmp_path):
    """The same prompt as units on disk, the same seed: the same units, the same sound."""
    prompt = slm.encode(audio)
    toy_language.write_units(tmp_path / "units", {"prompt": prompt.ids})
    config = GenerateConfig(
        models={"lm": folder / "lm"},
        prompts=tmp_path / "units",
        prompt_seconds=0,
        max_new_units=30,
        alone=True,
    )
    generate(config, tmp_path / "made")
    row = read_json_lines(tmp_path / "made" / "continuations.jsonl")[1]
    said = slm.continue_speech(audio, max_new_units=30, seed=seed_of(0, "prompt"))
    samples, rate = soundfile.read(tmp_path / "made" / row["alone"], dtype="float32")
    assert said.sample_rate == rate
    assert np.abs(said.samples - samples).max() <= 2 / 2**15
    assert slm.continue_speech(audio, max_new_units=30, seed=7).samples.tobytes() != said.samples.tobytes()


def test_sampling_and_seed_decide_it(slm, audio):
    greedy = slam.Sampling(temperature=0.0)
    first, again, other = (
        slm.continue_speech(audio, max_new_units=20, sampling=greedy, seed=seed).samples.tobytes()
        for seed in (0, 0, 1)
    )
    assert first == again == other
    drawn = {slm.continue_speech(audio, max_new_units=20, seed=seed).samples.tobytes() for seed in range(4)}
    assert len(drawn) == 4


def test_a_stream_says_what_the_continuation_says(slm, audio):
    stream = chunks = None
    for seed in range(50):  # until one is long
        stream = slm.stream(audio, max_new_units=60, seed=seed)
        chunks = list(stream)
        if len(chunks) > 1:
            break
    whole = slm.continue_speech(audio, max_new_units=60, seed=seed)
    spoken = slm.speak(slam.Units(np.array(stream.units, np.uint16), None, 25.0))
    assert spoken.samples.tobytes() == whole.samples.tobytes()
    assert sum(len(chunk.samples) for chunk in chunks) == len(whole.samples)
    assert len(chunks) > 1
    assert stream.seconds_to_first_sound > 0
    assert stream.real_time_factor > 0
    assert stream.ended is (len(stream.units) < 60)


def test_log_likelihoods_are_those_of_stock_transformers(slm, folder, audio):
    units = slm.encode(audio)
    found = slm.log_likelihoods(audio)
    lm = load_plainly(folder / "lm")
    document = toy_language.VOCABULARY.document(units.ids)[:-1]
    scores = document_logits(lm, document).log_softmax(-1).detach().numpy()
    expected = scores[np.arange(len(units)), document[1:].astype(int)]
    np.testing.assert_allclose(found.values, expected, atol=1e-4)
    assert found.ids.tolist() == units.ids.tolist()
    assert found.starts[0] == 0
    assert found.ends[-1] == pytest.approx(audio.seconds, abs=FRAME_SECONDS)
    np.testing.assert_allclose(found.ends - found.starts, units.durations * FRAME_SECONDS)
    assert slm.log_likelihood(audio) == pytest.approx(expected.sum(), abs=1e-3)
    assert slm.log_likelihood(audio, mean=True) == pytest.approx(expected.mean(), abs=1e-4)


@pytest.fixture
def surround(tmp_path, audio):
    """48 kHz, six channels: the sound in one of them, six times as loud."""
    high = audio.resample(48_000)
    samples = np.zeros((len(high.samples), 6), np.float32)
    samples[:, 2] = high.samples * 3
    soundfile.write(tmp_path / "surround.wav", samples, 48_000, subtype="FLOAT")
    return tmp_path / "surround.wav"


def test_any_rate_and_any_number_of_channels_are_heard(slm, surround, audio):
    mono = slam.Audio(audio.resample(48_000).samples / 2, 48_000)
    assert slm.encode(surround).expand().tolist() == slm.encode(mono).expand().tolist()
    assert slm.continue_speech(surround, max_new_units=5).seconds > 0


def test_silence_is_continued(slm):
    silence = slam.Audio(np.zeros(16_000, np.float32), 16_000)
    assert slm.continue_speech(silence, max_new_units=5).seconds > 0
    assert slm.log_likelihood(silence) < 0


def test_only_the_end_of_a_long_recording_may_be_heard(slm, tmp_path):
    long = sound(70.0, 1, rate=8_000)
    write_audio(tmp_path / "long.wav", long)
    end = slam.Audio(long.samples[-2 * 8_000 :], 8_000)
    whole = long.resample(16_000)
    expected = slm.encode(slam.Audio(whole.samples[-32_000:], 16_000)).expand().tolist()
    assert slm.encode(tmp_path / "long.wav", last_seconds=2.0).expand().tolist() == expected
    from_memory = slm.encode(long, last_seconds=2.0).expand()
    assert from_memory.tolist() == slm.encode(end).expand().tolist()
    assert slm.encode(end, last_seconds=30.0).expand().tolist() == from_memory.tolist()


def test_three_hours_are_refused_by_the_header_alone(slm, tmp_path, monkeypatch):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(3 * 3600 * 8_000, np.int16), 8_000)

    def never(*_):
        raise AssertionError("was read")

    monkeypatch.setattr("slam.spoken_lm.read_audio", never)
    with pytest.raises(InputError) as caught:
        slm.continue_speech(path)
    assert str(caught.value) == (
        "long.flac: lasts 10800 s, more than the 60 s that are heard at once; cut it, or give last_seconds "
        "to hear only its end"
    )


@pytest.mark.parametrize(
    ("audio", "line"),
    [
        (slam.Audio(np.zeros(100, np.float32), 16_000), "audio: lasts 0.006 s, less than a frame of 0.04 s"),
        (slam.Audio(np.zeros(0, np.float32), 16_000), "audio: lasts 0.000 s, less than a frame of 0.04 s"),
        (
            slam.Audio(np.zeros((2, 16_000), np.float32), 16_000),
            "audio: samples are float32 of shape [2, 16000]",
        ),
        (slam.Audio(np.zeros(16_000, np.int16), 16_000), "audio: samples are int16 of shape [16000]"),
        (slam.Audio(np.full(16_000, np.nan, np.float32), 16_000), "audio: holds samples that are not finite"),
        (slam.Audio(np.zeros(61 * 16_000, np.float32), 16_000), "audio: lasts 61 s, more than the 60 s"),
        ("missing.wav", "missing.wav: no such file"),
        (Path(__file__), f"{__file__}: unreadable"),
    ],
)
def test_what_cannot_be_heard_is_one_line(slm, audio, line):
    for verb in (slm.continue_speech, slm.stream, slm.log_likelihood, slm.encode):
        with pytest.raises(InputError) as caught:
            verb(audio)
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)


def test_a_prompt_longer_than_the_context_is_one_line(slm):
    long = sound(20.0, 2)
    num_units = len(slm.encode(long))
    assert num_units + 1 < 256
    with pytest.raises(InputError) as caught:
        slm.stream(long, max_new_units=256)
    assert str(caught.value) == (
        f"a prompt of {num_units} units and 256 more is longer than the model's context of 256 tokens; give "
        "a shorter prompt (last_seconds), or ask for fewer units"
    )
    assert slm.log_likelihood(long) < 0


def test_settings_that_cannot_be_meant_are_one_line(slm, audio):
    with pytest.raises(ConfigError, match=r"last_seconds = 0: must be more than 0 and at most 60"):
        slm.encode(audio, last_seconds=0)
    with pytest.raises(ConfigError, match=r"max_new_units = 0: must be at least 1"):
        slm.continue_speech(audio, max_new_units=0)


def test_what_does_not_belong_together_is_not_loaded(folder, tmp_path, slm):
    with pytest.raises(InputError, match="holds no speech language model"):
        slam.load(tmp_path, tokenizer=folder / "units")
    with pytest.raises(InputError, match="holds no speech tokenizer"):
        slam.load(folder / "lm", tokenizer=tmp_path)
    with pytest.raises(ConfigError, match="no vocoder is called 'griffin'; did you mean 'griffin-lim'"):
        slam.load(folder / "lm", tokenizer=folder / "units", vocoder="griffin")
    SpeechLM(slm.speech_lm.lm, toy_language.VOCABULARY, "toy", "f" * 16).save(tmp_path / "other")
    with pytest.raises(MismatchError, match="encode with the model's tokenizer"):
        slam.load(tmp_path / "other", tokenizer=folder / "units")


def test_parts_of_ones_own_are_loaded_by_name(tmp_path, monkeypatch, audio):
    (tmp_path / "own_parts.py").write_text(
        "from slam.tokenizers.logmel_kmeans import LogMelKMeans\n"
        "from slam.vocoders.griffin_lim import GriffinLim\n\n"
        "class Ears(LogMelKMeans):\n    name = 'own_parts:Ears'\n\n"
        "class Mouth(GriffinLim):\n    name = 'own_parts:Mouth'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import own_parts

    spoken = toy_language.tokenizer()
    ears = own_parts.Ears(*(getattr(spoken, name) for name in spoken.__dataclass_fields__))
    ears.save(tmp_path / "tokenizer")
    lm = toy_language.new_toy_lm(context=256)
    SpeechLM(lm, toy_language.VOCABULARY, ears.name, ears.fingerprint).save(tmp_path / "lm")
    with pytest.raises(InputError, match="is not built in; name it"):
        slam.load(tmp_path / "lm", tokenizer=tmp_path / "tokenizer")
    slm = slam.load(
        tmp_path / "lm",
        tokenizer=tmp_path / "tokenizer",
        tokenizer_name="own_parts:Ears",
        vocoder="own_parts:Mouth",
    )
    assert type(slm.vocoder).__name__ == "Mouth"
    assert slm.continue_speech(audio, max_new_units=5).seconds > 0


def test_importing_the_package_imports_nothing_heavy():
    program = (
        "import sys, slam; dir(slam); slam.Sampling; slam.Audio; slam.Units\n"
        "print([name for name in ('torch', 'transformers', 'soundfile', 'soxr') if name in sys.modules])\n"
        "try: slam.lode\nexcept AttributeError as error: print(error)"
    )
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert made.stdout.splitlines() == ["[]", "module 'slam' has no attribute 'lode'"]
