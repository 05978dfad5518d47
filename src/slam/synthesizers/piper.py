"""Text → speech by Piper: voices (VITS networks in ONNX) of many languages, quick on one core.

The reading of text (eSpeak NG) and the way from phonemes to samples are those of the package `piper-tts`,
which is GPL-3: an extra, loaded at run time. Added here: the times of words, from the durations that the
network computes; and samples that are a function of the sentence. A voice draws noise for rhythm and timbre
from ONNX Runtime's generator, which runs on from one sentence to the next; `piper_model` has it read from a
fixed table instead, so a voice sounds as it was trained to and says the same each time.
"""

import logging
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.errors import ConfigError, InputError, MissingExtraError
from slam.run import read_json
from slam.synthesizers import Speech, Utterance
from slam.synthesizers.piper_model import open_session
from slam.synthesizers.sentences import Spoken, check_readable, shown, speak_sentences, words_of

_OWN_RATE = 180  # words a minute that stand for the voice's own speed
_LOUDNESS = 0.9  # peak of each sentence; resampling may add a little
_DAMAGES = (OSError, KeyError, TypeError, ValueError, AttributeError)
_TITLE = re.compile(r"\b(Mr|Mrs|Ms|Dr)\.(?=\s)")
_READERS = ("espeak", "text")  # other kinds need packages of their own, or fetch a model


class Piper:
    """The voices of a folder: `en_US-joe-medium`; a speaker of many after `+`: `en_US-libritts-high+3922`."""

    name = "piper"

    def __init__(self, folder: Path | None = None) -> None:
        """Find the voices; each is loaded when it first speaks.

        Args:
            folder: of NAME.onnx and NAME.onnx.json files.

        Raises:
            MissingExtraError: a package is not installed.
            ConfigError: no folder is given.
            InputError: it holds no voice.
        """
        _import_piper()
        if folder is None:
            raise ConfigError(
                "the synthesizer 'piper' needs the folder of its voices (NAME.onnx and NAME.onnx.json); give "
                "it as synthesizer_folder"
            )
        self._paths = {
            path.stem: path for path in sorted(folder.glob("*.onnx")) if _config_of(path).is_file()
        }
        if not self._paths:
            raise InputError(f"{folder}: holds no voice of Piper's (NAME.onnx and NAME.onnx.json)")
        self._voices: dict[str, Any] = {}
        self.version = f"piper-tts {version('piper-tts')}, onnxruntime {version('onnxruntime')}"

    def check_voice(self, voice: str) -> None:
        """Look `voice` and its speaker up.

        Raises:
            ConfigError: there is no such voice or speaker, or it reads text in a way that is not known.
            InputError: the voice's config is damaged.
        """
        name, _, speaker = voice.partition("+")
        if name not in self._paths:
            raise ConfigError(f"Piper has no voice {name!r}; it has {', '.join(self._paths)}")
        config = self._config(name)
        if config.phoneme_type.value not in _READERS:
            raise ConfigError(
                f"Piper's voice {name!r} reads text by {config.phoneme_type.value!r}; slam speaks voices "
                f"that read by {' or '.join(_READERS)}"
            )
        if speaker and _speaker_id(config, speaker) is None:
            known = ", ".join(sorted(config.speaker_id_map)[:20]) or f"0 to {config.num_speakers - 1}"
            raise ConfigError(f"Piper's voice {name!r} has no speaker {speaker!r}; it has {known}")

    def synthesize(self, utterances: Sequence[Utterance], sample_rate: int) -> list[Speech]:
        """Speak each utterance; a rate of 180 words a minute is the voice's own speed.

        Raises:
            ConfigError: a voice does not exist.
            InputError: a text holds nothing that can be spoken, or the voice's files are damaged.
        """
        return [self._speak(utterance, sample_rate) for utterance in utterances]

    def _speak(self, utterance: Utterance, sample_rate: int) -> Speech:
        self.check_voice(utterance.voice)
        name, _, speaker = utterance.voice.partition("+")
        voice = self._voice(name)
        check_readable(utterance.text, f"Piper's voice {name!r}", voice.config.espeak_voice)
        said_by = _speaker_id(voice.config, speaker) if speaker else None
        return speak_sentences(
            utterance.text,
            lambda sentence: _speak_sentence(voice, sentence, said_by, utterance.rate),
            voice.config.sample_rate,
            sample_rate,
        )

    def _config(self, name: str) -> Any:
        path = _config_of(self._paths[name])
        try:
            return _import_piper().config.PiperConfig.from_dict(read_json(path))
        except _DAMAGES as error:
            raise InputError(
                f"{path}: no config of a Piper voice ({type(error).__name__}: {error})"
            ) from None

    def _voice(self, name: str) -> Any:
        """The package's voice, loaded once."""
        if name not in self._voices:
            piper = _import_piper()
            session = open_session(self._paths[name])
            self._voices[name] = piper.PiperVoice(config=self._config(name), session=session)
        return self._voices[name]


def _speak_sentence(voice: Any, sentence: str, speaker: int | None, rate: int) -> Spoken:
    """Speak by the package; eSpeak may hear several sentences in what is one here."""
    settings = _import_piper().SynthesisConfig(
        speaker_id=speaker, length_scale=voice.config.length_scale * _OWN_RATE / rate, volume=_LOUDNESS
    )
    # "[[phonemes]]" is a command to the package, here it is text; and after "Mr." eSpeak would stop
    plain = _TITLE.sub(r"\1 ", sentence.translate({ord("["): "(", ord("]"): ")"}))
    pieces: list[npt.NDArray[np.float32]] = []
    spoken: list[tuple[str, float]] = []
    seconds = 0.0
    for chunk in voice.synthesize(plain, settings, include_alignments=True):
        if not any(
            phoneme.isalnum() and phoneme in voice.config.phoneme_id_map for phoneme in chunk.phonemes
        ):
            continue
        pieces.append(chunk.audio_float_array)
        spoken += [(phoneme, seconds + start) for phoneme, start in _phoneme_seconds(voice.config, chunk)]
        seconds += len(pieces[-1]) / chunk.sample_rate
        spoken.append((" ", seconds))
    if not pieces:
        raise InputError(f"Piper could not speak {shown(sentence)}")
    words = words_of(sentence)
    if len(spoken) == len(
        pieces
    ):  # the voice tells no durations: all that is known is where the first begins
        return Spoken(np.concatenate(pieces), ((words[0][0], 0.0),))
    alone = [
        (position, [phoneme for part in voice.phonemize(word) for phoneme in part])
        for position, word in words
    ]
    return Spoken(np.concatenate(pieces), match_words(alone, spoken))


def _phoneme_seconds(config: Any, chunk: Any) -> list[tuple[str, float]]:
    """Each phoneme that the voice knows, and when it begins; nothing where the voice tells no durations."""
    samples = chunk.phoneme_id_samples
    if samples is None or len(samples) != len(chunk.phoneme_ids) or not samples.sum():
        return []
    ids: Mapping[str, Sequence[int]] = config.phoneme_id_map
    # the package takes a frame for 256 samples where the config does not say; the sound itself tells
    scale = len(chunk.audio_float_array) / float(samples.sum()) / chunk.sample_rate
    begins = [0.0, *accumulate(float(count) * scale for count in samples)]
    found, index, pads = [], len(ids["^"]) + len(ids["_"]), len(ids["_"])
    for phoneme in chunk.phonemes:
        if phoneme in ids:
            found.append((phoneme, begins[index]))
            index += len(ids[phoneme]) + pads
    return found


def match_words(
    alone: Sequence[tuple[int, Sequence[str]]], spoken: Sequence[tuple[str, float]]
) -> tuple[tuple[int, float], ...]:
    """When each word begins, found by aligning the phonemes of the words with those of the sentence.

    eSpeak joins words in a sentence ("of the" has no space) and reads a number as many: spaces do not tell.

    Args:
        alone: each word's place, and its phonemes where it stands by itself.
        spoken: the sentence's phonemes, and the second at which each begins.

    Returns:
        Place and second of each word that is heard, one after the other.
    """
    wanted: list[str] = []
    places: list[tuple[int, int]] = []
    for place, phonemes in alone:
        if kept := [phoneme for phoneme in phonemes if phoneme.isalnum()]:
            places.append((place, len(wanted)))
            wanted += [*kept, " "]
    heard = [phoneme for phoneme, _ in spoken]
    target = [0] * len(wanted)
    for _, first, end, start, stop in SequenceMatcher(None, wanted, heard, autojunk=False).get_opcodes():
        for index in range(first, end):
            target[index] = start + (index - first) * (stop - start) // (end - first)
    sounds = [index for index, phoneme in enumerate(heard) if phoneme.isalnum()]
    found: list[tuple[int, float]] = []
    least = 0
    for number, (place, index) in enumerate(places):
        # each word begins with a sound of its own, and leaves one to each that follows
        most = len(sounds) - (len(places) - number)
        at = max(least, min(bisect_left(sounds, target[index]), most))
        if at < len(sounds):
            found.append((place, spoken[sounds[at]][1]))
            least = at + 1
    return tuple(found)


def _speaker_id(config: Any, speaker: str) -> int | None:
    """By its name in the config, or by its number."""
    if speaker in config.speaker_id_map:
        return int(config.speaker_id_map[speaker])
    return int(speaker) if speaker.isdecimal() and int(speaker) < config.num_speakers else None


def _config_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _import_piper() -> Any:
    try:
        import onnx  # noqa: F401 - `piper_model` needs it
        import piper
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"the synthesizer 'piper' is not installed ({error.name} is missing): pip install 'slam[piper]'"
        ) from None
    # it would warn of each phoneme that a voice does not know, thousands of times
    logging.getLogger("piper.phoneme_ids").setLevel(logging.ERROR)
    return piper
