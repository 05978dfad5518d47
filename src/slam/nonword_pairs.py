"""Words → pairs in the manner of sWUGGY: a word, and a string that could be one and is none.

Non-words are made as Wuggy makes them (Keuleers and Brysbaert 2010): letter groups of the word are exchanged
for others of the same length that English has in the same place, with neighbours as frequent as its own. Of
those that sound as long as the word, one is taken so that frequencies of letters and sounds do not tell.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Literal

from slam.ngrams import Ngrams
from slam.pair_layouts import Candidate, Part
from slam.stories.nonwords import Group, pattern_of, slot_of, split_groups
from slam.word_lexicon import Lexicon, Ranked, Sounds

Unasked = Literal["unfit_word", "without_nonword", "not_drawn"]

_VOWELS = "aæɐɑeəɚɛɜiɪoɔɒuʊʌ"  # noqa: RUF001 - IPA
_ORDERS = (1, 2, 3)
_LIKELIEST = 10  # exchanges of a group that are tried, by how alike their neighbours' frequencies are
_HEARD = 60  # strings of a word whose sounds are looked at
_CHOICE = 12  # non-words among which the balance decides
_TIE = 1e-9  # nats
_LEAST_SEEN = 3  # words that must have two groups beside each other


@dataclass
class NonwordPairs:
    """Makes pairs one after the other; which non-word is taken depends on those before."""

    lexicon: Lexicon
    seed: int
    used: set[str] = field(init=False, default_factory=set)
    sums: dict[str, int] = field(init=False)  # by scorer: words preferred less non-words preferred

    def __post_init__(self) -> None:
        """Count what the words are made of."""
        words = [one.word for one in self.lexicon.ranked if self.lexicon.can_be_asked(one.word)]
        self._neighbours = _Neighbours(words)
        self._scorers = {f"letter_{order}gram": Ngrams(order, map(tuple, words)) for order in _ORDERS} | {
            f"sound_{order}gram": Ngrams(order, (self.lexicon.sounds[word][0] for word in words))
            for order in _ORDERS
        }
        self.sums = dict.fromkeys(self._scorers, 0)

    def pairs(
        self, count: int | None, count_each: int | None
    ) -> Iterator[tuple[Path, int, Candidate | Unasked]]:
        """A pair for each word that is drawn, in the list's order, or why there is none.

        Args:
            count: at most so many words.
            count_each: at most so many of each frequency band.
        """
        found: dict[Ranked, Candidate | Unasked] = {}
        drawn: Counter[str] = Counter()
        draw = random.Random(self.seed)  # noqa: S311 - reproducible, not secret
        for one in draw.sample(self.lexicon.ranked, len(self.lexicon.ranked)):
            if not self.lexicon.can_be_asked(one.word):
                found[one] = "unfit_word"
            elif (count is not None and drawn.total() >= count) or (
                count_each is not None and drawn[one.band] >= count_each
            ):
                found[one] = "not_drawn"
            elif (nonword := self._nonword(one.word)) is None:
                found[one] = "without_nonword"
            else:
                drawn[one.band] += 1
                found[one] = _pair(one, nonword)
        for one in self.lexicon.ranked:
            yield *one.place, found[one]

    @property
    def accuracies(self) -> dict[str, float]:
        """How often each scorer of frequencies, which does not know the word itself, prefers the word."""
        return {name: round((total / max(1, len(self.used)) + 1) / 2, 4) for name, total in self.sums.items()}

    def _nonword(self, word: str) -> str | None:
        """The non-word that keeps the scorers' preferences in balance; None if there is none."""
        strings = [one for one in self._neighbours.strings(word, self.seed) if one not in self.used]
        own = self.lexicon.sounds[word]
        spoken = zip(strings, self.lexicon.pronounce(strings), strict=True)
        fit = [
            (string, sounds)
            for string, sounds in spoken
            if all(_alike(one, other) for one, other in zip(own, sounds, strict=True))
            and not self.lexicon.says_a_word(sounds)
            and not self.lexicon.spells_a_word(string)
        ]
        if not fit:
            return None
        differences = {string: self._differences(word, own[0], string, sounds[0]) for string, sounds in fit}
        near = sorted(differences, key=lambda one: sum(map(abs, differences[one].values())))[:_CHOICE]

        def imbalance(string: str) -> int:
            return sum((self.sums[name] + _sign(more)) ** 2 for name, more in differences[string].items())

        taken = min(near, key=imbalance)  # the nearest of those that do as well
        self.used.add(taken)
        for name, more in differences[taken].items():
            self.sums[name] += _sign(more)
        return taken

    def _differences(self, word: str, own: Sounds, string: str, sounds: Sounds) -> dict[str, float]:
        """By each scorer, how much likelier the word is than the string, in nats."""
        return {
            name: scorer.more_likely(*((tuple(word), tuple(string)) if name[0] == "l" else (own, sounds)))
            for name, scorer in self._scorers.items()
        }


def _pair(one: Ranked, nonword: str) -> Candidate:
    return Candidate(
        prompt=Part(),
        chosen=Part(one.word),
        rejected=Part(nonword),
        kind=one.band,
        reason=f"{nonword!r} is no English word",
        cluster=one.word,
        bare=True,
    )


def _alike(word: Sounds, other: Sounds) -> bool:
    """Whether both have as many sounds, and vowels in the same places."""
    return [_is_vowel(sound) for sound in word] == [_is_vowel(sound) for sound in other]


def _is_vowel(sound: str) -> bool:
    return sound[0] in _VOWELS


def _sign(number: float) -> int:
    return (number > _TIE) - (number < -_TIE)


class _Neighbours:
    """Which groups stand beside each other in words, and how often."""

    def __init__(self, words: Sequence[str]) -> None:
        self._seen: Counter[tuple[Group, Group]] = Counter()
        fillers: dict[tuple[str, str, int], set[str]] = defaultdict(set)
        for word in words:
            groups = _groups(word)
            self._seen.update(pairwise(groups))
            for group in groups[1:-1]:
                fillers[slot_of(group)].add(group[0])
        self._fillers = {slot: sorted(letters) for slot, letters in fillers.items()}

    def strings(self, word: str, seed: int) -> list[str]:
        """The word with about a third of its groups exchanged, the most alike in frequencies first."""
        groups = _groups(word)
        places = range(1, len(groups) - 1)
        choices = {place: self._exchanges(groups, place) for place in places}
        exchanged = max(1, round(len(places) / 3))
        pattern = pattern_of(word)
        found: dict[str, float] = {}
        draw = random.Random(f"{seed}-{word}")  # noqa: S311 - reproducible, not secret
        for some in combinations(places, exchanged):
            for letters in product(*(choices[place] for place in some)):
                if exchanged > 1 and draw.random() > 4 * _HEARD / _LIKELIEST**exchanged:
                    continue  # long words have thousands
                changed = list(groups)
                for place, group in zip(some, letters, strict=True):
                    changed[place] = group
                string = "".join(group for group, _ in changed)
                deviation = self._deviation(groups, changed)
                if deviation < math.inf and string not in found and pattern_of(string) == pattern:
                    found[string] = deviation
        return sorted(found, key=lambda one: (found[one], one))[:_HEARD]

    def _exchanges(self, groups: Sequence[Group], place: int) -> list[Group]:
        """Other groups for a place, the most alike in their neighbours' frequencies first."""
        letters, where = groups[place]
        others = [(filler, where) for filler in self._fillers[slot_of(groups[place])] if filler != letters]

        before, after = groups[place - 1], groups[place + 1]
        around = (before, groups[place], after)
        alike = {other: self._deviation(around, (before, other, after)) for other in others}
        return sorted((other for other in others if alike[other] < math.inf), key=alike.__getitem__)[
            :_LIKELIEST
        ]

    def _deviation(self, groups: Sequence[Group], changed: Sequence[Group]) -> float:
        """How far the frequencies of neighbours are from the word's; infinite where English has them not."""
        total = 0.0
        for old, new in zip(pairwise(groups), pairwise(changed), strict=True):
            if old != new:
                if self._seen[new] < _LEAST_SEEN:
                    return math.inf
                total += abs(math.log(self._seen[new] / self._seen[old]))
        return total


def _groups(word: str) -> list[Group]:
    """The word's letter groups between marks of its edges; the last holds a written ending."""
    groups, ending = split_groups(word)
    return [("", "before"), *groups, (ending, "after")]
