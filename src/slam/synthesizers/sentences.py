"""Text → sentences, spoken one by one → an utterance with the times of its words; and what a voice can read.

What neural synthesizers share. A sentence is spoken by itself, so its samples do not depend on its
neighbours: the prompt of a pair sounds the same before either side. Each begins at a whole number of 40 ms,
so it falls on the frames of a 25 Hz tokenizer in the same way wherever it stands.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slam.audio import Audio
from slam.errors import InputError
from slam.synthesizers import Speech

_GRID = 25  # sentences begin at whole 25ths of a second
_END = re.compile(r"[.!?…]+[\"'\u201d\u2019)]*(?=\s)")  # and closing quotes
# a full stop after one of these, or after an initial, ends no sentence
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'\u201c\u2018])(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Mt|vs|e\.g|i\.e|[A-HJ-Z])\.$"
)
_WORD = re.compile(r"\S+")
_LETTERS = re.compile(r"[^\W\d_]+")
# eSpeak's languages that are not written in Latin letters, or not only
# fmt: off
_OTHER_SCRIPTS = frozenset({
    "am", "ar", "as", "ba", "be", "bg", "bn", "bpy", "chr", "cmn", "cv", "el", "fa", "grc", "gu",
    "hak", "he", "hi", "hy", "hyw", "ja", "ka", "kk", "kn", "ko", "kok", "ky", "mk", "ml", "mr",
    "my", "ne", "nog", "or", "pa", "piqd", "ps", "ru", "sd", "shn", "si", "sr", "ta", "te", "th",
    "ti", "tt", "ug", "uk", "ur", "yue", "zh",
})
# fmt: on
_SHOWN = 60  # characters of a text in an error


@dataclass(frozen=True)
class Spoken:
    """A spoken sentence."""

    samples: npt.NDArray[np.float32]  # [T]
    word_seconds: tuple[tuple[int, float], ...]  # (position of a word's first character, seconds), in order


def split_sentences(text: str) -> list[tuple[int, str]]:
    """Position and text of each sentence; together they hold all of `text` but the space between them."""
    found, start = [], 0
    ends = [
        match.end()
        for match in _END.finditer(text)
        if not _ABBREVIATION.search(text[max(0, match.end() - 12) : match.end()])
    ]
    for end in (*ends, len(text)):
        sentence = text[start:end]
        if stripped := sentence.strip():
            found.append((start + len(sentence) - len(sentence.lstrip()), stripped))
        start = end
    return found


def words_of(sentence: str) -> list[tuple[int, str]]:
    """Position and text of each word: what stands between spaces and holds a letter or a digit."""
    return [
        (match.start(), match[0])
        for match in _WORD.finditer(sentence)
        if any(character.isalnum() for character in match[0])
    ]


def speak_sentences(text: str, speak: Callable[[str], Spoken], own_rate: int, sample_rate: int) -> Speech:
    """Speak each sentence that has words, one after the other.

    Args:
        text: what to say.
        speak: a sentence's samples at `own_rate`, and the times of the words in it that are known.
        own_rate: the voice's, in Hz.
        sample_rate: of the `Speech`, in Hz.

    Raises:
        InputError: the text has no words.
    """
    pieces: list[npt.NDArray[np.float32]] = []
    words: list[tuple[int, float]] = []
    length = 0
    for position, sentence in split_sentences(text):
        if not words_of(sentence):
            continue
        spoken = speak(sentence)
        words += [(position + start, length / own_rate + seconds) for start, seconds in spoken.word_seconds]
        pieces += [
            spoken.samples,
            np.zeros(-(length + len(spoken.samples)) % (own_rate // _GRID), np.float32),
        ]
        length += len(spoken.samples) + len(pieces[-1])
    if not pieces:
        raise InputError(f"there is no word to speak in {shown(text)}")
    return Speech(Audio(np.concatenate(pieces), own_rate).resample(sample_rate), tuple(words))


def check_readable(text: str, voice: str, language: str) -> None:
    """Refuse a text with letters that the voice could only spell by their names ("Chinese letter").

    Only languages in Latin letters are checked. Accents are fine, and so is a single Greek letter (π, μm).

    Args:
        text: what to say.
        voice: for the error ("eSpeak's voice 'en-us'").
        language: its code, as eSpeak has it: `en-us`, `ru`.

    Raises:
        InputError: there is such a word.
    """
    code = language.lower()
    if text.isascii() or (code.partition("-")[0] in _OTHER_SCRIPTS and "latn" not in code) or "shaw" in code:
        return
    for word in unicodedata.normalize("NFKC", text).split():
        for letters in _LETTERS.findall(word):
            names = [unicodedata.name(c, "?") for c in letters if unicodedata.category(c) != "Lm"]
            strange = [name for name in names if not name.startswith("LATIN ")]
            if len(strange) > 1 or (strange and not strange[0].startswith("GREEK ")):
                raise InputError(
                    f"{voice} cannot read {shown(word)} in {shown(text)}; take that out, or a voice that can"
                )


def shown(text: str) -> str:
    """`text` in quotes, cut where it is long, for an error's one line."""
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")
