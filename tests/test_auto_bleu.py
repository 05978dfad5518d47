import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slam.metrics.auto_bleu import auto_bleu, words

TOKENS = st.lists(st.sampled_from("abc"), max_size=12)


def repeated_places(tokens: list[str], order: int) -> list[bool]:
    """Place by place: does the n-gram that begins here begin anywhere else?"""
    places = range(len(tokens) - order + 1)
    return [
        any(tokens[here : here + order] == tokens[there : there + order] for there in places if there != here)
        for here in places
    ]


@given(TOKENS, st.integers(1, 4))
def test_it_is_the_share_of_places_whose_ngram_stands_elsewhere_too(tokens: list[str], order: int) -> None:
    found = repeated_places(tokens, order)
    assert auto_bleu(tokens, order) == (sum(found) / len(found) if found else 0.0)


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0), ("a", 0), ("a b", 0), ("a b a b", 2 / 3), ("a b c a b", 2 / 4), ("a a a", 1), ("a b c d", 0)],
)
def test_both_occurrences_of_a_bigram_count(text: str, share: float) -> None:
    assert auto_bleu(text.split()) == pytest.approx(share)


@given(TOKENS)
def test_units_are_counted_as_words_are(tokens: list[str]) -> None:
    units = np.array([ord(token) for token in tokens], np.uint16)
    assert auto_bleu(units) == auto_bleu(tokens)
    assert type(auto_bleu(units)) is float


def test_words_and_marks_are_apart_as_in_the_papers_code() -> None:
    text = "Someone can't stop. \"No, never!\" he said, and the dogs' owner paid $3.50."
    apart = "Someone ca n't stop. `` No , never ! '' he said , and the dogs ' owner paid $ 3.50 ."
    assert " ".join(words(text)) == apart
    assert words("") == []


def test_a_text_that_says_itself_twice_is_told_from_one_that_does_not() -> None:
    once = "The girl opened the door, and a small dog ran out"
    assert auto_bleu(words(once)) == 0
    assert auto_bleu(words(f"{once}, {once}")) > 0.9
