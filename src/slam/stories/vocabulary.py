"""The content words that stories use, and the quarter of them that is never spoken alone.

In: the pools and the frames.  Out: `ALL_WORDS` (every content word, with the inflected forms that
stories use) and `HELD_OUT`.  A held-out word is heard in training only inside phrases and stories,
so preferring it to a non-word shows that the word was learned from running speech.  Words are held
out by their stem, so that "kites" alone does not teach the held-out "kite".
"""

from __future__ import annotations

import hashlib
from typing import Final

from slam.stories import lexicon
from slam.stories.grammar import frame_words, words_of

# Words of the frames and causes that carry grammar rather than content.
_GRAMMAR: Final = (
    "a an the this these that those and but or so of in on at to for from by with into out "
    "under behind beside near through about after before because then there later first last "
    "again all some one it he she they is are was were has have had be been very still soon too "
    "also home way while he him his her himself herself could"
)
_FUNCTION_WORDS: Final = frozenset(_GRAMMAR.split())
_HELD_OUT_PERCENT: Final = 25


def _stems() -> dict[str, str]:
    stems: dict[str, str] = {}
    for nouns in (lexicon.ANIMALS, lexicon.OBJECTS, lexicon.HELPERS):
        for noun in nouns:
            stems[noun] = noun
            stems[lexicon.plural(noun)] = noun
    plain = [
        *lexicon.PLACES, *lexicon.COLOURS, *lexicon.NUMBERS, *lexicon.FOODS, *lexicon.WEATHERS,
        *lexicon.VEHICLES, *lexicon.TRAITS, *lexicon.FEELINGS, *frame_words(),
    ]  # fmt: skip
    phrases = [
        *lexicon.ACTIVITIES,
        *(cause for causes in lexicon.FEELING_CAUSES.values() for cause in causes),
        *(word for words in lexicon.WORDINGS.values() for word in words),
    ]
    plain += [word for phrase in phrases for word in words_of(phrase) if "{" not in word]
    for word in plain:
        stems.setdefault(word, word)
    return {word: stem for word, stem in stems.items() if word not in _FUNCTION_WORDS}


def _is_held_out(stem: str) -> bool:
    digest = hashlib.sha256(f"held-out {stem}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < _HELD_OUT_PERCENT


_STEMS: Final = _stems()
NAMES: Final = lexicon.GIRLS + lexicon.BOYS
ALL_WORDS: Final[tuple[str, ...]] = tuple(sorted(_STEMS))
HELD_OUT: Final[tuple[str, ...]] = tuple(w for w in ALL_WORDS if _is_held_out(_STEMS[w]))
# What may be spoken alone in training; names are spoken too, but never tested against non-words.
SPOKEN_ALONE: Final[tuple[str, ...]] = (*(w for w in ALL_WORDS if w not in HELD_OUT), *NAMES)
