"""Pairs of texts or recordings → those that can teach a preference: distinct, without loops, of like lengths.

Without them a model learns something else from its pairs: to repeat itself, or to be short.
"""

import random
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from slam.metrics.auto_bleu import auto_bleu, words
from slam.pair_layouts import Candidate, Part

Reason = Literal["empty", "equal", "near_identical", "duplicate", "repetitive"]
T = TypeVar("T")
_SIDES = ("chosen", "rejected")


@dataclass
class Filters:
    """What pairs are held against; it remembers those that it let pass."""

    max_similarity: float | None  # of the sides' letters
    max_auto_bleu: float | None  # of prompt and better side
    seen: set[Hashable] = field(default_factory=set)

    def refuse(self, pair: Candidate) -> Reason | None:
        """Why a pair is left out, or None if it may stay. The first reason in this order counts."""
        if not ((pair.prompt or pair.bare) and pair.chosen and pair.rejected):
            return "empty"
        if _key(pair.chosen) == _key(pair.rejected):
            return "equal"
        if self._near_identical(pair):
            return "near_identical"
        key = tuple(map(_key, (pair.prompt, pair.chosen, pair.rejected)))
        if key in self.seen:
            return "duplicate"
        if self._repetitive(pair):
            return "repetitive"
        self.seen.add(key)
        return None

    def _near_identical(self, pair: Candidate) -> bool:
        """Whether the sides differ in too few letters; where a text is not known, they are not compared."""
        from rapidfuzz.distance import Levenshtein

        if self.max_similarity is None or not (pair.chosen.text and pair.rejected.text):
            return False
        one, other = read_aloud(pair.chosen.text), read_aloud(pair.rejected.text)
        return bool(Levenshtein.normalized_similarity(one, other) > self.max_similarity)

    def _repetitive(self, pair: Candidate) -> bool:
        """The paper's rule: bigrams of prompt and better side, of which fewer than a share are repeated."""
        if self.max_auto_bleu is None or not (pair.prompt.text and pair.chosen.text):
            return False
        return auto_bleu(words(f"{pair.prompt.text} {pair.chosen.text}")) >= self.max_auto_bleu


def sound_alike(pairs: Sequence[Candidate], accents: Sequence[str]) -> list[bool]:
    """Of each pair, whether its sides are said alike in one of the accents, eSpeak's voices.

    Raises:
        ConfigError: there is no such voice.
        MissingExtraError: eSpeak is not installed.
    """
    from slam.synthesizers.espeak import pronounce

    alike = [False] * len(pairs)
    for accent in accents:
        sides = (pronounce((getattr(pair, side).text for pair in pairs), accent) for side in _SIDES)
        alike = [before or one == other for before, one, other in zip(alike, *sides, strict=True)]
    return alike


def read_aloud(text: str) -> str:
    """What is heard of a text: one case, no punctuation, words a space apart."""
    kept = (sign if unicodedata.category(sign)[0] not in "PZC" else " " for sign in text.casefold())
    return " ".join("".join(kept).split())


def _key(part: Part) -> Hashable:
    return part.audio if part.audio is not None else read_aloud(part.text) or part.text


def balance(items: Sequence[T], differences: npt.NDArray[np.int64], seed: int) -> list[T]:
    """Leave out items until the better side is as often longer as shorter, by as much.

    Equal counts alone would let the better side be longer by much and shorter by little, and what tunes by
    gradients would still learn the length. So the counts are made equal among differences of 1, of 2 and 3,
    of 4 to 7 and so on.

    Args:
        items: pairs.
        differences: by how much each pair's better side is longer, `[n]`.
        seed: decides who is left out.

    Returns:
        The rest, in order; items without a difference stay.
    """
    groups: dict[int, dict[bool, list[int]]] = defaultdict(lambda: {True: [], False: []})
    for number, difference in enumerate(differences.tolist()):
        if difference:
            groups[abs(difference).bit_length()][difference > 0].append(number)
    draw = random.Random(seed)  # noqa: S311 - reproducible, not secret
    left_out: set[int] = set()
    for _, sides in sorted(groups.items()):
        more, fewer = sorted(sides.values(), key=len, reverse=True)
        left_out.update(draw.sample(more, len(more) - len(fewer)))
    return [item for number, item in enumerate(items) if number not in left_out]


def draw(clusters: Sequence[str], count: int, seed: int) -> list[int]:
    """At most `count` numbers of items, in order; what is of one cluster is drawn together."""
    if len(clusters) <= count:
        return list(range(len(clusters)))
    members: dict[str, list[int]] = defaultdict(list)
    for number, cluster in enumerate(clusters):
        members[cluster].append(number)
    names = list(members)
    random.Random(seed).shuffle(names)  # noqa: S311 - reproducible, not secret
    drawn: list[int] = []
    for name in names:
        if len(drawn) + len(members[name]) <= count:
            drawn += members[name]
    return sorted(drawn)


def length_accuracy(differences: npt.NDArray[np.int64]) -> float:
    """How often "the longer side is better" would be right, ties one half; 0.5 where there are no pairs."""
    return float((np.sign(differences) + 1).mean() / 2) if len(differences) else 0.5
