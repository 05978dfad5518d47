"""Stories that know their facts: a seeded random source -> `Story` with `Facts`.

In: a `random.Random` and a split.  Out: a story of five sentences, the facts they state and the
key that decides the split.  The same facts render both the true ending and, with one fact
exchanged, the false one; that is what makes the reason of a rejection known rather than guessed.
A key belongs to exactly one split by a stable hash, so no story can stand in two of them.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar, get_args

from slam.stories import lexicon
from slam.stories.contrasts import CONTRASTS, PHRASES
from slam.stories.frames import FAMILIES, INTERLUDES, Family

Split = Literal["train", "validation", "preferences", "evaluation"]
Gender = Literal["girl", "boy"]
_T = TypeVar("_T")

SPLITS: Final[tuple[Split, ...]] = get_args(Split)
# Upper ends of each split's share of the hash, in percent.
_SPLIT_ENDS: Final[tuple[tuple[int, Split], ...]] = (
    (80, "train"),
    (84, "validation"),
    (92, "preferences"),
    (100, "evaluation"),
)
STORY_WORDS: Final = (24, 40)
_NAMES: Final = lexicon.GIRLS + lexicon.BOYS
_INTERLUDE_SHARE: Final = 0.1

_SLOT: Final = re.compile(r"\{(\w+)\}")
_ARTICLE: Final = re.compile(r"\b([Aa])(?= [aeiou])")


@dataclass(frozen=True)
class Facts:
    """What is true in a story; a family of stories tells some of these facts."""

    hero: str
    gender: Gender
    friend: str
    animal: str
    helper: str
    place: str
    object: str
    colour: str
    count: str
    food: str
    weather: str
    vehicle: str
    trait: str
    feeling: str
    cause: str  # a clause template: its own slots are filled from the other facts
    first: str
    second: str


@dataclass(frozen=True)
class Story:
    """A story with its facts, its sentences (the last is the ending) and its split key."""

    key: str
    family: Family
    facts: Facts
    wording: Mapping[str, str]
    beats: tuple[str, ...]
    ending: str

    @property
    def prompt_sentences(self) -> tuple[str, ...]:
        """Every sentence but the last."""
        return tuple(render(beat, self.facts, self.wording) for beat in self.beats)

    @property
    def prompt(self) -> str:
        """Every sentence but the last, joined."""
        return " ".join(self.prompt_sentences)

    @property
    def last(self) -> str:
        """The true ending."""
        return render(self.ending, self.facts, self.wording)

    @property
    def text(self) -> str:
        """The whole story."""
        return f"{self.prompt} {self.last}"


def split_of(key: str) -> Split:
    """Find the one split that a key belongs to."""
    percent = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    return next(split for end, split in _SPLIT_ENDS if percent < end)


def words_of(text: str) -> list[str]:
    """List the words of a text, lower case, without full stops."""
    return text.lower().replace(".", "").split()


def gender_of(name: str) -> Gender:
    """Whether a hero's name is a girl's or a boy's."""
    return "girl" if name in lexicon.GIRLS else "boy"


def render(template: str, facts: Facts, wording: Mapping[str, str]) -> str:
    """Fill a template from facts: articles agree, a sentence starts with a capital."""
    slots = _slots(facts, wording)
    text = template
    while "{" in text:  # a cause is itself a template
        text = _SLOT.sub(lambda match: slots[match[1]], text)
    text = _ARTICLE.sub(r"\1n", text)
    return text[0].upper() + text[1:] if text.endswith(".") else text


def _slots(facts: Facts, wording: Mapping[str, str]) -> dict[str, str]:
    girl = facts.gender == "girl"
    preposition = lexicon.PLACE_PREPOSITIONS[facts.place]
    return {
        **vars(facts),
        **wording,
        "he": "she" if girl else "he",
        "himself": "herself" if girl else "himself",
        "not_himself": "himself" if girl else "herself",
        "preposition": preposition,
        "in_place": f"{preposition} the {facts.place}",
        "objects": lexicon.plural(facts.object),
        "animals": lexicon.plural(facts.animal),
        "helpers": lexicon.plural(facts.helper),
    }


def _pick(rng: random.Random, pool: Sequence[str]) -> str:
    # Three times as fast as `rng.choice`; a story of a rare split is drawn some 25 times over.
    return pool[int(rng.random() * len(pool))]


def _pick_often(rng: random.Random, pool: Sequence[_T]) -> _T:
    """Draw from a pool whose first members are met most: the i-th with weight 1 / i³.

    Ways of telling are skewed as they are in any language, so that a few minutes of training meet the common
    ones often. Facts are never drawn this way: a right value must be no likelier than a wrong one.
    """
    return rng.choices(pool, [1 / (rank + 1) ** 3 for rank in range(len(pool))])[0]


def _pick_two(rng: random.Random, pool: Sequence[str]) -> tuple[str, str]:
    one, two = _pick(rng, pool), _pick(rng, pool)
    return (one, two) if one != two else _pick_two(rng, pool)


def draw_facts(rng: random.Random) -> Facts:
    """Draw every fact, each uniformly from its pool."""
    hero, friend = _pick_two(rng, _NAMES)
    first, second = _pick_two(rng, lexicon.ACTIVITIES)
    feeling = _pick(rng, lexicon.FEELINGS)
    return Facts(
        hero=hero,
        gender=gender_of(hero),
        friend=friend,
        animal=_pick(rng, lexicon.ANIMALS),
        helper=_pick(rng, lexicon.HELPERS),
        place=_pick(rng, lexicon.PLACES),
        object=_pick(rng, lexicon.OBJECTS),
        colour=_pick(rng, lexicon.COLOURS),
        count=_pick(rng, lexicon.NUMBERS),
        food=_pick(rng, lexicon.FOODS),
        weather=_pick(rng, lexicon.WEATHERS),
        vehicle=_pick(rng, lexicon.VEHICLES),
        trait=_pick(rng, lexicon.TRAITS),
        feeling=feeling,
        cause=_pick(rng, lexicon.cause_options(feeling)),
        first=first,
        second=second,
    )


def draw_wording(
    rng: random.Random, pick: Callable[[random.Random, Sequence[str]], str] = _pick
) -> dict[str, str]:
    """Draw the words that carry no fact, each as `pick` draws from its pool."""
    return {slot: pick(rng, choices) for slot, choices in lexicon.WORDINGS.items()}


# Families, each with the endings that a story may be given.
Endings = Sequence[tuple[Family, Sequence[str]]]
_ALL_ENDINGS: Final[Endings] = tuple((family, family.endings) for family in FAMILIES)


def draw_story(
    rng: random.Random, split: Split, options: Endings = _ALL_ENDINGS, *, evenly: bool = False
) -> Story:
    """Draw a story of `split` that ends in one of the endings of `options`.

    Common families and wordings come most often, unless all are drawn `evenly`.
    """
    pick: Callable[[random.Random, Sequence[Any]], Any] = _pick if evenly else _pick_often
    while True:
        # the first families are told most
        family, endings = options[int(len(options) * rng.random() ** (1 if evenly else 3))]
        facts = draw_facts(rng)
        key = "|".join((family.name, *(getattr(facts, field) for field in family.key)))
        if split_of(key) != split:
            continue
        beats = tuple(pick(rng, beat) for beat in family.beats)
        if rng.random() < _INTERLUDE_SHARE:
            beats = (beats[0], rng.choice(INTERLUDES), *beats[1:])
        facts = replace(facts, trait=pick(rng, lexicon.TRAITS))
        story = Story(key, family, facts, draw_wording(rng, pick), beats, pick(rng, endings))
        if STORY_WORDS[0] <= len(story.text.split()) <= STORY_WORDS[1]:
            return story


def sentence_frames() -> tuple[str, ...]:
    """Every distinct sentence template that stories and sentences are made from."""
    told = [frame for family in FAMILIES for beat in (*family.beats, family.endings) for frame in beat]
    contrasts = [good for pairs in CONTRASTS.values() for good, _ in pairs]
    return tuple(dict.fromkeys((*told, *INTERLUDES, *contrasts)))


def frame_words() -> frozenset[str]:
    """Every word that stands in a template itself rather than in a slot."""
    frames = (*sentence_frames(), *PHRASES)
    return frozenset(word for frame in frames for word in words_of(_SLOT.sub(" ", frame)))
