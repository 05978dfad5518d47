"""Story templates: families of stories with their beats and endings.

In: nothing.  Out: `FAMILIES`, how stories are told.  A slot such as `{place}` is filled from the
facts of a story.  Endings use only slots of the family's `key`, and each key slot stands in every
variant of at least one beat: so whatever an ending says can be checked against the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Family:
    """A kind of story: the facts it tells, its beats in order, and how it may end."""

    name: str
    key: tuple[str, ...]
    beats: tuple[tuple[str, ...], ...]
    endings: tuple[str, ...]


_ARRIVE: Final = (
    "One {time} {hero} {went} to the {place}.",
    "{hero} {went} to the {place} that {time}.",
    "{hero} {went} to the {place} one {time}.",
)

# In the order in which they are told most often.
FAMILIES: Final = (
    Family(
        "treasure",
        ("hero", "animal", "place", "object", "colour"),
        (
            _ARRIVE,
            (
                "{in_place} {hero} {found} a {colour} {object}.",
                "{hero} {found} a {colour} {object} {in_place}.",
            ),
            (
                "A {trait} {animal} wanted the {colour} {object}.",
                "A {trait} {animal} came to see the {object}.",
                "{hero} showed the {object} to a {trait} {animal}.",
            ),
            (
                "The {animal} {liked} the {colour} {object}.",
                "{hero} let the {animal} hold the {object}.",
                "{hero} and the {animal} played with the {object}.",
                "The {animal} {liked} the {object} and {hero} smiled.",
            ),
        ),
        (
            "{hero} took the {colour} {object} home from the {place}.",
            "{hero} kept the {colour} {object} from the {place}.",
            "{hero} and the {animal} left with the {object}.",
            "{hero} hid the {colour} {object} from the {animal}.",
            "The {animal} dropped the {colour} {object} {in_place}.",
        ),
    ),
    Family(
        "rescue",
        ("hero", "animal", "place", "object"),
        (
            (
                "{hero} lost a {colour} {object} {in_place}.",
                "{hero} dropped a {colour} {object} {in_place}.",
            ),
            (
                "{hero} looked for the {object} all day.",
                "{he} searched the {place} for the {object}.",
            ),
            (
                "A {trait} {animal} {in_place} helped {hero}.",
                "A {trait} {animal} came to help {hero}.",
            ),
            (
                "The {animal} found the {object} under some leaves.",
                "The {animal} found the {object} behind a rock.",
                "The {animal} pulled the {object} out of the mud.",
            ),
        ),
        (
            "The {animal} gave the {object} back to {hero}.",
            "{hero} thanked the {animal} for the {object}.",
            "{hero} took the {object} home from the {place}.",
            "The {animal} and {hero} left the {place} together.",
        ),
    ),
    Family(
        "gift",
        ("hero", "friend", "place", "object", "colour"),
        (
            (
                "{hero} met {friend} {in_place} one {time}.",
                "One {time} {hero} visited {friend} {in_place}.",
            ),
            (
                "{hero} had a {colour} {object}.",
                "{hero} bought a {colour} {object} {in_place}.",
            ),
            (
                "{hero} gave the {colour} {object} to {friend}.",
                "{hero} handed {friend} the {colour} {object}.",
            ),
            (
                "{friend} liked the gift from {hero}.",
                "The {object} was the best gift for {friend}.",
                "{friend} hugged {hero} for the {object}.",
            ),
        ),
        (
            "{friend} got the {colour} {object} from {hero}.",
            "{friend} thanked {hero} for the {colour} {object}.",
            "{friend} took the {colour} {object} home from the {place}.",
            "So {hero} gave {friend} a {colour} {object}.",
        ),
    ),
    Family(
        "counting",
        ("hero", "animal", "place", "object", "count"),
        (
            _ARRIVE,
            (
                "{hero} {found} {count} {objects} {in_place}.",
                "There were {count} {objects} {in_place}.",
            ),
            (
                "A {trait} {animal} looked at the {count} {objects}.",
                "A {trait} {animal} wanted the {count} {objects}.",
            ),
            (
                "{hero} cleaned the {count} {objects}.",
                "The {animal} {liked} the {count} {objects}.",
                "The {objects} were heavy but {hero} was strong.",
                "{hero} put the {objects} in a row.",
            ),
        ),
        (
            "{hero} left the {place} with {count} {objects}.",
            "{hero} carried the {count} {objects} home.",
            "The {animal} gave {hero} the {count} {objects}.",
            "{hero} and the {animal} shared {count} {objects}.",
        ),
    ),
    Family(
        "stray",
        ("hero", "animal", "place", "food", "colour"),
        (
            (
                "{hero} {met} a {colour} {animal} {in_place}.",
                "A {colour} {animal} lived {in_place}.",
            ),
            (
                "The {colour} {animal} was cold and lonely.",
                "The {colour} {animal} was lost and hungry.",
            ),
            (
                "{hero} gave the {animal} some {food}.",
                "{hero} {cooked} some {food} for the {animal}.",
            ),
            (
                "The {animal} ate the {food} {slowly}.",
                "The {animal} liked {hero} and the {food}.",
                "{hero} stroked the {animal} and {he} laughed.",
            ),
        ),
        (
            "Then the {colour} {animal} {rested} {in_place}.",
            "{hero} visited the {colour} {animal} {in_place} again.",
            "The {animal} thanked {hero} for the {food}.",
            "The {colour} {animal} ate all the {food}.",
        ),
    ),
    Family(
        "herd",
        ("hero", "animal", "place", "count", "food"),
        (
            (
                "{hero} {met} {count} {trait} {animals} {in_place}.",
                "There were {count} {trait} {animals} {in_place}.",
            ),
            (
                "The {count} {animals} were hungry and thirsty.",
                "The {count} {animals} were looking for food.",
            ),
            (
                "{hero} gave some {food} to the {animals}.",
                "{hero} brought the {animals} some {food}.",
            ),
            ("The {animals} ate the {food} {in_place}.", "The {animals} {liked} the {food}."),
        ),
        (
            "The {count} {animals} slept after the {food}.",
            "{hero} fed {count} {animals} {in_place}.",
            "{hero} said goodbye to the {count} {animals}.",
            "The {count} {animals} thanked {hero} for the {food}.",
        ),
    ),
    Family(
        "helper",
        ("hero", "helper", "place", "object"),
        (
            (
                "One {time} {hero} met a {helper} {in_place}.",
                "{hero} visited a {trait} {helper} {in_place}.",
            ),
            (
                "The {helper} needed a {colour} {object}.",
                "The {helper} was looking for a {object}.",
            ),
            (
                "{hero} found the {object} for the {helper}.",
                "{hero} brought the {helper} a {object}.",
            ),
            (
                "The {helper} used the {object} {in_place}.",
                "The {helper} was pleased with the {object}.",
                "{hero} and the {helper} shook hands {in_place}.",
            ),
        ),
        (
            "The {helper} thanked {hero} for the {object}.",
            "{hero} said goodbye to the {helper} {in_place}.",
            "The {helper} kept the {object} {in_place}.",
            "{hero} was a good friend to the {helper}.",
        ),
    ),
    Family(
        "meal",
        ("hero", "friend", "place", "food", "object"),
        (
            (
                "{hero} met {friend} {in_place} one {time}.",
                "One {time} {hero} invited {friend} to the {place}.",
            ),
            (
                "{hero} {cooked} some {food} for {friend}.",
                "{hero} {cooked} plenty of {food} {in_place}.",
            ),
            (
                "{friend} put a {object} beside the {food}.",
                "There was a {object} beside the {food}.",
            ),
            (
                "{friend} tasted the {food} and smiled.",
                "They shared the {food} {in_place}.",
                "{hero} and {friend} ate the {food}.",
            ),
        ),
        (
            "{friend} thanked {hero} for the {food}.",
            "{hero} and {friend} finished the {food} {in_place}.",
            "{hero} left the {object} {in_place}.",
            "{hero} ate the last of the {food}.",
        ),
    ),
    Family(
        "weather",
        ("hero", "place", "object", "weather", "colour"),
        (
            (
                "It was a {weather} day {in_place}.",
                "The day was {weather} {in_place}.",
            ),
            (
                "{hero} {went} there with a {colour} {object}.",
                "{hero} took a {colour} {object} to the {place}.",
            ),
            (
                "{hero} {enjoyed} the {weather} day.",
                "{hero} sang about the {weather} day.",
            ),
            (
                "{hero} played with the {colour} {object} {in_place}.",
                "{hero} dropped the {object} but {he} found it.",
                "{he} put the {colour} {object} on the ground.",
            ),
        ),
        (
            "{hero} {enjoyed} the {weather} day {in_place}.",
            "The {weather} day {in_place} was over.",
            "{hero} carried the {colour} {object} through the {weather} day.",
            "{hero} left the {place} with the {colour} {object}.",
        ),
    ),
    Family(
        "mood",
        ("hero", "animal", "place", "object", "feeling", "cause"),
        (
            _ARRIVE,
            (
                "{hero} had a {object} and a {animal}.",
                "{hero} brought a {object} and a {animal}.",
                "With {hero} were a {object} and a {animal}.",
            ),
            ("{in_place} {cause}.", "That day {cause}."),
            (
                "{hero} felt very {feeling} {in_place}.",
                "{in_place} {hero} felt very {feeling}.",
                "Soon {hero} felt {feeling} {in_place}.",
            ),
        ),
        (
            "{hero} was {feeling} because {cause}.",
            "{hero} felt {feeling} because {cause}.",
            "{hero} told everyone that {cause}.",
            "{hero} was {feeling} all the way home.",
            "{hero} left the {place} and still felt {feeling}.",
        ),
    ),
    Family(
        "ride",
        ("hero", "vehicle", "place", "animal"),
        (
            (
                "One {time} {hero} came to the {place} by {vehicle}.",
                "{hero} traveled to the {place} by {vehicle}.",
            ),
            (
                "The {vehicle} was {colour} and very fast.",
                "The {vehicle} stopped near the {place}.",
                "{hero} was a careful {vehicle} driver.",
            ),
            (
                "A {trait} {animal} met {hero} {in_place}.",
                "{hero} {met} a {trait} {animal} {in_place}.",
            ),
            (
                "{hero} showed the {vehicle} to the {animal}.",
                "The {animal} {liked} the {vehicle}.",
                "The {animal} climbed into the {vehicle}.",
            ),
        ),
        (
            "{hero} left the {place} by {vehicle}.",
            "{hero} and the {animal} went home by {vehicle}.",
            "The {animal} loved the {vehicle} and the {place}.",
            "{hero} waved to the {animal} from the {vehicle}.",
        ),
    ),
    Family(
        "chores",
        ("hero", "friend", "place", "first", "second"),
        (
            (
                "{hero} and {friend} {went} to the {place}.",
                "One {time} {hero} took {friend} to the {place}.",
            ),
            ("First {hero} {first}.", "{hero} {first} first.", "To begin with {hero} {first}."),
            ("After that {hero} {second}.", "Then {hero} {second}.", "Later {hero} {second}."),
            (
                "{friend} watched {hero} {in_place}.",
                "{friend} helped {hero} {in_place}.",
                "{friend} waited for {hero} {in_place}.",
            ),
        ),
        (
            "{hero} {first} before {he} {second}.",
            "{hero} {second} after {he} {first}.",
            "{hero} {first} and then {second}.",
            "In the end {hero} and {friend} left the {place}.",
        ),
    ),
)

# Said of any place after the first beat of some stories, so that the place is named once more.
INTERLUDES: Final = (
    "{hero} knew the {place} well.",
    "{hero} loved the {place}.",
    "The {place} was beautiful.",
    "The {place} looked wonderful.",
)
