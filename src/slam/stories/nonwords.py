"""Non-words that sound like the lexicon: a held-out word -> pronounceable strings beside it.

In: a held-out word.  Out: a fixed, ordered tuple of non-words with the same number of letters and
the same pattern of consonant and vowel groups, made by exchanging one to three letter groups for
groups that the lexicon uses in the same position.  The candidates are few and fixed, so that all of
them could be checked against a pronouncing dictionary; those that are words, or sound like one,
are listed in `COLLISIONS` and never used.
"""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Final

from slam.stories.collisions import COLLISIONS
from slam.stories.vocabulary import ALL_WORDS, HELD_OUT

CANDIDATES_PER_WORD: Final = 40
MIN_LETTERS: Final = 4
_MIN_NONWORDS: Final = 10
_MAX_EXCHANGED: Final = 3
_DRAWS: Final = 1000
_MIN_STEM: Final = 3  # letters; a shorter rest is no stem, and its ending part of it
# A "y" or "w" belongs to the vowel before it ("play", "yellow"); "qu" is a consonant group.
_GROUPS: Final = re.compile(
    r"qu|[aeiou]+(?:[yw](?![aeiouy]))?|(?<=[^aeiou])y|(?:y(?=[aeiou])|(?!qu)[^aeiouy])+"
)
# Written endings whose letters are not sounds of their own: they stay as they are.
_ENDING: Final = re.compile(r"(?<=[^aeiou])(?:les|led|le|e|es|ed|s|ly|ing)$")
# Groups that English spells in a few words only; a reader of the non-word would stumble.
_RARE_GROUPS: Final = frozenset(
    (
        "kn",
        "wr",
        "gh",
        "ght",
        "sq",
        "sw",
        "x",
        "sc",
        "rk",
        "lk",
        "lpt",
        "mpt",
        "ia",
        "ou",
        "ie",
        "ei",
        "eau",
    )
)

# A letter group and where it stands: "start", "middle" or "end" of the stem.
Group = tuple[str, str]


@cache
def askable_words() -> tuple[str, ...]:
    """List the held-out words that are long enough and have enough non-words beside them."""
    words = (word for word in HELD_OUT if len(word) >= MIN_LETTERS)
    return tuple(word for word in words if len(nonwords_of(word)) >= _MIN_NONWORDS)


@cache
def nonwords_of(word: str) -> tuple[str, ...]:
    """List the usable non-words of `word`, always the same ones in the same order."""
    return tuple(c for c in candidates_of(word) if c not in COLLISIONS)


@cache
def candidates_of(word: str) -> tuple[str, ...]:
    """Every candidate non-word of `word`, before those that are words are taken out."""
    groups, ending = split_groups(word)
    inventory = _inventory()
    rng = random.Random(f"nonwords-{word}")
    found: dict[str, None] = {}
    for _ in range(_DRAWS):
        if len(found) == CANDIDATES_PER_WORD:
            break
        letters = [group for group, _ in groups]
        # One of the first two groups always changes: a later vowel alone may not be heard.
        later = list(range(2, len(groups)))
        exchanged = [
            *rng.sample(range(min(2, len(groups))), 1),
            *rng.sample(later, min(len(later), rng.randrange(_MAX_EXCHANGED))),
        ]
        for index in exchanged:
            letters[index] = rng.choice(inventory.get(slot_of(groups[index]), (letters[index],)))
        candidate = "".join(letters) + ending
        if (
            candidate not in ALL_WORDS
            and _is_sayable(candidate)
            # letters at a seam may group anew ("qu" before "y"), and then no longer sound as exchanged
            and pattern_of(candidate) == pattern_of(word)
        ):
            found[candidate] = None
    return tuple(found)


def pattern_of(word: str) -> str:
    """Spell out the consonant and vowel letters of a word: "table" is "CVCCV"."""
    groups, ending = split_groups(word)
    letters = "".join(slot_of(group)[0] * len(group[0]) for group in groups)
    return letters + "".join("V" if letter in "aeiouy" else "C" for letter in ending)


def split_groups(word: str) -> tuple[list[Group], str]:
    """The consonant and vowel groups of a word, each with its place, and a written ending or ""."""
    match = _ENDING.search(word)
    ending = match[0] if match and len(word) - len(match[0]) >= _MIN_STEM else ""
    parts = _GROUPS.findall(word[: len(word) - len(ending)])
    places = ["middle"] * len(parts)
    places[-1] = "end"
    places[0] = "start"
    return list(zip(parts, places, strict=True)), ending


def slot_of(group: Group) -> tuple[str, str, int]:
    """Whose place a group may take: "C" or "V", where it stands, and its letters."""
    letters, place = group
    is_vowel = letters[0] in "aeiou" or (letters == "y" and place != "start")
    return ("V" if is_vowel else "C", place, len(letters))


@cache
def _inventory() -> dict[tuple[str, str, int], tuple[str, ...]]:
    """Letter groups by slot; as often as the lexicon has them, so that rare ones stay rare."""
    inventory: dict[tuple[str, str, int], list[str]] = {}
    for word in ALL_WORDS:
        if len(word) >= MIN_LETTERS:
            for group in split_groups(word)[0]:
                if group[0] not in _RARE_GROUPS:
                    inventory.setdefault(slot_of(group), []).append(group[0])
    return {slot: tuple(groups) for slot, groups in inventory.items()}


def _is_sayable(candidate: str) -> bool:
    """Whether the letters may stand beside each other in an English spelling."""
    return not re.search(
        r"(.)\1\1|iy|uw|iw|ii|uu|aa|ye|h$|[jvq]$|^(.)\2|[aeiou](?:dg|v|j)$|ck[^lesy]|"
        r"[^aeiouy](?:tt|ss|ll|rr|ff|pp|bb|dd|ck|dg)|(?:tt|ss|ll|rr|ff|pp|bb|dd|ck|dg)[^aeiouylr]",
        candidate,
    )
