# ruff: noqa: RUF001 - letters that look alike are what is tested
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slam.errors import InputError
from slam.synthesizers.sentences import (
    Spoken,
    check_readable,
    speak_sentences,
    split_sentences,
    words_of,
)

RATE = 1000  # samples a second of what `beep` says


def beep(sentence: str) -> Spoken:
    """101 samples a word, of the value of the word's length."""
    words = words_of(sentence)
    samples = np.repeat([len(word) / 100 for _, word in words], 101).astype(np.float32)
    return Spoken(samples, tuple((start, 0.101 * index) for index, (start, _) in enumerate(words)))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('She said "Go." Then he left.', ['She said "Go."', "Then he left."]),
        ("Mr. Fox met Dr. A. B. Crow, i.e. me.", ["Mr. Fox met Dr. A. B. Crow, i.e. me."]),
        ("It was I. He left.", ["It was I.", "He left."]),
        ("It cost 3.50 at slam.org... Yes!!", ["It cost 3.50 at slam.org...", "Yes!!"]),
        ("  Wait… what?  ", ["Wait…", "what?"]),
    ],
)
def test_sentences_end_at_stops_but_not_at_abbreviations(text: str, sentences: list[str]) -> None:
    assert [sentence for _, sentence in split_sentences(text)] == sentences


@given(st.text("aB .!?…\"'”)\t0", max_size=40))
def test_sentences_hold_all_of_a_text_at_their_places(text: str) -> None:
    found = split_sentences(text)
    for start, sentence in found:
        assert text[start : start + len(sentence)] == sentence == sentence.strip() != ""
    assert "".join("".join(s.split()) for _, s in found) == "".join(text.split())


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "bcd", "don't", "7"]), min_size=1, max_size=4), min_size=1, max_size=5
    )
)
def test_words_keep_their_place_and_time_and_sentences_begin_on_40_ms(sentences: list[list[str]]) -> None:
    text = "  ".join(" ".join(words) + "." for words in sentences)
    speech = speak_sentences(text, beep, RATE, RATE)
    said = [word for words in sentences for word in words]
    assert [text[start:].split()[0].rstrip(".") for start, _ in speech.word_seconds] == said
    for start, seconds in speech.word_seconds:  # the sound at that time is that of this word
        value = len(text[start:].split()[0]) / 100
        index = round(seconds * RATE)
        np.testing.assert_allclose(speech.audio.samples[index : index + 101], value, rtol=1e-6)
    firsts = np.cumsum([0, *(len(words) for words in sentences)])[:-1]
    for first in firsts:
        assert speech.word_seconds[first][1] * 25 == pytest.approx(round(speech.word_seconds[first][1] * 25))


def test_a_sentence_of_signs_is_passed_over_and_a_text_of_them_is_refused() -> None:
    speech = speak_sentences("Go. ... !? On.", beep, RATE, 2 * RATE)
    assert [start for start, _ in speech.word_seconds] == [0, 11]
    assert speech.audio.sample_rate == 2 * RATE
    for text in ("", "... -- !", "“”"):
        with pytest.raises(InputError, match="there is no word to speak in"):
            speak_sentences(text, beep, RATE, RATE)


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "naïve café Ærø Łódź ﬁne",
        "the angle α, and π. 5 µm",
        "１２ ＯＫ ½ º ª ʻokina",
        "cafe\u0301 — “quoted” … 3 € 🙂",
    ],
)
def test_latin_letters_signs_and_single_greek_letters_can_be_read(text: str) -> None:
    for language in ("en-us", "de", "vi", "cmn-Latn-pinyin"):
        check_readable(text, "the voice", language)


@pytest.mark.parametrize(
    "text", ["日本語", "say 水", "Привет", "hello мир", "שלום", "नमस्ते", "καλημέρα", "한국"]
)
def test_letters_of_another_script_are_refused_by_name_of_text_and_voice(text: str) -> None:
    for language in ("en", "fr-fr", "fa-Latn"):
        with pytest.raises(
            InputError, match=r"^the voice 'x' cannot read '.*' in '.*'; take that out"
        ) as raised:
            check_readable(f"Say {text} now.", "the voice 'x'", language)
        assert "\n" not in str(raised.value)
        assert any(word in str(raised.value).split(" in ")[0] for word in text.split())


def test_languages_of_other_scripts_are_left_to_their_voice() -> None:
    for language, text in (("ru", "мир и hello"), ("ja", "日本語"), ("zh", "你好"), ("sr-cyrl", "мир")):
        check_readable(text, "the voice", language)


def test_a_long_text_is_cut_in_an_error() -> None:
    with pytest.raises(InputError) as raised:
        check_readable("word " * 1000 + "мир", "the voice", "en")
    assert len(str(raised.value)) < 200
