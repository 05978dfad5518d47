"""Templates of single sentences and phrases: grammatical contrasts and fragments.

In: nothing.  Out: `CONTRASTS` (a grammatical template beside its ungrammatical twin, per
phenomenon) and `PHRASES`.  Slots are filled from the same facts as those of stories.
Training hears the grammatical side of the same templates, with other words in them.
"""

from __future__ import annotations

from typing import Final

# Each contrast has its mirror (singular and plural, she and he) or keeps the same words: so neither
# the length of a sentence nor how common its words are tells which side is grammatical.  No frame
# here is also a frame of a story, so that a sentence's own split is the only one it is written for.
CONTRASTS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "subject-verb agreement": (
        ("The {trait} {animal} is {in_place}.", "The {trait} {animal} are {in_place}."),
        ("The {trait} {animals} are {in_place}.", "The {trait} {animals} is {in_place}."),
        ("The {colour} {object} was {in_place}.", "The {colour} {object} were {in_place}."),
        ("The {colour} {objects} were {in_place}.", "The {colour} {objects} was {in_place}."),
        ("The {helper} has a {colour} {object}.", "The {helper} have a {colour} {object}."),
        ("The {helpers} have a {colour} {object}.", "The {helpers} has a {colour} {object}."),
        ("The {trait} {animal} likes the {food}.", "The {trait} {animal} like the {food}."),
        ("The {trait} {animals} like the {food}.", "The {trait} {animals} likes the {food}."),
        ("{hero} was {feeling} {in_place}.", "{hero} were {feeling} {in_place}."),
        ("{hero} and {friend} were {feeling}.", "{hero} and {friend} was {feeling}."),
    ),
    "determiner-noun agreement": (
        ("{hero} {met} this {trait} {animal}.", "{hero} {met} these {trait} {animal}."),
        ("{hero} {met} these {trait} {animals}.", "{hero} {met} this {trait} {animals}."),
        ("{hero} {found} that {colour} {object}.", "{hero} {found} those {colour} {object}."),
        ("{hero} {found} those {colour} {objects}.", "{hero} {found} that {colour} {objects}."),
        ("{hero} {found} a {object} {in_place}.", "{hero} {found} a {objects} {in_place}."),
        (
            "{hero} {found} {count} {colour} {objects}.",
            "{hero} {found} {count} {colour} {object}.",
        ),
        (
            "There was one {colour} {animal} {in_place}.",
            "There was one {colour} {animals} {in_place}.",
        ),
        (
            "There were {count} {colour} {animals} {in_place}.",
            "There were {count} {colour} {animal} {in_place}.",
        ),
    ),
    "reflexive agreement": (
        ("{hero} saw {himself} {in_place}.", "{hero} saw {not_himself} {in_place}."),
        ("{hero} hurt {himself} {in_place}.", "{hero} hurt {not_himself} {in_place}."),
        (
            "{hero} bought {himself} a {colour} {object}.",
            "{hero} bought {not_himself} a {colour} {object}.",
        ),
        ("{hero} bought {himself} some {food}.", "{hero} bought {not_himself} some {food}."),
    ),
    "adjective order": (
        ("The {colour} {object} was {in_place}.", "The {object} {colour} was {in_place}."),
        ("{hero} {met} a {trait} {animal}.", "{hero} {met} a {animal} {trait}."),
        ("The {trait} {helper} {went} home.", "The {helper} {trait} {went} home."),
        ("{hero} {found} the {colour} {object}.", "{hero} {found} the {object} {colour}."),
        (
            "{hero} liked the {weather} day {in_place}.",
            "{hero} liked the day {weather} {in_place}.",
        ),
    ),
    "word order": (
        ("{hero} {found} the {object} {in_place}.", "{hero} the {object} {found} {in_place}."),
        ("The {animal} ate the {food} {in_place}.", "The {animal} the {food} ate {in_place}."),
        ("{hero} was very {feeling} {in_place}.", "{hero} very was {feeling} {in_place}."),
        ("{hero} gave some {food} to {friend}.", "{hero} some {food} gave to {friend}."),
        ("The {helper} {liked} the {object}.", "{liked} the {helper} the {object}."),
    ),
    "preposition order": (
        (
            "{hero} met {friend} {preposition} the {place}.",
            "{hero} met {friend} the {preposition} {place}.",
        ),
        ("{hero} {went} to the {place}.", "{hero} {went} the to {place}."),
        ("{hero} played with the {animal}.", "{hero} played the with {animal}."),
        (
            "The {animal} {rested} {preposition} the {place}.",
            "The {animal} {rested} the {preposition} {place}.",
        ),
        ("{hero} came home by {vehicle}.", "{hero} came home {vehicle} by."),
        (
            "The {helper} thanked {hero} for the {food}.",
            "The {helper} thanked {hero} the for {food}.",
        ),
    ),
}

PHRASES: Final = (
    "the {colour} {object}",
    "a {colour} {object}",
    "the {object}",
    "{count} {colour} {objects}",
    "{in_place}",
    "to the {place}",
    "the {trait} {animal}",
    "a {trait} {animal}",
    "{count} {trait} {animals}",
    "{hero} {went}",
    "{hero} was {feeling}",
    "very {feeling}",
    "some {food}",
    "the {food}",
    "by {vehicle}",
    "the {colour} {vehicle}",
    "a {trait} {helper}",
    "the {helper}",
    "{count} {helpers}",
    "{first}",
    "a {weather} day",
    "one {time}",
    "{hero} and {friend}",
    "{hero} saw {himself}",
    "these {animals}",
    "this {animal}",
)
