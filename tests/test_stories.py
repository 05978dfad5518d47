"""Stories and pairs: what a user of the corpus relies on, checked on the written text itself."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonword_collisions import find_collisions, words_as_spelled
from slam.stories import (
    CONTRADICTION_KINDS,
    PAIR_SOURCES,
    PHENOMENA,
    TEXT_SOURCES,
    TextPair,
    lexicon,
    sentence_frames,
    write_pairs,
    write_texts,
)
from slam.stories.collisions import COLLISIONS
from slam.stories.grammar import SPLITS, STORY_WORDS, Split, split_of, words_of
from slam.stories.nonwords import askable_words, nonwords_of, pattern_of
from slam.stories.vocabulary import ALL_WORDS, HELD_OUT

SHE = {"she", "her", "herself"}
HE = {"he", "him", "himself"}
# The words that each kind of contradiction may exchange.
POOLS = {
    "agent": lexicon.GIRLS + lexicon.BOYS,
    "place": (*lexicon.PLACES, "in", "at", "on"),
    "object": (*lexicon.OBJECTS, *map(lexicon.plural, lexicon.OBJECTS)),
    "feeling": lexicon.FEELINGS,
    "number": lexicon.NUMBERS,
    "animal": (*lexicon.ANIMALS, *map(lexicon.plural, lexicon.ANIMALS)),
    "colour": lexicon.COLOURS,
    "food": lexicon.FOODS,
    "weather": lexicon.WEATHERS,
    "vehicle": lexicon.VEHICLES,
    "helper": lexicon.HELPERS,
}


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return [t.text for t in write_texts("stories", 3000, split="train", seed=0)]


def story_pairs(kind: str, count: int = 70) -> list[TextPair]:
    return write_pairs("storycloze", count, split="evaluation", seed=3, kinds=(kind,))


@settings(max_examples=10, deadline=None)
@given(
    source=st.sampled_from(sorted({*TEXT_SOURCES, *PAIR_SOURCES})),
    split=st.sampled_from(SPLITS),
    seed=st.integers(0, 1000),
    sizes=st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted),
)
def test_lists_are_reproducible_and_longer_ones_begin_with_shorter_ones(
    source: str, split: Split, seed: int, sizes: list[int]
) -> None:
    write = write_texts if source in TEXT_SOURCES else write_pairs
    short, long = (write(source, size, split=split, seed=seed) for size in sizes)
    assert len(long) == sizes[1]
    assert long[: sizes[0]] == short


@pytest.mark.parametrize("source", ["stories", "sentences", "phrases"])
def test_texts_are_distinct_and_depend_on_the_seed(source: str) -> None:
    texts = write_texts(source, 300, split="train", seed=0)
    assert len({t.text for t in texts}) == len({t.id for t in texts}) == 300
    assert texts != write_texts(source, 300, split="train", seed=1)


@pytest.mark.parametrize("source", sorted(PAIR_SOURCES))
def test_pairs_are_distinct_and_depend_on_the_seed(source: str) -> None:
    pairs = write_pairs(source, 100, split="evaluation", seed=0)
    assert len({(p.prompt, p.chosen, p.rejected) for p in pairs}) == 100
    assert len({p.id for p in pairs}) == 100
    assert all(p.chosen != p.rejected and p.reason and "\n" not in p.reason for p in pairs)
    assert pairs != write_pairs(source, 100, split="evaluation", seed=1)


def test_no_story_stands_in_two_splits() -> None:
    written = {s: write_texts("stories", 80, split=s, seed=0) for s in SPLITS}
    keys = {s: {t.story for t in texts} for s, texts in written.items()}
    pairs = write_pairs("storycloze", 100, split="evaluation", seed=0)
    keys["evaluation"] |= {p.story for p in pairs}
    for split in SPLITS:
        assert all(key is not None and split_of(key) == split for key in keys[split])
        for other in SPLITS:
            assert split == other or not keys[split] & keys[other]
    shares = Counter(split_of(f"key {n}") for n in range(5000))
    assert [round(shares[s] / 5000, 1) for s in SPLITS] == [0.8, 0.0, 0.1, 0.1]


def test_grammar_questions_are_never_spoken_in_training(stories: list[str]) -> None:
    asked = {p.chosen for p in write_pairs("sblimp", 300, split="evaluation", seed=0)}
    spoken = {t.text for t in write_texts("sentences", 3000, split="train", seed=0)}
    assert not asked & spoken
    assert not any(sentence in asked for story in stories for sentence in sentences_of(story))


def sentences_of(text: str) -> list[str]:
    return [sentence + "." for sentence in text.removesuffix(".").split(". ")]


def test_stories_are_short_plain_and_varied(stories: list[str]) -> None:
    lengths = [len(story.split()) for story in stories]
    assert min(lengths) >= STORY_WORDS[0] >= 24
    assert max(lengths) <= STORY_WORDS[1] <= 40
    for story in stories:
        sentences = sentences_of(story)
        assert len(sentences) in (5, 6)
        assert all(4 <= len(sentence.split()) <= 9 for sentence in sentences)
        assert re.fullmatch(r"[A-Z][A-Za-z .]*\.", story), story
    assert len({word for story in stories for word in words_of(story)}) >= 350
    assert len(sentence_frames()) >= 40


def test_facts_are_named_again(stories: list[str]) -> None:
    pool = {w.lower() for words in POOLS.values() for w in words} - {"in", "at", "on"}
    for story in stories:
        counts = Counter(word for word in words_of(story) if word in pool)
        assert max(counts.values()) >= 2
        assert sum(count >= 2 for count in counts.values()) >= 2, story


@pytest.mark.parametrize("source", ["stories", "sentences", "phrases"])
def test_articles_agree_with_the_next_word(source: str) -> None:
    texts = write_texts(source, 500, split="train", seed=5)
    joined = " ".join(t.text for t in texts)
    articles = re.findall(r"\b([Aa]n?) (\w)", joined)
    assert {article.lower() for article, _ in articles} == {"a", "an"}
    assert all((a.lower() == "an") == (letter in "aeiou") for a, letter in articles)


def test_pronouns_agree_with_the_hero() -> None:
    seen = set()
    for text in write_texts("stories", 800, split="train", seed=1):
        assert text.story is not None
        hero = next(name for name in POOLS["agent"] if name == text.story.split("|")[1])
        wrong, right = (HE, SHE) if hero in lexicon.GIRLS else (SHE, HE)
        words = set(words_of(text.text))
        assert not words & wrong, text
        seen |= words & right
    assert {"he", "she"} <= seen


def test_training_sentences_teach_agreement_without_mistakes() -> None:
    texts = " ".join(t.text for t in write_texts("sentences", 2500, split="train", seed=0))
    singular = "|".join((*lexicon.ANIMALS, *lexicon.OBJECTS))
    plurals = "|".join(map(lexicon.plural, (*lexicon.ANIMALS, *lexicon.OBJECTS)))
    for good, bad in (
        (rf"({plurals}) (are|were|like)\b", rf"({singular}) (are|were|like)\b"),
        (rf"({singular}) (is|was|likes)\b", rf"({plurals}) (is|was|likes)\b"),
        (rf"these \w+ ({plurals})\b", rf"these \w+ ({singular})\b"),
        (rf"this \w+ ({singular})\b", rf"this \w+ ({plurals})\b"),
    ):
        assert re.search(r"\b" + good, texts)
        # "Anna and the fox were": a singular noun after "and" is half of a plural subject.
        assert not re.search(r"(?<!and the )\b" + bad, texts.replace("There ", ""))


@pytest.mark.parametrize("kind", sorted(POOLS))
def test_one_fact_is_contradicted_and_the_true_one_was_told(kind: str) -> None:
    pool = {word.lower() for word in POOLS[kind]}
    # A friend's name is rarely the wrong one drawn: only many pairs show that it never is.
    for pair in story_pairs(kind, 500 if kind == "agent" else 70):
        told = set(words_of(pair.prompt))
        right, wrong = (words_of(side.replace(" an ", " a ")) for side in (pair.chosen, pair.rejected))
        assert pair.kind == kind
        assert len(right) == len(wrong)
        changed = [(a, b) for a, b in zip(right, wrong, strict=True) if a != b]
        assert changed
        assert all(a in pool and b in pool for a, b in changed), pair
        facts = [(a, b) for a, b in changed if a not in {"in", "at", "on"}]
        assert all(a in told and b not in told for a, b in facts), pair
        assert len(facts) == 1


def test_a_wrong_hero_is_of_the_same_gender() -> None:
    for pair in story_pairs("agent"):
        changed = set(pair.chosen.strip(".").split()) ^ set(pair.rejected.strip(".").split())
        assert changed <= set(lexicon.GIRLS) or changed <= set(lexicon.BOYS), pair


@pytest.mark.parametrize("kind", ["order", "role"])
def test_swapped_facts_keep_every_word(kind: str) -> None:
    for pair in story_pairs(kind):
        assert Counter(words_of(pair.chosen)) == Counter(words_of(pair.rejected))


def test_the_order_of_the_true_ending_is_the_order_told() -> None:
    for pair in story_pairs("order"):
        told = [a for a in lexicon.ACTIVITIES if a in pair.prompt]
        first, second = sorted(told, key=pair.prompt.index)
        turned = " after " in pair.chosen
        assert (pair.chosen.index(first) < pair.chosen.index(second)) != turned
        assert (pair.rejected.index(first) < pair.rejected.index(second)) == turned


def test_the_giver_of_the_true_ending_is_the_giver_told() -> None:
    for pair in story_pairs("role"):
        giver = re.search(
            r"(\w+) (?:gave|handed|cooked|brought|bought|prepared|ordered) "
            r"(?:the|some|plenty|[A-Z]\w+)",
            pair.prompt,
        )
        assert giver is not None, pair
        for ending, is_true in ((pair.chosen, True), (pair.rejected, False)):
            found = re.search(r"So (\w+)|(?:thanked|from) (\w+)|from (\w+)", ending)
            assert found is not None, ending
            assert (giver[1] in found.groups()) == is_true


def test_a_wrong_cause_did_not_happen() -> None:
    for pair in story_pairs("cause"):
        right, wrong = (
            re.split(r"because |told everyone that ", side)[1] for side in (pair.chosen, pair.rejected)
        )
        assert right in pair.prompt.replace(right.capitalize(), right)
        assert wrong not in pair.prompt
        assert len(right.split()) == len(wrong.split())


def test_the_reason_names_the_fact_and_its_contradiction() -> None:
    for kind in sorted(POOLS):
        for pair in story_pairs(kind, 20):
            reason = pair.reason.lower()
            for a, b in zip(words_of(pair.chosen), words_of(pair.rejected), strict=True):
                if {a, b} != {"a", "an"} and a != b and a not in {"in", "at", "on"}:
                    assert reason.index(a[:3]) < reason.rindex(b[:3]), pair


def test_kinds_take_turns_and_can_be_chosen() -> None:
    counts = Counter(p.kind for p in write_pairs("preferences", 140, split="preferences", seed=0))
    assert counts == dict.fromkeys(CONTRADICTION_KINDS, 10)
    two = write_pairs("sblimp", 10, split="evaluation", seed=0, kinds=PHENOMENA[:2])
    assert Counter(p.kind for p in two) == dict.fromkeys(PHENOMENA[:2], 5)


@pytest.mark.parametrize("source", sorted(PAIR_SOURCES))
def test_length_does_not_tell_the_sides_apart(source: str) -> None:
    pairs = write_pairs(source, 280, split="evaluation", seed=2)
    score = sum((len(p.chosen) < len(p.rejected)) + (len(p.chosen) == len(p.rejected)) / 2 for p in pairs)
    assert score / len(pairs) == pytest.approx(0.5, abs=0.06)
    assert all(len(p.chosen.split()) == len(p.rejected.split()) for p in pairs)


@pytest.mark.parametrize("kind", ["agent", "place", "object", "feeling"])
def test_word_frequencies_do_not_tell_the_sides_apart(kind: str, stories: list[str]) -> None:
    counts = Counter(word for story in stories for word in words_of(story))

    def score(text: str) -> float:
        return sum(math.log(counts[word] + 1) for word in words_of(text))

    won = 0.0
    for pair in write_pairs("storycloze", 1000, split="evaluation", seed=4, kinds=(kind,)):
        difference = score(pair.chosen) - score(pair.rejected)
        won += 0.5 if difference == 0 else float(difference > 0)
    assert won / 1000 == pytest.approx(0.5, abs=0.05)


def test_another_topic_shares_no_name_place_or_object() -> None:
    pools = {w.lower() for w in (*POOLS["agent"], *POOLS["place"][:-3], *POOLS["object"])}
    for pair in write_pairs("topic-storycloze", 60, split="evaluation", seed=0):
        assert not set(words_of(pair.rejected)) & set(words_of(pair.prompt)) & pools, pair


def test_grammar_pairs_change_only_what_their_phenomenon_names() -> None:
    for pair in write_pairs("sblimp", 300, split="evaluation", seed=0):
        right, wrong = words_of(pair.chosen), words_of(pair.rejected)
        changed = [(a, b) for a, b in zip(right, wrong, strict=True) if a != b]
        if pair.kind.endswith("order"):
            assert Counter(w for w in right if w not in {"a", "an"}) == Counter(
                w for w in wrong if w not in {"a", "an"}
            )
        else:
            assert len(changed) == 1, pair
        if pair.kind == "reflexive agreement":
            hero = pair.chosen.split()[0]
            expected = ("herself", "himself") if hero in lexicon.GIRLS else ("himself", "herself")
            assert changed == [expected]


def test_words_held_out_of_training_are_the_ones_tested() -> None:
    spoken = {t.text for t in write_texts("words", 1500, split="train", seed=0)}
    assert 0.2 < len(HELD_OUT) / len(ALL_WORDS) < 0.3
    assert not spoken & set(HELD_OUT)
    assert {word for word in ALL_WORDS if word not in HELD_OUT} < spoken
    tested = {p.chosen for p in write_pairs("swuggy", 500, split="evaluation", seed=0)}
    assert len(tested) >= 80
    assert tested <= set(HELD_OUT)


def test_held_out_words_are_heard_in_stories_and_phrases(stories: list[str]) -> None:
    short = [t.text for source in ("sentences", "phrases")
             for t in write_texts(source, 3000, split="train", seed=0)]  # fmt: skip
    heard = {word for text in (*stories, *short) for word in words_of(text)}
    assert set(askable_words()) <= heard


def test_words_go_round_with_new_ids() -> None:
    texts = write_texts("words", 2000, split="train", seed=0)
    assert len({t.id for t in texts}) == 2000
    counts = Counter(t.text for t in texts)
    assert max(counts.values()) - min(counts.values()) == 1


def test_nonwords_are_shaped_like_their_word() -> None:
    for pair in write_pairs("swuggy", 500, split="evaluation", seed=0):
        assert len(pair.chosen) == len(pair.rejected) >= 4
        assert pattern_of(pair.chosen) == pattern_of(pair.rejected), pair
        assert pair.rejected not in ALL_WORDS
    # every word is asked before any is asked again
    lap = len(askable_words()) * 9 // 10
    first_lap = write_pairs("swuggy", lap, split="evaluation", seed=0)
    assert len({p.chosen for p in first_lap}) == lap


def test_no_nonword_is_a_word(shared_data: Path) -> None:
    words = words_as_spelled(shared_data / "text")
    assert {"castle", "rabbit"} <= words
    # Every non-word that any seed can give, not a sample of them.
    assert not {c for word in askable_words() for c in nonwords_of(word)} & words


def test_the_excluded_nonwords_are_the_ones_that_collide(shared_data: Path) -> None:
    found = find_collisions(shared_data / "text")
    assert found == COLLISIONS, "the lexicon changed: run python tests/nonword_collisions.py"


@pytest.mark.parametrize("write", [write_texts, write_pairs])
def test_an_unknown_source_is_answered_with_the_known_ones(write: object) -> None:
    assert callable(write)
    with pytest.raises(ValueError, match="stor"):
        write("poems", 1, split="train", seed=0)


@pytest.mark.parametrize(("source", "known"), [("storycloze", "agent"), ("sblimp", "reflexive")])
def test_an_unknown_kind_is_answered_with_the_known_ones(source: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"'smell'.*{known}"):
        write_pairs(source, 1, split="train", seed=0, kinds=("smell",))


def test_asking_for_too_many_says_how_many_there_are() -> None:
    with pytest.raises(ValueError, match=r"only \d+ distinct pairs") as caught:
        write_pairs("swuggy", 100_000, split="evaluation", seed=0)
    available = int(re.findall(r"only (\d+)", str(caught.value))[0])
    assert len(write_pairs("swuggy", available, split="evaluation", seed=0)) == available
