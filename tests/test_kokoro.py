# ruff: noqa: RUF001 - the signs of the phonetic alphabet
"""Under the package where it is installed, and always under a stand-in for it (`tiny_voices`)."""

import builtins
import importlib.util
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conformance import check_synthesizer
from slam.errors import ConfigError, InputError, MissingExtraError
from slam.synthesizers import Speech, Utterance, load_synthesizer
from slam.synthesizers import kokoro as part
from slam.synthesizers.kokoro import Kokoro
from slam.synthesizers.kokoro_files import COMMIT, REPOSITORY, import_kokoro
from tiny_voices import KOKORO_CONFIG, KModel, save_kokoro, stand_in_packages

TEXT = "The rabbit ran home."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_kokoro(tmp_path_factory.mktemp("kokoro") / "model", KModel(repo_id="", config=KOKORO_CONFIG))


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in stand_in_packages().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(part, "version", lambda name: f"{name}'s version")


@pytest.fixture
def kokoro(_stand_in: None, folder: Path) -> Kokoro:
    return Kokoro(folder)


def say(kokoro: Kokoro, text: str, voice: str = "af_heart", rate: int = 180) -> Speech:
    (speech,) = kokoro.synthesize([Utterance(text, voice, rate)], 24_000)
    return speech


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


@pytest.mark.usefixtures("_stand_in")
def test_kokoro_conforms(folder: Path) -> None:
    synthesizer = load_synthesizer("kokoro", folder)
    assert synthesizer.name == "kokoro"
    for voice in ("af_heart", "bm_george"):
        check_synthesizer(synthesizer, voice)


def test_words_begin_where_the_sound_does(kokoro: Kokoro) -> None:
    text = "Seven rabbits carried nineteen yellow apples. Somebody noticed."
    speech = say(kokoro, text)
    # the stand-in is silent at spaces, of four frames of 600 samples and more, and between sentences
    loud = np.abs(speech.audio.samples) > 0.01
    padded = np.convolve(loud, np.ones(1200), "full")[: len(loud)] > 0.5
    onsets = np.flatnonzero(padded[1:] & ~padded[:-1]) / 24_000
    assert len(onsets) == len(speech.word_seconds) == 8
    np.testing.assert_allclose([seconds for _, seconds in speech.word_seconds], onsets, atol=0.002)
    assert onsets[0] < 0.2  # of the 15 frames of silence that it begins with, 7 are left


def test_a_sentence_has_the_same_samples_in_any_company(kokoro: Kokoro, folder: Path) -> None:
    side = say(kokoro, TEXT)
    length = len(side.audio.samples)
    for ending in ("It rained.", "Nobody came!"):
        whole = say(kokoro, f"{TEXT} {ending}")
        assert whole.audio.samples[:length].tobytes() == side.audio.samples.tobytes()
        assert whole.word_seconds[: len(side.word_seconds)] == side.word_seconds
        assert whole.seconds_at(len(TEXT) + 1) > length / 24_000
    # loading draws random numbers too
    assert say(Kokoro(folder), TEXT).audio.samples.tobytes() == side.audio.samples.tobytes()
    noise = [say(kokoro, f"{TEXT[:-1]}{end}").audio.samples for end in ".!"]
    assert noise[0][-600:].tobytes() != noise[1][-600:].tobytes()  # another sentence, other noise


def test_the_callers_random_numbers_and_threads_are_left_alone(
    kokoro: Kokoro, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(kokoro, TEXT)  # loads
    speak, seen = KModel.speak, []

    def watched(self: KModel, *args: Any) -> Any:
        seen.append(torch.get_num_threads())
        return speak(self, *args)

    monkeypatch.setattr(KModel, "speak", watched)
    torch.manual_seed(5)
    threads, before = torch.get_num_threads(), torch.get_rng_state()
    try:
        torch.set_num_threads(2)
        say(kokoro, TEXT)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == [1]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_higher_rate_is_shorter(kokoro: Kokoro) -> None:
    lengths = [say(kokoro, TEXT, rate=rate).audio.seconds for rate in (90, 120, 180, 240, 360)]
    assert lengths == sorted(lengths, reverse=True)
    said = [length - 27 * 0.025 for length in lengths]  # without the silence at both ends
    assert said[0] / said[2] == pytest.approx(2, rel=0.1)


def test_a_sentence_of_more_phonemes_than_the_network_takes_keeps_its_times(kokoro: Kokoro) -> None:
    text = " ".join(["somebody", "noticed", "yellow", "apples"] * 40) + "."
    speech = say(kokoro, text)
    assert [text[start:].split(maxsplit=1)[0] for start, _ in speech.word_seconds] == text.split()
    seconds = [each for _, each in speech.word_seconds]
    assert seconds == sorted(set(seconds))
    assert speech.audio.seconds - 2 < seconds[-1] < speech.audio.seconds
    with pytest.raises(InputError, match=r"Kokoro could not speak all of 'Oh a+…'; it has too long a word"):
        say(kokoro, f"Oh {'a' * 600} no.")


def test_what_the_package_takes_for_commands_is_text(kokoro: Kokoro) -> None:
    text = "See [the rabbit](/ɹˈæbət/) run."
    speech = say(kokoro, text)
    assert [start for start, _ in speech.word_seconds][:2] == [0, 4]
    assert text[speech.word_seconds[-1][0] :] == "run."


def test_a_voice_that_does_not_exist_is_refused_with_those_that_do(kokoro: Kokoro) -> None:
    for voice in ("af_hart", "jf_alpha", "../voices/af_heart", ""):  # Japanese is not spoken here
        with pytest.raises(ConfigError, match=r"no voice '.*' of English; it has af_heart, bm_george$"):
            kokoro.check_voice(voice)
        with pytest.raises(ConfigError, match="no voice"):
            say(kokoro, TEXT, voice)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("She said 日本語 aloud.", "Kokoro's voice 'af_heart' cannot read '日本語' in"),
        ("...", "there is no word to speak in"),
        ("ŋøß", None),
        ("٣", "Kokoro could not speak"),
    ],
)
def test_text_that_cannot_be_read_is_refused(kokoro: Kokoro, text: str, line: str | None) -> None:
    if line is None:
        assert say(kokoro, text).word_seconds
        return
    with pytest.raises(InputError, match=line):
        say(kokoro, text)


def test_the_version_tells_the_weights_apart(kokoro: Kokoro, folder: Path, tmp_path: Path) -> None:
    other = copy_of(folder, tmp_path / "other")
    parts = torch.load(other / "kokoro-v1_0.pth", weights_only=True)
    parts["decoder"]["module.bias"] += 1
    torch.save(parts, other / "kokoro-v1_0.pth")
    versions = {Kokoro(place).version for place in (folder, copy_of(folder, tmp_path / "same"), other)}
    assert len(versions) == 2
    assert kokoro.version in versions
    assert "kokoro's version" in kokoro.version


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return (Path.touch, (self.path,))


def resave(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Put in the weights' place what `change` makes of them."""
    path = folder / WEIGHTS
    torch.save(change(torch.load(path, weights_only=True)), path)


def reconfigure(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(changes))


def renamed(weights: dict[str, Any]) -> dict[str, Any]:
    return {f"net.{key}": value for key, value in weights.items()}


def without(weights: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in weights.items() if key != name}


WEIGHTS, VOICE = "kokoro-v1_0.pth", "voices/af_heart.pt"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "no-config": lambda at: (at / "config.json").unlink(),
    "two-weights": lambda at: shutil.copy(at / WEIGHTS, at / "other.pth"),
    "no-weights": lambda at: (at / WEIGHTS).unlink(),
    "no-voices": lambda at: shutil.rmtree(at / "voices"),
    "bad-config": lambda at: (at / "config.json").write_text("{"),
    "poor-config": lambda at: reconfigure(at, vocab=KOKORO_CONFIG["vocab"]),
    "other-size": lambda at: reconfigure(at, **KOKORO_CONFIG | {"n_token": 999}),
    "missing": lambda at: resave(at, lambda w: w | {"predictor": without(w["predictor"], "module.weight")}),
    "other-names": lambda at: resave(at, lambda w: w | {"decoder": renamed(w["decoder"])}),
    "other-parts": lambda at: resave(at, lambda w: {"generator": w["decoder"]}),
    "no-tables": lambda at: resave(at, lambda w: w | {"decoder": 3}),
    "no-table": lambda at: resave(at, lambda _: [1, 2]),
    "cut": lambda at: (at / WEIGHTS).write_bytes((at / WEIGHTS).read_bytes()[:-500]),
    "text": lambda at: (at / WEIGHTS).write_text("weights"),
    "trap": lambda at: resave(at, lambda w: w | {"bert": Trap(at / "sprung")}),
    "voice-trap": lambda at: torch.save(Trap(at / "sprung"), at / VOICE),
    "voice-shape": lambda at: torch.save(torch.zeros(3), at / VOICE),
    "voice-table": lambda at: torch.save({"a": torch.zeros(3)}, at / VOICE),
}


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            "no-config",
            r"must hold Kokoro's config.json and one file of weights \(.pth; found kokoro-v1_0.pth\)",
        ),
        ("two-weights", r"one file of weights \(.pth; found kokoro-v1_0.pth, other.pth\)"),
        ("no-weights", r"one file of weights \(.pth; found none\)"),
        ("no-voices", r"holds no English voice of Kokoro's \(voices/af_heart.pt\)"),
        ("bad-config", r"config.json"),
        ("poor-config", r"kokoro-v1_0.pth: does not belong to .*config.json \(KeyError"),
        ("other-size", r"kokoro-v1_0.pth: does not belong to .*config.json \(RuntimeError"),
        ("missing", r"kokoro-v1_0.pth: lacks weights, the first predictor.weight"),
        ("other-names", r"kokoro-v1_0.pth: lacks weights, the first decoder.weight"),
        (
            "other-parts",
            r"holds no weights of Kokoro's \(bert, bert_encoder, decoder, predictor, text_encoder\)",
        ),
        ("no-tables", r"kokoro-v1_0.pth: holds no weights of Kokoro's"),
        ("no-table", r"holds no weights of Kokoro's"),
        ("cut", r"kokoro-v1_0.pth: cannot be read, it is damaged"),
        ("text", r"kokoro-v1_0.pth: no PyTorch file, or one that holds more than tensors"),
        ("trap", r"kokoro-v1_0.pth: no PyTorch file, or one that holds more than tensors.*not run"),
        ("voice-trap", r"af_heart.pt: no PyTorch file, or one that holds more than tensors.*not run"),
        ("voice-shape", r"af_heart.pt: no voice of Kokoro's"),
        ("voice-table", r"af_heart.pt: no voice of Kokoro's"),
    ],
)
@pytest.mark.usefixtures("_stand_in")
def test_a_damaged_folder_is_refused_in_one_line_and_nothing_in_it_is_run(
    damage: str, line: str, folder: Path, tmp_path: Path
) -> None:
    place = copy_of(folder, tmp_path / "model")
    DAMAGES[damage](place)
    with pytest.raises(InputError, match=line) as raised:
        say(Kokoro(place), TEXT)
    assert "\n" not in str(raised.value)
    assert not (place / "sprung").exists()


@pytest.mark.usefixtures("_stand_in")
def test_without_a_folder_the_fixed_commit_is_taken_from_the_hubs_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=rf"{REPOSITORY}@{COMMIT} is not in the hub's cache") as raised:
        load_synthesizer("kokoro")
    assert str(raised.value).endswith("give the folder of its files (synthesizer_folder)")
    assert "\n" not in str(raised.value)
    cached = tmp_path / f"models--{REPOSITORY.replace('/', '--')}" / "snapshots" / COMMIT
    copy_of(folder, cached)
    taken = load_synthesizer("kokoro")
    utterance = Utterance(TEXT, "bm_george", 180)
    (speech,) = taken.synthesize([utterance], 24_000)
    (same,) = Kokoro(folder).synthesize([utterance], 24_000)
    assert speech.audio.samples.tobytes() == same.audio.samples.tobytes()
    (cached / "kokoro-v1_0.pth").unlink()  # a download that was broken off
    with pytest.raises(InputError):
        load_synthesizer("kokoro")


@pytest.mark.usefixtures("_stand_in")
def test_nothing_is_fetched_that_is_in_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, **settings: object) -> str:
        asked.append((repository, settings))
        if settings.get("local_files_only"):
            return str(tmp_path / "empty")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert say(load_synthesizer("kokoro"), TEXT).word_seconds
    (_, first), (repository, second) = asked
    assert repository == REPOSITORY
    assert first["revision"] == second["revision"] == COMMIT
    assert second["allow_patterns"] == ["config.json", "kokoro-v1_0.pth", "voices/[ab][fm]_*.pt"]
    asked.clear()
    shutil.copytree(folder, tmp_path / "empty")
    load_synthesizer("kokoro")
    assert len(asked) == 1


@pytest.mark.parametrize("missing", ["kokoro", "spacy", "misaki"])
@pytest.mark.usefixtures("_stand_in")
def test_without_its_packages_the_extra_is_named(
    missing: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: object) -> object:
        if name == (missing if missing != "misaki" else "kokoro"):  # which imports misaki
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=rf"\({missing} is missing\): pip install 'slam\[kokoro\]'"):
        load_synthesizer("kokoro", folder)


@pytest.mark.usefixtures("_stand_in")
def test_without_the_tagger_its_command_is_named_and_nothing_is_fetched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["spacy"].util, "is_package", lambda _: False)
    with pytest.raises(MissingExtraError, match=r"not installed: python -m spacy download en_core_web_sm$"):
        load_synthesizer("kokoro", folder)


@pytest.mark.usefixtures("_stand_in")
def test_rare_words_are_never_left_out_in_silence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sys.modules["kokoro"].KPipeline

    def without_espeak(**settings: Any) -> Any:
        return whole(**settings, g2p=SimpleNamespace(fallback=None))

    monkeypatch.setattr(sys.modules["kokoro"], "KPipeline", without_espeak)
    with pytest.raises(InputError, match="Kokoro's eSpeak, which reads rare words, does not start"):
        say(Kokoro(folder), TEXT)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the package itself: its network with random weights, narrow where it can be."""
    if importlib.util.find_spec("kokoro") is None or importlib.util.find_spec("en_core_web_sm") is None:
        pytest.skip("slam[kokoro] or spaCy's en_core_web_sm is not installed")
    place = tmp_path_factory.mktemp("package")
    torch.save({}, place / "empty.pth")
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network = import_kokoro().KModel(
            repo_id=REPOSITORY, config=KOKORO_CONFIG, model=str(place / "empty.pth")
        )
    yield save_kokoro(place / "model", network)
    shutil.rmtree(place)


def test_the_package_itself_speaks_each_word_the_same_each_time(installed: Path) -> None:
    kokoro = Kokoro(installed)
    text = "Mr. Fox paid $3.50 for [two](/x/) gorblax; 'I' didn't."
    speech = say(kokoro, text, rate=300)
    assert [text[start:].split(maxsplit=1)[0] for start, _ in speech.word_seconds] == text.split()
    seconds = [each for _, each in speech.word_seconds]
    assert seconds == sorted(set(seconds))
    assert 0 <= seconds[0] < 0.2
    assert seconds[-1] < speech.audio.seconds
    frames = len(speech.audio.samples) / 600
    assert frames * 0.025 == pytest.approx(speech.audio.seconds)
    short = "Go on, Fox."
    slow, fast = (say(kokoro, short, rate=rate) for rate in (150, 300))
    again = say(Kokoro(installed), short, rate=300)
    assert again.audio.samples.tobytes() == fast.audio.samples.tobytes()
    assert slow.audio.seconds > 1.3 * fast.audio.seconds
    assert say(kokoro, short, "bm_george", rate=300).audio.seconds > 0.2
