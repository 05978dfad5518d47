# ruff: noqa: RUF001 - the signs of the phonetic alphabet
import builtins
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance import check_synthesizer
from slam.errors import ConfigError, InputError, MissingExtraError
from slam.synthesizers import Speech, Utterance, load_synthesizer
from slam.synthesizers.piper import Piper, match_words
from tiny_voices import save_piper

VOICE = "en_US-tiny"
STEADY = {"inference": {"noise_scale": 0.0, "length_scale": 1, "noise_w": 0.0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("piper", "onnx"):
        pytest.importorskip(package, reason="slam[piper] is not installed")
    folder = save_piper(tmp_path_factory.mktemp("voices"))
    save_piper(folder, "steady", **STEADY)
    save_piper(folder, "slow", inference={"noise_scale": 0.0, "length_scale": 2, "noise_w": 0.0})
    save_piper(folder, "many", speakers={"amy": 0, "bob": 1}, **STEADY)
    return save_piper(folder, "russian", espeak={"voice": "ru"})


@pytest.fixture
def piper(folder: Path) -> Piper:
    return Piper(folder)


def say(piper: Piper, text: str, voice: str = VOICE, rate: int = 180, sample_rate: int = 22_050) -> Speech:
    (speech,) = piper.synthesize([Utterance(text, voice, rate)], sample_rate)
    return speech


def test_piper_conforms(folder: Path) -> None:
    synthesizer = load_synthesizer("piper", folder)
    assert synthesizer.name == "piper"
    check_synthesizer(synthesizer, VOICE)


def test_words_begin_where_the_sound_does(piper: Piper) -> None:
    text = "Seven rabbits carried nineteen yellow apples. Somebody noticed."
    speech = say(piper, text, "steady")
    # the stand-in is silent at spaces alone: 5 frames of 256 samples
    silent = np.abs(speech.audio.samples) < 1e-4
    edges = np.flatnonzero(np.convolve(silent, np.ones(5 * 256), "valid") > 5 * 256 - 0.5)
    ends = [index + 5 * 256 for index in edges if index + 1 not in set(edges)]
    first = text.index("Somebody")
    inner = [seconds for start, seconds in speech.word_seconds if start not in (0, first)]
    assert len(inner) == 6
    found = [end / 22_050 for end in ends]
    for seconds in inner:  # a frame of padding follows a space
        assert min(abs(seconds - end) for end in found) < 0.025
    assert speech.word_seconds[0][1] < 0.1


@pytest.mark.parametrize(
    "text",
    [
        "It was in the box of the man, and at the end of it.",
        "In 1984 the 1,234 men paid $3.50 for 2 kg.",
        "Mr. Smith met Dr. J. Brown [of the U.S.A.] on [[həlˈoʊ]] day!",
        "the the the the, a a a",
    ],
)
def test_each_word_has_a_time_whatever_espeak_makes_of_it(piper: Piper, text: str) -> None:
    speech = say(piper, text)
    assert [text[start:].split(maxsplit=1)[0] for start, _ in speech.word_seconds] == text.split()
    seconds = [each for _, each in speech.word_seconds]
    assert all(type(each) is float for each in seconds)
    assert seconds == sorted(set(seconds))
    assert seconds[-1] < speech.audio.seconds


@pytest.mark.parametrize(
    ("text", "same"),
    [("Say [[aaaa]] now.", "Say ((aaaa)) now."), ("Mr. Fox met Dr. Crow.", "Mr Fox met Dr Crow.")],
)
def test_commands_are_text_and_titles_end_no_sentence(piper: Piper, text: str, same: str) -> None:
    assert say(piper, text).audio.samples.tobytes() == say(piper, same).audio.samples.tobytes()


@given(st.data())
def test_words_are_found_in_a_sentence_that_joins_and_splits_them(data: st.DataObject) -> None:
    words = data.draw(
        st.lists(st.text("abcdefghij", min_size=2, max_size=6), min_size=1, max_size=6, unique=True)
    )
    heard, expected = [], []
    for number, word in enumerate(words):
        expected.append((number, float(len(heard))))
        heard += list("ˈ" * data.draw(st.booleans()) + word)
        if data.draw(st.booleans()):
            heard.append(" ")
    heard.append(".")
    spoken = [(phoneme, float(index)) for index, phoneme in enumerate(heard)]
    found = match_words([(number, list(word)) for number, word in enumerate(words)], spoken)
    assert [place for place, _ in found] == list(range(len(words)))
    moved = [abs(seconds - right) for (_, seconds), (_, right) in zip(found, expected, strict=True)]
    assert np.median(moved) <= 1  # a stress mark belongs to the word or not
    # repeated letters leave it open whose they are, but never by more than a word
    assert max(moved) <= 8


def test_a_sentence_has_the_same_samples_in_any_company_and_process(folder: Path, piper: Piper) -> None:
    side = say(piper, "Anna ran home.")
    length = len(side.audio.samples)
    for ending in ("It rained.", "Nobody came, of course!"):
        whole = say(piper, f"Anna ran home. {ending}")
        assert whole.audio.samples[:length].tobytes() == side.audio.samples.tobytes()
        assert whole.seconds_at(len("Anna ran home. ")) * 25 == pytest.approx(length / 882, abs=3)
    again = say(Piper(folder), "Anna ran home.")
    assert again.audio.samples.tobytes() == side.audio.samples.tobytes()
    code = (
        "import sys, hashlib; from pathlib import Path\n"
        "from slam.synthesizers import Utterance, load_synthesizer\n"
        "piper = load_synthesizer('piper', Path(sys.argv[1]))\n"
        f"(speech,) = piper.synthesize([Utterance('Anna ran home.', '{VOICE}', 180)], 22_050)\n"
        "sys.stdout.buffer.write(speech.audio.samples.tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, check=True)
    assert done.stdout == side.audio.samples.tobytes()


def test_the_noise_that_a_voice_was_trained_with_is_kept(piper: Piper) -> None:
    text = "Anna ran home."
    noisy, steady = say(piper, text), say(piper, text, "steady")
    assert noisy.audio.seconds > 1.02 * steady.audio.seconds  # the stand-in's noise only lengthens
    quietest = [
        min(float(part.std()) for part in np.array_split(speech.audio.samples, 400))
        for speech in (noisy, steady)
    ]
    assert quietest[0] > 1e-3  # where the stand-in makes no tone, its noise is heard
    assert quietest[1] < 1e-5


def test_the_table_stands_in_for_normal_noise_of_the_asked_shape_mean_and_scale() -> None:
    onnx = pytest.importorskip("onnx", reason="slam[piper] is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="slam[piper] is not installed")
    from slam.synthesizers.piper_model import fix_noise

    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 15]> '
        "noise (float[A, B, C] x) => (float[A, B, C] p, float[A, B, C] q) "
        "{ p = RandomNormalLike <mean = 2.0, scale = 3.0> (x)  q = RandomNormalLike (x) }"
    )
    fix_noise(model)
    onnx.checker.check_model(model)
    assert not [node for node in model.graph.node if node.op_type.startswith("Random")]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.zeros((2, 30, 700), np.float32)
    one, two = session.run(None, {"x": x})
    assert one.shape == two.shape == x.shape
    assert (one.mean(), one.std()) == (pytest.approx(2, abs=0.05), pytest.approx(3, abs=0.05))
    assert (two.mean(), two.std()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.02
    again = session.run(None, {"x": x})
    np.testing.assert_array_equal(again[0], one)
    many = np.zeros((1, 1, 3_000_000), np.float32)  # more than the table holds: it goes round
    assert np.isfinite(session.run(None, {"x": many})[1]).all()


def test_twice_the_rate_is_half_as_long_and_the_voices_own_speed_counts(piper: Piper) -> None:
    text = "Seven rabbits carried nineteen yellow apples"
    lengths = [say(piper, text, "steady", rate).audio.seconds for rate in (90, 120, 180, 240, 360)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] / lengths[2] == pytest.approx(2, rel=0.03)
    slow = say(piper, text, "slow", 180).audio.seconds
    assert slow / lengths[2] == pytest.approx(2, rel=0.03)


def test_a_speaker_of_many_is_named_after_a_plus(piper: Piper) -> None:
    text = "Anna ran home."
    first, named, numbered = (say(piper, text, f"many{speaker}") for speaker in ("", "+bob", "+1"))
    assert named.audio.samples.tobytes() == numbered.audio.samples.tobytes() != first.audio.samples.tobytes()
    assert say(piper, text, "many+amy").audio.samples.tobytes() == first.audio.samples.tobytes()
    for voice in ("many", "many+bob", "many+1", VOICE):
        piper.check_voice(voice)
    with pytest.raises(ConfigError, match=r"'many' has no speaker 'eve'; it has amy, bob$"):
        piper.check_voice("many+eve")
    with pytest.raises(ConfigError, match=r"'steady' has no speaker '7'; it has 0 to 0$"):
        piper.check_voice("steady+7")


def test_a_voice_that_does_not_exist_is_refused_with_those_that_do(piper: Piper) -> None:
    with pytest.raises(ConfigError, match=r"no voice 'en_US-joe'; it has en_US-tiny, many, russian, slow"):
        piper.check_voice("en_US-joe")
    with pytest.raises(ConfigError, match="no voice"):
        say(piper, "Anna ran home.", "en_US-joe")


@pytest.mark.parametrize("text", ["日本語", "She said Привет."])
def test_text_that_the_voice_cannot_read_is_refused(piper: Piper, text: str) -> None:
    with pytest.raises(InputError, match=r"Piper's voice 'steady' cannot read '.*' in"):
        say(piper, text, "steady")
    if "П" in text:
        assert len(say(piper, text, "russian").word_seconds) == 3


@pytest.mark.parametrize("text", ["...", "— ! —", ""])
def test_text_without_words_is_refused(piper: Piper, text: str) -> None:
    with pytest.raises(InputError, match="there is no word to speak in"):
        say(piper, text)


def test_phonemes_that_a_voice_does_not_know_are_left_out_quietly(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = json.loads((folder / f"{VOICE}.onnx.json").read_text())["phoneme_id_map"]
    known = {symbol: number for symbol, number in ids.items() if symbol not in "ɹæ"}
    piper = Piper(save_piper(tmp_path, "poor", phoneme_id_map=known, **STEADY))
    with caplog.at_level(logging.WARNING):
        poor = say(piper, "The rabbit ran home again.", "poor")
    assert not caplog.records
    assert [start for start, _ in poor.word_seconds] == [0, 4, 11, 15, 20]
    none = {symbol: ids[symbol] for symbol in ("_", "^", "$", " ", ".")}
    piper = Piper(save_piper(tmp_path, "mute", phoneme_id_map=none, **STEADY))
    with pytest.raises(InputError, match=r"Piper could not speak 'The rabbit ran home.'"):
        say(piper, "The rabbit ran home.", "mute")


@pytest.mark.usefixtures("folder")
def test_a_voice_that_tells_no_durations_still_tells_where_sentences_begin(tmp_path: Path) -> None:
    piper = Piper(save_piper(tmp_path, rounding="Floor"))
    text = "Anna ran home. It rained."
    speech = say(piper, text)
    assert [start for start, _ in speech.word_seconds] == [0, text.index("It")]
    first = say(piper, "Anna ran home.").audio.seconds
    assert speech.word_seconds[1][1] == pytest.approx(first)


@pytest.mark.usefixtures("folder")
def test_folders_without_voices_and_damaged_ones_are_refused_in_one_line(tmp_path: Path) -> None:
    import onnx

    with pytest.raises(ConfigError, match=r"needs the folder of its voices.*synthesizer_folder"):
        load_synthesizer("piper")
    with pytest.raises(InputError, match=r"holds no voice of Piper's \(NAME.onnx and NAME.onnx.json\)"):
        Piper(tmp_path)
    (tmp_path / "lonely.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="holds no voice"):
        Piper(tmp_path)
    save_piper(tmp_path, "cut")
    whole = (tmp_path / "cut.onnx").read_bytes()
    save_piper(tmp_path, "strange", phoneme_type="pinyin")
    save_piper(tmp_path, "unknown", phoneme_type="telepathy")
    save_piper(tmp_path, "bare")
    (tmp_path / "bare.onnx.json").write_text('{"num_symbols": 3}')
    save_piper(tmp_path, "other")
    graph = '<ir_version: 8, opset_import: ["": 15]> other (float[N] x) => (float[N] y) { y = Abs (x) }'
    onnx.save(onnx.parser.parse_model(graph), tmp_path / "other.onnx")
    for damage in (whole[: len(whole) // 2], b"", b"not a model", whole[:100] + b"\xff" * 50 + whole[150:]):
        (tmp_path / "cut.onnx").write_bytes(damage)
        with pytest.raises(InputError, match=r"cut.onnx: ") as raised:
            say(Piper(tmp_path), "Anna ran home.", "cut")
        assert "\n" not in str(raised.value)
    piper = Piper(tmp_path)
    with pytest.raises(
        ConfigError, match="reads text by 'pinyin'; slam speaks voices that read by espeak or text"
    ):
        piper.check_voice("strange")
    for name in ("unknown", "bare"):
        with pytest.raises(InputError, match=rf"{name}.onnx.json: no config of a Piper voice"):
            piper.check_voice(name)
    with pytest.raises(InputError, match=r"other.onnx: takes x; that is no voice of Piper's"):
        say(piper, "Anna ran home.", "other")


@pytest.mark.parametrize("missing", ["piper", "onnx"])
def test_without_its_packages_the_extra_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = builtins.__import__

    def without(name: str, *args: object) -> object:
        if name == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        if name in ("piper", "onnx"):
            return None
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=rf"\({missing} is missing\): pip install 'slam\[piper\]'"):
        load_synthesizer("piper", tmp_path)


def test_a_synthesizer_that_takes_no_folder_refuses_one(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="slam[espeak] is not installed")
    with pytest.raises(ConfigError, match="'espeak' takes no folder"):
        load_synthesizer("espeak", tmp_path)


def test_espeak_refuses_letters_that_it_could_only_spell() -> None:
    pytest.importorskip("espeakng_loader", reason="slam[espeak] is not installed")
    espeak = load_synthesizer("espeak")
    with pytest.raises(InputError, match=r"eSpeak's voice 'en-us' cannot read '日本語.' in 'Say 日本語.'"):
        espeak.synthesize([Utterance("Say 日本語.", "en-us+f3", 180)], 16_000)
    (speech,) = espeak.synthesize([Utterance("Скажи мир.", "ru", 180)], 16_000)
    assert len(speech.word_seconds) == 2


def test_importing_it_is_light() -> None:
    code = "import sys, slam.synthesizers.piper, slam.synthesizers.kokoro as k; print(sorted({'torch', 'onnx', 'piper', 'spacy', 'kokoro', 'onnxruntime'} & set(sys.modules)))"  # noqa: E501
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
