"""Text → speech by eSpeak NG, through its C interface; `espeakng-loader` brings the library and its voices.

eSpeak NG is GPL-3, so it is an extra (`slam[espeak]`) that is loaded at run time. It speaks about a thousand
times faster than real time on one core.

A text is spoken sentence by sentence, and each sentence starts at a whole number of 40 ms, so it falls on the
frames of a 25 Hz tokenizer in the same way wherever it stands. With a variant whose pitch does not flutter
(`shelby`, `michel`, `miguel`, `Storm` …) equal sentences are then equal in their units too: less noise than
recordings have, which lets a small model learn something from minutes of training.
"""

import _ctypes
import ctypes
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.audio import Audio
from slam.errors import ConfigError, InputError, MissingExtraError
from slam.synthesizers import Speech, Utterance
from slam.synthesizers.sentences import check_readable

_SAMPLE_RATE = 22_050  # Hz, of every voice of eSpeak's own
_GRID = 882  # samples in 40 ms
_PAUSE = 6 * _GRID  # least silence after a sentence: so alone, eSpeak leaves none
_SENTENCE = re.compile(r"\S.*?(?:[.!?]+(?=\s|$)|$)", re.DOTALL)
_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to the callback, in this thread, never to a sound card
_BUFFER_MS = 2000
_UTF8 = 1
_POS_CHARACTER = 1
_RATE = 1  # espeak_PARAMETER
_EVENT_END, _EVENT_WORD = 0, 1
_IPA = 2 | ord("_") << 8  # mode of espeak_TextToPhonemes, with a sign between phonemes
_HEARD = str.maketrans("ᵻɾ", "ɪd", "ˈˌ")  # noqa: RUF001 - IPA; without stress, and as "rating" sounds


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # counted from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Espeak:
    """eSpeak NG; voices are its languages, with a variant after `+` if wanted: `en-us`, `en+f3`."""

    name = "espeak"

    def __init__(self) -> None:
        with _fresh_library() as library:
            library.espeak_Info.restype = ctypes.c_char_p
            self.version = str(library.espeak_Info(None).decode())

    def check_voice(self, voice: str) -> None:
        """Try `voice`.

        Raises:
            ConfigError: there is no such language or variant.
        """
        with _fresh_library() as library:
            _set_voice(library, voice)

    def synthesize(self, utterances: Sequence[Utterance], sample_rate: int) -> list[Speech]:
        """Speak each utterance.

        Raises:
            ConfigError: a voice does not exist.
            InputError: nothing could be spoken of a text, or it has letters that the voice cannot read.
        """
        return [_speak(utterance, sample_rate) for utterance in utterances]


def pronounce(texts: Iterable[str], voice: str) -> list[tuple[str, ...]]:
    """The phonemes (IPA) that eSpeak says for each text, without stress: by them homophones are found.

    Raises:
        ConfigError: there is no such voice.
        MissingExtraError: eSpeak is not installed.
    """
    with _fresh_library() as library:
        _set_voice(library, voice)
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        return [tuple(_phonemes(library, text)) for text in texts]


def _phonemes(library: ctypes.CDLL, text: str) -> Iterator[str]:
    encoded = ctypes.create_string_buffer(text.encode())
    rest = ctypes.c_void_p(ctypes.addressof(encoded))  # eSpeak moves it on, clause by clause, to null
    while rest.value is not None:
        clause = library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA)
        yield from (sign for sign in re.split(r"[ _\n]+", clause.decode().translate(_HEARD)) if sign)


def _speak(utterance: Utterance, sample_rate: int) -> Speech:
    """Speak sentence by sentence, each with a pause that fills it up to a whole number of 40 ms."""
    pieces: list[npt.NDArray[np.int16]] = []
    words: list[tuple[int, float]] = []
    length = 0
    language = utterance.voice.partition("+")[0]
    check_readable(utterance.text, f"eSpeak's voice {language!r}", language)
    with _fresh_library() as library:
        _set_voice(library, utterance.voice)
        library.espeak_SetParameter(_RATE, utterance.rate, 0)
        for match in _SENTENCE.finditer(utterance.text):
            samples, spoken = _speak_sentence(library, match[0])
            words += [(match.start() + position, length / _SAMPLE_RATE + start) for position, start in spoken]
            pieces += [samples, np.zeros(_PAUSE + -len(samples) % _GRID, np.int16)]
            length += len(samples) + len(pieces[-1])
    if not words:  # of a text without words eSpeak makes a click
        raise InputError(f"eSpeak could not speak {utterance.text!r}")
    audio = Audio((np.concatenate(pieces) / 32768).astype(np.float32), _SAMPLE_RATE)
    return Speech(audio.resample(sample_rate), tuple(words))


def _speak_sentence(library: ctypes.CDLL, text: str) -> tuple[npt.NDArray[np.int16], list[tuple[int, float]]]:
    """A sentence's samples `[T]` at eSpeak's own rate, and when each of its words begins, in seconds."""
    chunks: list[bytes] = []
    words: list[tuple[int, float]] = []

    def receive(samples: Any, count: int, events: Any) -> int:
        """Take a block of samples and the events in it; 0 asks for more."""
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].type != _EVENT_END:
            if events[index].type == _EVENT_WORD:
                words.append((events[index].text_position - 1, events[index].audio_position / 1000))
            index += 1
        return 0

    callback = _Callback(receive)
    encoded = text.encode()
    library.espeak_SetSynthCallback(callback)
    # eSpeak seeds the noise of breath and whisper with the time of day; Klatt voices draw theirs from the C
    # library, which nothing seeds anew
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    ctypes.CDLL(None).srand(1)
    if library.espeak_Synth(encoded, len(encoded) + 1, 0, _POS_CHARACTER, 0, _UTF8, None, None) != 0:
        raise InputError(f"eSpeak could not speak {text!r}")
    return np.frombuffer(b"".join(chunks), np.int16), words


def _set_voice(library: ctypes.CDLL, voice: str) -> None:
    language, _, variant = voice.partition("+")
    languages, variants = _voices()
    if variant and variant not in variants:
        raise ConfigError(f"eSpeak has no variant {variant!r}; it has {', '.join(sorted(variants))}")
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        near = sorted(name for name in languages if name.startswith(language[:2])) or sorted(languages)
        raise ConfigError(f"eSpeak has no voice {language!r}; it has {', '.join(near)}")


@contextmanager
def _fresh_library() -> Iterator[ctypes.CDLL]:
    """The library, loaded anew.

    eSpeak's pitch flutter runs on from one utterance to the next in a static variable that nothing resets,
    so only a fresh load (1 ms) makes an utterance's samples a function of the utterance.
    """
    library = ctypes.CDLL(_loader().get_library_path())
    try:
        rate = library.espeak_Initialize(_SYNCHRONOUS, _BUFFER_MS, str(_data_folder()).encode(), 0)
        if rate != _SAMPLE_RATE:
            raise InputError(f"{_data_folder()}: eSpeak's voices are missing or not at {_SAMPLE_RATE} Hz")
        yield library
    finally:
        library.espeak_Terminate()
        if hasattr(_ctypes, "dlclose"):
            _ctypes.dlclose(library._handle)  # noqa: SLF001 - ctypes has no public way to unload


def _loader() -> Any:
    try:
        import espeakng_loader
    except ModuleNotFoundError:
        raise MissingExtraError(
            "the synthesizer 'espeak' is not installed: pip install 'slam[espeak]'"
        ) from None
    return espeakng_loader


def _data_folder() -> Path:
    return Path(_loader().get_data_path())


@cache
def _voices() -> tuple[frozenset[str], frozenset[str]]:
    """The languages and the variants that the installed data holds."""
    data = _data_folder()
    languages = {path.name.lower() for path in (data / "lang").rglob("*") if path.is_file()}
    variants = {path.name for path in (data / "voices" / "!v").iterdir()}
    return frozenset(languages), frozenset(variants)
