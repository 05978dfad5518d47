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


GIRLS: Final = _pool(
    "Anna Bridget Clara Daisy Edith Fiona Grace Harriet Iris Julia Lucy Maya Naomi Olive Penny "
    "Rosa Sophie Ursula Violet Wendy Yasmin Zoe Heidi Esther"
)
BOYS: Final = _pool(
    "Adam Boris Carlos David Edgar Felix George Henry Jack Kevin Leo Max Nathan Oscar Peter Ralph "
    "Simon Thomas Victor Walter Hugo Patrick Yusuf Frank"
)
ANIMALS: Final = _pool(
    "dog kitten horse rabbit fox owl monkey elephant tiger pigeon turtle lizard penguin camel "
    "panda mouse wolf squirrel hedgehog giraffe parrot beaver spider chicken swan dragon "
    "zebra otter"
)
HELPERS: Final = _pool(
    "baker doctor farmer teacher painter sailor pirate princess wizard soldier dancer singer "
    "gardener captain nurse queen king clown giant shepherd carpenter pilot witch plumber"
)
# Each place with the preposition that English wants before it.
PLACE_PREPOSITIONS: Final = {
    **dict.fromkeys(
        _pool(
            "park barn forest castle library garden village meadow museum hospital bakery tower "
            "desert factory theater temple cabin playground valley orchard swamp jungle "
            "harbor cottage lighthouse"
        ),
        "in",
    ),
    **dict.fromkeys(_pool("market school station airport circus river lake"), "at"),
    **dict.fromkeys(_pool("beach island bridge mountain"), "on"),
}
PLACES: Final = tuple(PLACE_PREPOSITIONS)
OBJECTS: Final = _pool(
    "kite drum lamp basket blanket hammer ribbon candle mirror whistle umbrella trumpet teapot "
    "rocket puppet crown jacket necklace feather magnet wagon shovel pencil balloon spoon pillow "
    "medal camera helmet robot apron violin ladder envelope compass flag guitar hat mug key box "
    "shell"
)
COLOURS: Final = _pool("red blue green yellow orange purple pink brown black white silver golden")
NUMBERS: Final = _pool("two three four five six seven eight nine ten eleven twelve")
FOODS: Final = _pool(
    "soup bread rice cheese honey jam porridge pudding salad noodles carrots apples berries "
    "peanuts pancakes cookies muffins sandwiches cherries bananas grapes butter chocolate "
    "popcorn potatoes onions pumpkin sausages yogurt lettuce"
)
WEATHERS: Final = _pool("rainy sunny windy snowy foggy stormy cloudy frosty")
VEHICLES: Final = _pool(
    "tractor bicycle scooter train taxi ferry canoe truck helicopter carriage bus submarine"
)
TRAITS: Final = _pool(
    "small big tiny huge gentle funny friendly lazy polite playful young old wild silly lovely "
    "strange famous careful"
)

# Feelings come in groups of equal size (so that a wrong feeling, always of another group, is as
# often one word as any other); the causes of a group all explain any of its feelings and all have
# the same number of words (so that a wrong cause cannot be told by its length).
FEELING_CAUSES: Final[dict[tuple[str, ...], tuple[str, ...]]] = {
    ("sad", "upset", "unhappy", "gloomy"): (
        "the {object} was lost",
        "the {object} was broken",
        "the {object} was stolen",
        "the {object} was ruined",
        "the {animal} was missing",
        "the {animal} was sick",
    ),
    ("angry", "cross", "grumpy", "furious"): (
        "the {animal} took the {object}",
        "the {animal} bit the {object}",
        "the {animal} hid the {object}",
        "the {animal} broke the {object}",
        "the {animal} kicked the {object}",
        "the {animal} scratched the {object}",
    ),
    ("happy", "glad", "cheerful", "grateful"): (
        "the {animal} found the {object}",
        "the {animal} saved the {object}",
        "the {animal} fetched the {object}",
        "the {animal} guarded the {object}",
        "the {animal} carried the {object}",
    ),
    ("scared", "nervous", "worried", "frightened"): (
        "it was very dark",
        "it was very late",
        "it was very noisy",
        "it was very quiet",
        "it was very crowded",
        "it was very slippery",
    ),
    ("tired", "sleepy", "hungry", "thirsty"): (
        "{he} walked for hours",
        "{he} danced for hours",
        "{he} climbed for hours",
        "{he} worked for hours",
        "{he} jumped for hours",
        "{he} skated for hours",
    ),
    ("proud", "clever", "useful", "skilful"): (
        "{he} mended the {object}",
        "{he} painted the {object}",
        "{he} polished the {object}",
        "{he} measured the {object}",
        "{he} copied the {object}",
        "{he} decorated the {object}",
    ),
    ("surprised", "amazed", "puzzled", "curious"): (
        "the {animal} could talk",
        "the {animal} could sing",
        "the {animal} could juggle",
        "the {animal} could read",
        "the {animal} could knit",
        "the {animal} could whisper",
    ),
}
FEELINGS: Final = tuple(feeling for group in FEELING_CAUSES for feeling in group)

# Things done: a verb and what it was done to.  None of them names a word of another pool.
_DEEDS: Final = (
    "swept floor, baked cake, sealed jar, planted seeds, picked flowers, finished book, sang "
    "song, built wall, cut grass, folded towels, cleaned window, drew picture, wrote letter, "
    "fixed roof, opened gate, lit fire, chopped wood, made bed, washed dishes, solved puzzle, "
    "sewed curtain, shook rug, stacked bricks, counted coins, trimmed tree, locked door, "
    "moved table, played game, wound clock, mopped stairs, peeled lemons, tied rope, wrapped "
    "present, told joke, filled bottle, emptied pocket, covered chimney, tasted syrup"
)
ACTIVITIES: Final = tuple(deed.replace(" ", " the ") for deed in _DEEDS.split(", "))

# Wording that carries no fact: it varies the sentences and may not be contradicted.
WORDINGS: Final[dict[str, tuple[str, ...]]] = {
    "time": ("morning", "afternoon", "evening", "summer", "winter", "weekend"),
    "went": (
        "went", "walked", "hurried", "traveled", "wandered", "skipped", "marched", "raced",
    ),
    "found": ("found", "saw", "noticed", "discovered", "spotted"),
    "met": ("met", "saw", "greeted", "noticed", "followed"),
    "liked": ("liked", "loved", "admired", "touched", "sniffed", "inspected"),
    "cooked": ("cooked", "brought", "bought", "prepared", "ordered"),
    "enjoyed": ("enjoyed", "loved", "remembered"),
    "rested": ("slept", "rested", "stayed", "waited"),
    "slowly": ("slowly", "quickly", "happily", "neatly", "safely"),
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
