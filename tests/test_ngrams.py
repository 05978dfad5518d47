import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slam.ngrams import Ngrams

WORDS = st.lists(st.text("abc", min_size=1, max_size=5), min_size=2, max_size=8, unique=True)


def plainly(words: list[str], string: str, order: int) -> float:
    """Mean log-probability of a string's symbols and its end, with a tenth added to each count."""
    counts: Counter[tuple[str, str]] = Counter()
    for word in words:
        padded = "^" * (order - 1) + word + ("$" if order > 1 else "")
        for at in range(order - 1, len(padded)):
            counts[padded[at - order + 1 : at], padded[at]] += 1
    padded = "^" * (order - 1) + string + ("$" if order > 1 else "")
    total = 0.0
    for at in range(order - 1, len(padded)):
        before = padded[at - order + 1 : at]
        of_all = sum(count for (context, _), count in counts.items() if context == before)
        total += math.log((counts[before, padded[at]] + 0.1) / (of_all + 0.1 * len(SYMBOLS[order])))
    return total / (len(padded) - order + 1)


SYMBOLS = {1: "abc", 2: "abc$", 3: "abc$"}


@given(WORDS, st.text("abc", min_size=1, max_size=5), st.sampled_from([1, 2, 3]))
def test_words_are_likelier_by_the_counts_of_all_others(words: list[str], other: str, order: int) -> None:
    everywhere = ["abc", *words]  # so that all symbols are seen
    ngrams = Ngrams(order, everywhere)
    rest = list(everywhere)
    rest.remove(words[0])
    expected = plainly(rest, words[0], order) - plainly(rest, other, order)
    assert ngrams.more_likely(words[0], other) == pytest.approx(expected, abs=1e-9)


def test_the_same_symbols_in_another_order_tie_exactly() -> None:
    assert Ngrams(1, ["tone", "bell", "note"]).more_likely("tone", "note") == 0.0
