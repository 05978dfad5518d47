"""Words as sequences of symbols → which of two is likelier, by the frequencies of n-grams in all others."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

_ADDED = 0.1  # to each count
_EDGE = object()  # before and behind a word


class Ngrams:
    """Counts over word types."""

    def __init__(self, order: int, words: Iterable[Sequence[Hashable]]) -> None:
        """Count n-grams of `order` symbols."""
        self._order = order
        self._whole: Counter[tuple[Hashable, ...]] = Counter()
        self._contexts: Counter[tuple[Hashable, ...]] = Counter()
        for word in words:
            grams = self._grams(word)
            self._whole.update(grams)
            self._contexts.update(gram[:-1] for gram in grams)
        self._symbols = len({gram[-1] for gram in self._whole})

    def more_likely(self, word: Sequence[Hashable], other: Sequence[Hashable]) -> float:
        """By how many nats a symbol `word` is likelier than `other`, where `word` itself was not counted."""
        own = self._grams(word)
        whole, contexts = Counter(own), Counter(gram[:-1] for gram in own)

        def score(grams: Sequence[tuple[Hashable, ...]]) -> float:
            chances = [
                (self._whole[gram] - whole[gram] + _ADDED)
                / (self._contexts[gram[:-1]] - contexts[gram[:-1]] + _ADDED * self._symbols)
                for gram in grams
            ]
            return sum(math.log(chance) for chance in sorted(chances)) / len(grams)

        return score(own) - score(self._grams(other))

    def _grams(self, word: Sequence[Hashable]) -> list[tuple[Hashable, ...]]:
        edges = [_EDGE] * (self._order - 1)
        symbols = [*edges, *word, *edges[:1]]
        return [
            tuple(symbols[start : start + self._order]) for start in range(len(symbols) - self._order + 1)
        ]
