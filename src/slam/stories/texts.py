"""Texts to be spoken: (source, count, split, seed) -> a list of `Text`.

In: the name of a source and how many.  Out: whole stories, single sentences, phrases or words, each
with an id.  All of them are drawn from the same facts and frames, so that short texts give a model
the words and the grammar and long ones the coherence.  A longer list begins with the shorter one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Final

from slam.stories.contrasts import CONTRASTS, PHRASES
from slam.stories.grammar import Split, draw_facts, draw_story, draw_wording, render, split_of
from slam.stories.vocabulary import HELD_OUT, SPOKEN_ALONE

SENTENCE_WORDS: Final = (3, 8)
# Of single sentences, this share are plain contrast frames that show agreement and word order.
_CONTRAST_SHARE: Final = 0.5
# So many repeats in a row mean that a source has no more distinct items to give.
GIVE_UP_AFTER: Final = 2000


@dataclass(frozen=True)
class Text:
    """One utterance to speak.

    `id` is unique per source, split and index; `story` is the key of the story that the text came
    from, or None.
    """

    id: str
    text: str
    source: str
    story: str | None


# A draw gives the text and the key of its story.
_Drawn = tuple[str, str | None]
TextWriter = Callable[[Split, int], Iterator[_Drawn]]


def _stories(split: Split, seed: int) -> Iterator[_Drawn]:
    def draw(rng: random.Random) -> _Drawn:
        story = draw_story(rng, split)
        return story.text, story.key

    return _distinct("stories", split, seed, draw)


def _sentences(split: Split, seed: int) -> Iterator[_Drawn]:
    def draw(rng: random.Random) -> _Drawn:
        if rng.random() < _CONTRAST_SHARE:
            return draw_contrast(rng, split, rng.choice(tuple(CONTRASTS)))[0], None
        while True:
            # evenly: here the words and frames that stories seldom use are heard
            story = draw_story(rng, split, evenly=True)
            sentence = rng.choice((*story.prompt_sentences, story.last))
            if SENTENCE_WORDS[0] <= len(sentence.split()) <= SENTENCE_WORDS[1]:
                return sentence, story.key

    return _distinct("sentences", split, seed, draw)


def _phrases(split: Split, seed: int) -> Iterator[_Drawn]:
    def draw(rng: random.Random) -> _Drawn:
        return render(rng.choice(PHRASES), draw_facts(rng), draw_wording(rng)), None

    return _distinct("phrases", split, seed, draw)


def _words(split: Split, seed: int) -> Iterator[_Drawn]:
    # Only the evaluation speaks held-out words alone.
    words = list(HELD_OUT if split == "evaluation" else SPOKEN_ALONE)
    for lap in count():
        random.Random(f"words-{split}-{seed}-{lap}").shuffle(words)
        yield from ((word, None) for word in words)


TEXT_SOURCES: Final[dict[str, TextWriter]] = {
    "stories": _stories,
    "sentences": _sentences,
    "phrases": _phrases,
    "words": _words,
}


def write_texts(source: str, count: int, *, split: Split, seed: int) -> list[Text]:
    """Write the first `count` texts of a source.

    The same arguments give the same texts, and texts within one list are distinct; only "words"
    goes round again once every word was spoken.  ValueError names what is wrong: an unknown source,
    or a source that has fewer distinct texts than asked for.
    """
    if source not in TEXT_SOURCES:
        raise ValueError(f"unknown text source {source!r}; known: {', '.join(TEXT_SOURCES)}")
    drawn = list(islice(TEXT_SOURCES[source](split, seed), count))
    if len(drawn) < count:
        raise ValueError(f"only {len(drawn)} distinct texts of {source!r}, not {count}")
    label = f"{split}-{_SINGULAR[source]}"
    return [Text(f"{label}-{index:06d}", text, source, story) for index, (text, story) in enumerate(drawn)]


_SINGULAR: Final = {
    "stories": "story",
    "sentences": "sentence",
    "phrases": "phrase",
    "words": "word",
}


def draw_contrast(rng: random.Random, split: Split, phenomenon: str) -> tuple[str, str]:
    """Draw a grammatical sentence of `split` and its ungrammatical twin.

    The sentence itself decides the split, so none that is trained on is asked about later.
    """
    while True:
        frames = rng.choice(CONTRASTS[phenomenon])
        facts, wording = draw_facts(rng), draw_wording(rng)
        good, bad = (render(frame, facts, wording) for frame in frames)
        if split_of(good) == split:
            return good, bad


def _distinct(
    source: str, split: Split, seed: int, draw: Callable[[random.Random], _Drawn]
) -> Iterator[_Drawn]:
    """Draw item after item, each from its own seed, leaving out texts that were drawn before."""
    seen: set[str] = set()
    for index in count():
        rng = random.Random(f"{source}-{split}-{seed}-{index}")
        for _ in range(GIVE_UP_AFTER):
            item = draw(rng)
            if item[0] not in seen:
                break
        else:
            return
        seen.add(item[0])
        yield item
