"""Pairs with a right and a wrong side: (source, count, split, seed) -> a list of `TextPair`.

In: the name of a source, how many, and optionally which kinds.  Out: pairs whose wrong side is
wrong for one stated reason.  The sides are alike in everything else: as often longer as shorter,
and each word as often right as wrong, so that only what the pair is about tells them apart.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Final

from slam.stories.contradictions import CONTRADICTION_KINDS, draw_contradicted
from slam.stories.contrasts import CONTRASTS
from slam.stories.grammar import Split, Story, draw_story
from slam.stories.nonwords import askable_words, nonwords_of
from slam.stories.texts import GIVE_UP_AFTER, draw_contrast

PHENOMENA: Final[tuple[str, ...]] = tuple(CONTRASTS)


@dataclass(frozen=True)
class TextPair:
    """A right and a wrong utterance after the same prompt, which may be empty.

    `kind` groups pairs (the kind of contradiction, or the phenomenon); `reason` says in one line
    why `rejected` is wrong; `story` is the key of the story the prompt tells, or None.
    """

    id: str
    source: str
    kind: str
    prompt: str
    chosen: str
    rejected: str
    reason: str
    story: str | None


@dataclass(frozen=True)
class _Drawn:
    kind: str
    prompt: str
    chosen: str
    rejected: str
    reason: str
    story: str | None = None


PairWriter = Callable[[str, Split, int, Sequence[str]], Iterator[_Drawn]]


def _contradictions(source: str, split: Split, seed: int, kinds: Sequence[str]) -> Iterator[_Drawn]:
    def draw(rng: random.Random, kind: str) -> _Drawn:
        story, wrong = draw_contradicted(rng, split, kind)
        return _Drawn(kind, story.prompt, story.last, wrong.text, wrong.reason, story.key)

    return _distinct(source, split, seed, kinds, draw)


def _topics(source: str, split: Split, seed: int, kinds: Sequence[str]) -> Iterator[_Drawn]:
    def draw(rng: random.Random, kind: str) -> _Drawn:
        story, other = draw_story(rng, split), draw_story(rng, split)
        while not _is_elsewhere(story, other):
            # both anew: to keep one would make some endings likelier on its side than on the other
            story, other = draw_story(rng, split), draw_story(rng, split)
        reason = f"it ends another story, about {other.facts.hero} and not {story.facts.hero}"
        return _Drawn(kind, story.prompt, story.last, other.last, reason, story.key)

    return _distinct(source, split, seed, kinds, draw)


def _is_elsewhere(story: Story, other: Story) -> bool:
    """Whether two stories share no name, place, animal, helper or object, and end equally long."""
    ours, theirs = story.facts, other.facts
    return (
        not {ours.hero, ours.friend} & {theirs.hero, theirs.friend}
        and ours.place != theirs.place
        and ours.object != theirs.object
        and ours.animal != theirs.animal
        and ours.helper != theirs.helper
        and len(story.last.split()) == len(other.last.split())
    )


def _grammar(source: str, split: Split, seed: int, kinds: Sequence[str]) -> Iterator[_Drawn]:
    def draw(rng: random.Random, kind: str) -> _Drawn:
        good, bad = draw_contrast(rng, split, kind)
        return _Drawn(kind, "", good, bad, f"the {kind} is wrong in {bad!r}")

    return _distinct(source, split, seed, kinds, draw)


def _nonwords(source: str, split: Split, seed: int, kinds: Sequence[str]) -> Iterator[_Drawn]:
    """Go round the held-out words, each time with the next non-word of each."""
    words = list(askable_words())
    random.Random(f"{source}-{split}-{seed}").shuffle(words)
    choices: dict[str, list[str]] = {}
    for word in words:
        choices[word] = [c for c in nonwords_of(word) if _split_of_nonword(c) == split]
        random.Random(f"{source}-{split}-{seed}-{word}").shuffle(choices[word])
    seen: set[str] = set()
    for lap in range(max(len(found) for found in choices.values())):
        for word in words:
            if lap < len(choices[word]) and choices[word][lap] not in seen:
                wrong = choices[word][lap]
                seen.add(wrong)
                yield _Drawn(kinds[0], "", word, wrong, f"{wrong!r} is not an English word")


def _split_of_nonword(candidate: str) -> Split:
    """Half of the non-words are for evaluation; no non-word stands in two splits."""
    splits: tuple[Split, ...] = ("evaluation",) * 3 + ("train", "validation", "preferences")
    digest = hashlib.sha256(f"nonword {candidate}".encode()).digest()
    return splits[int.from_bytes(digest[:8], "big") % len(splits)]


PAIR_SOURCES: Final[dict[str, PairWriter]] = {
    "preferences": _contradictions,
    "swuggy": _nonwords,
    "sblimp": _grammar,
    "storycloze": _contradictions,
    "topic-storycloze": _topics,
}
# The kinds that each source can be restricted to.
PAIR_KINDS: Final[dict[str, tuple[str, ...]]] = {
    "preferences": CONTRADICTION_KINDS,
    "swuggy": ("in-context",),
    "sblimp": PHENOMENA,
    "storycloze": CONTRADICTION_KINDS,
    "topic-storycloze": ("topic",),
}


def write_pairs(
    source: str, count: int, *, split: Split, seed: int, kinds: Sequence[str] = ()
) -> list[TextPair]:
    """Write the first `count` pairs of a source, going round its kinds (`kinds`, or all of them).

    The same arguments give the same pairs, all distinct.  ValueError names what is wrong: an
    unknown source or kind, or a source that has fewer distinct pairs than asked for.
    """
    if source not in PAIR_SOURCES:
        raise ValueError(f"unknown pair source {source!r}; known: {', '.join(PAIR_SOURCES)}")
    known = PAIR_KINDS[source]
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise ValueError(f"unknown kind {unknown[0]!r} of {source!r}; known: {', '.join(known)}")
    chosen_kinds = tuple(dict.fromkeys(kinds)) or known
    drawn = list(islice(PAIR_SOURCES[source](source, split, seed, chosen_kinds), count))
    if len(drawn) < count:
        raise ValueError(f"only {len(drawn)} distinct pairs of {source!r}, not {count}")
    return [
        TextPair(
            id=f"{split}-{source}-{index:06d}",
            source=source,
            kind=pair.kind,
            prompt=pair.prompt,
            chosen=pair.chosen,
            rejected=pair.rejected,
            reason=pair.reason,
            story=pair.story,
        )
        for index, pair in enumerate(drawn)
    ]


def _distinct(
    source: str,
    split: Split,
    seed: int,
    kinds: Sequence[str],
    draw: Callable[[random.Random, str], _Drawn],
) -> Iterator[_Drawn]:
    """Draw pair after pair, each from its own seed, leaving out pairs that were drawn before."""
    seen: set[tuple[str, str, str]] = set()
    for index in count():
        rng = random.Random(f"{source}-{split}-{seed}-{index}")
        for _ in range(GIVE_UP_AFTER):
            pair = draw(rng, kinds[index % len(kinds)])
            key = (pair.prompt, pair.chosen, pair.rejected)
            if key not in seen:
                break
        else:
            return
        seen.add(key)
        yield pair
