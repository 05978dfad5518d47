"""Children's stories that know their facts: (source, count, split, seed) -> texts and pairs.

In: what to write, how much of it, for which split, from which seed.  Out: `Text`s to be spoken and
`TextPair`s whose rejected side is wrong for a stated reason.  Written, not collected, because only
of a story whose facts are known can one say which ending contradicts them.
"""

from slam.stories.contradictions import CONTRADICTION_KINDS
from slam.stories.grammar import Facts, Split, sentence_frames
from slam.stories.pairs import PAIR_KINDS, PAIR_SOURCES, PHENOMENA, TextPair, write_pairs
from slam.stories.texts import TEXT_SOURCES, Text, write_texts

__all__ = [
    "CONTRADICTION_KINDS",
    "PAIR_KINDS",
    "PAIR_SOURCES",
    "PHENOMENA",
    "TEXT_SOURCES",
    "Facts",
    "Split",
    "Text",
    "TextPair",
    "sentence_frames",
    "write_pairs",
    "write_texts",
]
