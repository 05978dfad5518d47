import json
import random
from collections import Counter
from pathlib import Path

import pytest

from slam.errors import InputError
from slam.pair_layouts import Candidate
from slam.story_pairs import story_pairs

NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jo")
ENDINGS = ("went home at last.", "sat under a tall tree.", "ate all of the bread.", "saw nobody in there.")


def story(name: str, ending: str, more: str = "") -> str:
    before = f"Once there was {name}. The child had a ball.\n\nThe ball was red. One day {name} lost it."
    return f"{before} Then {name} {ending} {more}".strip()


def write(path: Path, stories: list[str]) -> Path:
    path.write_text("".join(json.dumps({"story": one, "text": one}) + "\n" for one in stories))
    return path


def many(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [story(draw.choice(NAMES), f"{draw.choice(ENDINGS)[:-1]} {n} times.") for n in range(count)]


def pairs(path: Path, seed: int = 0, column: str = "story") -> list[Candidate]:
    return [found for *_, found in story_pairs([path], column, seed) if isinstance(found, Candidate)]


def test_a_story_goes_on_as_it_does_or_as_another_does(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [story("Ann", "went home early."), story("Bob", "sat there alone.")])
    one, other = pairs(path)
    assert (
        one.prompt.text == "Once there was Ann. The child had a ball. The ball was red. One day Ann lost it."
    )
    assert (one.chosen.text, one.rejected.text) == ("Then Ann went home early.", "Then Bob sat there alone.")
    assert (other.chosen, other.rejected) == (one.rejected, one.chosen)
    assert one.cluster == other.cluster
    assert (one.story, other.story) == ("a.jsonl:1", "a.jsonl:2")


def test_every_ending_is_right_once_and_wrong_once_so_endings_alone_tell_nothing(tmp_path: Path) -> None:
    found = pairs(write(tmp_path / "a.jsonl", many(80)))
    assert len(found) > 60
    assert Counter(pair.chosen.text for pair in found) == Counter(pair.rejected.text for pair in found)
    couples = Counter(pair.cluster for pair in found)
    assert set(couples.values()) == {2}
    for pair in found:
        assert abs(len(pair.chosen.text) - len(pair.rejected.text)) <= 3
        named = {name for name in NAMES if name in pair.prompt.text}
        assert not any(name in pair.rejected.text for name in named)


def test_the_seed_decides_which_stories_meet(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", many(40))
    assert pairs(path) == pairs(path)
    assert [pair.rejected for pair in pairs(path)] != [pair.rejected for pair in pairs(path, seed=1)]


def test_a_stretch_that_cuts_speech_is_passed_over_and_its_sentence_goes_on_behind_it(tmp_path: Path) -> None:
    told = '"Come here. Come now!" said Ann to him. '
    told += 'They ran. "Hide!" said Ann. It rained a lot. All got very wet. '
    path = write(
        tmp_path / "a.jsonl", [told + "It rained for days and on.", story("Bob", "sat alone there.")]
    )
    one = pairs(path)[0]
    assert one.prompt.text == 'They ran. "Hide!" said Ann. It rained a lot. All got very wet.'
    assert one.chosen.text == "It rained for days and on."


def test_stories_without_a_pair_say_why(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", ["Too short. It is.", story("Ann", "went home."), story("Ann", "sat up.")]
    )
    assert [(line, why) for _, line, why in story_pairs([path], "story", 0)] == [
        (1, "unfit_story"),
        (2, "without_partner"),  # both are of Ann
        (3, "without_partner"),
    ]


def test_stories_are_lines_or_the_column_that_is_named(tmp_path: Path) -> None:
    stories = [" ".join(one.split()) for one in many(20)]
    rows, lines = write(tmp_path / "a.jsonl", stories), tmp_path / "a.txt"
    lines.write_text("\n\n".join(stories))
    texts = [[(pair.prompt.text, pair.rejected.text) for pair in pairs(path, column="text")]
             for path in (rows, lines)]  # fmt: skip
    assert texts[0] == texts[1] != []
    with pytest.raises(InputError, match=r'a\.jsonl:1: has no "tale"'):
        pairs(rows, column="tale")
