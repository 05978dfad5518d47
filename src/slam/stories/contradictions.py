"""False endings: a story and a kind of fact -> its ending with that one fact made false.

In: a `Story`.  Out: a `Contradiction`, the false ending and the plain reason why it is false.  The
rest of the ending stays as it was, so that nothing but the story can tell the two apart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from slam.stories import lexicon
from slam.stories.frames import FAMILIES, Family
from slam.stories.grammar import (
    Endings,
    Facts,
    Split,
    Story,
    draw_story,
    gender_of,
    render,
    words_of,
)

CONTRADICTION_KINDS: Final[tuple[str, ...]] = (
    "agent",
    "place",
    "object",
    "cause",
    "feeling",
    "order",
    "number",
    "animal",
    "colour",
    "food",
    "weather",
    "vehicle",
    "helper",
    "role",
)
# The kinds that exchange one word for another of its pool: kind -> slots that show the fact.
_POOL_SLOTS: Final[dict[str, tuple[str, ...]]] = {
    "place": ("{place}", "{in_place}"),
    "object": ("{object}", "{objects}"),
    "number": ("{count}",),
    "animal": ("{animal}", "{animals}"),
    "colour": ("{colour}",),
    "food": ("{food}",),
    "weather": ("{weather}",),
    "vehicle": ("{vehicle}",),
    "helper": ("{helper}",),
}


@dataclass(frozen=True)
class Contradiction:
    """A false ending and the plain reason why it is false."""

    kind: str
    text: str
    reason: str


def ending_kinds(family: Family, ending: str) -> tuple[str, ...]:
    """List the kinds of contradiction that an ending allows."""
    kinds = [kind for kind, slots in _POOL_SLOTS.items() if any(slot in ending for slot in slots)]
    if "{hero}" in ending or "{friend}" in ending:
        kinds.append("agent")
    if "{cause}" in ending:
        kinds.append("cause")
    if "{feeling}" in ending:
        kinds.append("feeling")
    if "{first}" in ending and "{second}" in ending:
        kinds.append("order")
    both = "{hero}" in ending and "{friend}" in ending and "{hero} and {friend}" not in ending
    if both and family.name in ("gift", "meal"):
        kinds.append("role")
    return tuple(kind for kind in CONTRADICTION_KINDS if kind in kinds)


def _endings_of(kind: str) -> Endings:
    endings = ((f, [e for e in f.endings if kind in ending_kinds(f, e)]) for f in FAMILIES)
    return tuple((family, tuple(found)) for family, found in endings if found)


_ENDINGS: Final = {kind: _endings_of(kind) for kind in CONTRADICTION_KINDS}


def draw_contradicted(rng: random.Random, split: Split, kind: str) -> tuple[Story, Contradiction]:
    """Draw a story of `split` whose ending states a fact of `kind`, and contradict that fact."""
    story = draw_story(rng, split, _ENDINGS[kind])
    return story, contradict(story, kind, rng)


def contradict(story: Story, kind: str, rng: random.Random) -> Contradiction:
    """Make the one fact of `kind` in the story's ending false.

    A new word is drawn uniformly from the pool of the right one, among the words that the prompt
    does not mention, so over many stories each word is as often right as wrong.
    """
    if kind not in ending_kinds(story.family, story.ending):
        raise ValueError(f"the ending {story.last!r} states no fact of kind {kind!r}")
    facts = story.facts
    wrong = _wrong_facts(story, kind, rng)
    text = render(story.ending, wrong, story.wording)
    return Contradiction(kind, text, _reason(kind, facts, wrong))


def _wrong_facts(story: Story, kind: str, rng: random.Random) -> Facts:
    facts = story.facts
    if kind == "order":
        return replace(facts, first=facts.second, second=facts.first)
    if kind == "role":
        gender = gender_of(facts.friend)
        return replace(facts, hero=facts.friend, gender=gender, friend=facts.hero)
    if kind == "agent":
        field = "hero" if "{hero}" in story.ending else "friend"
        # The same gender, so that the pronouns of the ending stay as they are.
        pool = _names_like(getattr(facts, field))
    elif kind == "cause":
        field, pool = "cause", lexicon.cause_options(facts.feeling)
    elif kind == "feeling":
        field, pool = "feeling", lexicon.other_feelings(facts.feeling)
    else:
        field, pool = _field_and_pool(kind)
    told = set(words_of(story.prompt))
    right = getattr(facts, field)
    free = [word for word in pool if word != right and word.lower() not in told]
    return _with_field(facts, field, rng.choice(free))


def _names_like(name: str) -> Sequence[str]:
    return lexicon.GIRLS if gender_of(name) == "girl" else lexicon.BOYS


def _field_and_pool(kind: str) -> tuple[str, Sequence[str]]:
    pools: dict[str, tuple[str, Sequence[str]]] = {
        "place": ("place", lexicon.PLACES),
        "object": ("object", lexicon.OBJECTS),
        "number": ("count", lexicon.NUMBERS),
        "animal": ("animal", lexicon.ANIMALS),
        "colour": ("colour", lexicon.COLOURS),
        "food": ("food", lexicon.FOODS),
        "weather": ("weather", lexicon.WEATHERS),
        "vehicle": ("vehicle", lexicon.VEHICLES),
        "helper": ("helper", lexicon.HELPERS),
    }
    return pools[kind]


def _with_field(facts: Facts, field: str, value: str) -> Facts:
    return Facts(**{**vars(facts), field: value})


def _reason(kind: str, facts: Facts, wrong: Facts) -> str:
    if kind == "agent":
        field = "hero" if facts.hero != wrong.hero else "friend"
        return f"it was {getattr(facts, field)} in the story, not {getattr(wrong, field)}"
    if kind == "order":
        return f"{facts.hero} {facts.first} first and {facts.second} later, not the other way round"
    if kind == "role":
        return (
            f"{facts.hero} was the one who gave and {facts.friend} the one who got, not the other way round"
        )
    if kind == "cause":
        right_cause, wrong_cause = (render(f.cause, f, {}) for f in (facts, wrong))
        return f"what happened is that {right_cause}, not that {wrong_cause}"
    if kind == "feeling":
        return f"{facts.hero} was {facts.feeling}, not {wrong.feeling}"
    field, _ = _field_and_pool(kind)
    right, other = getattr(facts, field), getattr(wrong, field)
    return {
        "place": f"the story happened at the {right}, not at the {other}",
        "object": f"the object was the {right}, not the {other}",
        "number": f"there were {right} of them, not {other}",
        "animal": f"the animal was the {right}, not the {other}",
        "colour": f"the colour was {right}, not {other}",
        "food": f"the food was {right}, not {other}",
        "weather": f"the day was {right}, not {other}",
        "vehicle": f"the vehicle was the {right}, not the {other}",
        "helper": f"the helper was the {right}, not the {other}",
    }[kind]
