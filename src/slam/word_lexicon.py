"""Words by frequency and a pronouncing dictionary → words to ask for, and what no non-word may be."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slam.errors import InputError
from slam.stories.nonwords import split_groups
from slam.synthesizers.espeak import pronounce
from slam.text_files import text_lines

Sounds = tuple[str, ...]  # phonemes

_BANDS = (2500, 5000, 10_000)  # the last rank of each band but the last
_LETTERS = range(4, 13)  # of the words that are asked for
_PLAIN = re.compile(r"[a-z]+")
_VARIANT = re.compile(r"\(\d+\)$")  # of a dictionary's entry: "read(2)"
# what may follow a word, so that the whole is known to a listener though no list has it
_SUFFIXES = ("s", "es", "d", "ed", "ing", "r", "er", "ers", "ly", "y")


@dataclass(frozen=True)
class Ranked:
    """A line of the list."""

    word: str
    place: tuple[Path, int]  # file and line
    rank: int  # 1 for the most frequent

    @property
    def band(self) -> str:
        """The frequency band that the word is counted in."""
        first = 1
        for last in _BANDS:
            if self.rank <= last:
                return f"rank-{first}-{last}"
            first = last + 1
        return f"rank-{first}-"


@dataclass(frozen=True)
class Lexicon:
    """The words that are known."""

    ranked: tuple[Ranked, ...]  # the list, in order
    known: frozenset[str]  # and the dictionary's
    accents: tuple[str, ...]
    sounds: dict[str, tuple[Sounds, ...]]  # of each word of the list, in each accent
    taken: tuple[frozenset[Sounds], ...]  # the sounds of every known word, in each accent

    def can_be_asked(self, word: str) -> bool:
        """Whether it is a plain word of the dictionary, of a usual length, and can be taken apart."""
        if word not in self.known or not _PLAIN.fullmatch(word) or len(word) not in _LETTERS:
            return False
        groups, ending = split_groups(word)
        return "".join(group for group, _ in groups) + ending == word

    def spells_a_word(self, letters: str) -> bool:
        """Whether the letters are a known word, or one with a suffix."""
        if letters in self.known:
            return True
        stems = (letters.removesuffix(suffix) for suffix in _SUFFIXES if letters.endswith(suffix))
        return any({stem, f"{stem}e"} & self.known for stem in stems if len(stem) > 2)  # noqa: PLR2004

    def says_a_word(self, sounds: Sequence[Sounds]) -> bool:
        """Whether sounds, one for each accent, are a known word's in any accent."""
        return any(one in taken for one, taken in zip(sounds, self.taken, strict=True))

    def pronounce(self, words: Sequence[str]) -> list[tuple[Sounds, ...]]:
        """The sounds of each word, in each accent."""
        return list(zip(*(pronounce(words, accent) for accent in self.accents), strict=True))


def read_lexicon(lists: Sequence[Path], dictionary: Path, accents: tuple[str, ...]) -> Lexicon:
    """Read the list (a word a line, the most frequent first, a count behind it or not) and the dictionary.

    Raises:
        InputError: a file cannot be read, or a line of the list is none; a dictionary without plain words.
        ConfigError: eSpeak has no such voice.
        MissingExtraError: eSpeak is not installed.
    """
    ranked = _read_lists(lists)
    entries = {_VARIANT.sub("", line.split()[0]).lower() for line in text_lines(dictionary) if line.split()}
    plain = {entry for entry in entries if _PLAIN.fullmatch(entry)}
    if not plain:
        raise InputError(f"{dictionary}: holds no words; give a pronouncing dictionary, a word a line")
    in_list = list(dict.fromkeys(one.word for one in ranked))
    words = in_list + sorted(plain - set(in_list))
    sounds = [pronounce(words, accent) for accent in accents]
    return Lexicon(
        ranked=ranked,
        known=frozenset(plain),
        accents=accents,
        sounds=dict(zip(in_list, zip(*sounds, strict=True), strict=False)),
        taken=tuple(map(frozenset, sounds)),
    )


def _read_lists(lists: Sequence[Path]) -> tuple[Ranked, ...]:
    ranked: dict[str, Ranked] = {}
    for file in lists:
        for number, line in enumerate(text_lines(file), 1):
            match line.split():
                case []:
                    continue
                case [word] | [word, _]:
                    ranked.setdefault(word, Ranked(word, (file, number), len(ranked) + 1))
                case _:
                    raise InputError(f"{file}:{number}: expected a word, and a count behind it or not")
    return tuple(ranked.values())
