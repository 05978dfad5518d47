"""Word pools of the story grammar: category -> the words that may fill it.

In: nothing.  Out: tuples of words, one pool per kind of fact.  The pools are kept apart from the
grammar because a contradiction is made by exchanging one word for another *of the same pool*, each
word equally likely on the right and on the wrong side; so every word of a pool must fit every frame
that names the pool.  Words within a pool were chosen to sound clearly different from each other.
"""

from __future__ import annotations

from typing import Final


def _pool(words: str) -> tuple[str, ...]:
    return tuple(words.split())


GIRLS: Final = _pool("Anna Bridget Clara Edith Fiona Harriet Julia Naomi Rosa Wendy")
BOYS: Final = _pool("Boris Carlos David George Kevin Oscar Patrick Thomas Victor Hugo")
ANIMALS: Final = _pool(
    "kitten horse rabbit monkey elephant pigeon lizard penguin camel wolf squirrel hedgehog parrot dragon"
)
HELPERS: Final = _pool("baker doctor farmer sailor princess wizard gardener pilot")
# Each place with the preposition that English wants before it.
PLACE_PREPOSITIONS: Final = {
    **dict.fromkeys(
        _pool("garden castle library hospital factory temple village orchard jungle harbor"), "in"
    ),
    **dict.fromkeys(_pool("market station"), "at"),
    **dict.fromkeys(_pool("island mountain"), "on"),
}
PLACES: Final = tuple(PLACE_PREPOSITIONS)
OBJECTS: Final = _pool(
    "basket blanket hammer candle mirror umbrella trumpet rocket puppet necklace feather "
    "wagon pencil helmet violin ladder compass drum"
)
COLOURS: Final = _pool("red yellow purple brown silver golden orange")
NUMBERS: Final = _pool("two three five seven nine twelve")
FOODS: Final = _pool("soup bread honey pudding noodles apples peanuts cherries bananas lettuce")
WEATHERS: Final = _pool("rainy sunny windy snowy foggy")
VEHICLES: Final = _pool("tractor bicycle ferry helicopter carriage submarine")
TRAITS: Final = _pool("tiny huge gentle funny lazy polite young wild strange lovely")

# Feelings come in groups of equal size (so that a wrong feeling, always of another group, is as
# often one word as any other); the causes of a group all explain any of its feelings and all have
# the same number of words (so that a wrong cause cannot be told by its length).
FEELING_CAUSES: Final[dict[tuple[str, ...], tuple[str, ...]]] = {
    ("upset", "gloomy"): (
        "the {object} was lost",
        "the {object} was broken",
        "the {object} was stolen",
        "the {animal} was sick",
    ),
    ("angry", "furious"): (
        "the {animal} took the {object}",
        "the {animal} hid the {object}",
        "the {animal} kicked the {object}",
    ),
    ("happy", "cheerful"): (
        "the {animal} found the {object}",
        "the {animal} saved the {object}",
        "the {animal} fetched the {object}",
        "the {animal} carried the {object}",
    ),
    ("nervous", "frightened"): (
        "it was very dark",
        "it was very noisy",
        "it was very crowded",
        "it was very slippery",
    ),
    ("tired", "hungry"): (
        "{he} walked for hours",
        "{he} danced for hours",
        "{he} climbed for hours",
        "{he} jumped for hours",
    ),
    ("proud", "clever"): (
        "{he} mended the {object}",
        "{he} painted the {object}",
        "{he} polished the {object}",
        "{he} decorated the {object}",
    ),
    ("amazed", "curious"): (
        "the {animal} could talk",
        "the {animal} could sing",
        "the {animal} could juggle",
        "the {animal} could whisper",
    ),
}
FEELINGS: Final = tuple(feeling for group in FEELING_CAUSES for feeling in group)

# Things done: a verb and what it was done to.  None of them names a word of another pool.
_DEEDS: Final = (
    "swept floor, baked cake, planted seeds, picked flowers, finished book, sang song, folded "
    "towels, wrote letter, opened gate, chopped wood, washed dishes, solved puzzle, counted coins, "
    "locked door, played game, wrapped present"
)
ACTIVITIES: Final = tuple(deed.replace(" ", " the ") for deed in _DEEDS.split(", "))

# Wording that carries no fact: it varies the sentences and may not be contradicted.
WORDINGS: Final[dict[str, tuple[str, ...]]] = {
    "time": ("morning", "afternoon", "summer", "winter"),
    "went": ("went", "walked", "hurried", "traveled"),
    "found": ("found", "noticed", "discovered"),
    "met": ("met", "saw", "followed"),
    "liked": ("liked", "loved", "admired", "touched"),
    "cooked": ("brought", "bought", "prepared"),
    "enjoyed": ("enjoyed", "remembered"),
    "rested": ("slept", "rested", "waited"),
    "slowly": ("slowly", "quickly", "happily"),
}  # fmt: skip

IRREGULAR_PLURALS: Final = {"mouse": "mice", "wolf": "wolves"}


def plural(noun: str) -> str:
    """Give the plural of a noun of this lexicon."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def cause_options(feeling: str) -> tuple[str, ...]:
    """List the cause templates that explain `feeling`."""
    for group, causes in FEELING_CAUSES.items():
        if feeling in group:
            return causes
    raise ValueError(f"unknown feeling {feeling!r}; known: {', '.join(FEELINGS)}")


def other_feelings(feeling: str) -> tuple[str, ...]:
    """Every feeling that is not close in meaning to `feeling`."""
    return tuple(f for group in FEELING_CAUSES if feeling not in group for f in group)
