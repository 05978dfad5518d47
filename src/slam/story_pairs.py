"""Stories → pairs for a topic StoryCloze: four sentences, how the story goes on, and how another one does.

Stories are paired by how long their endings are, and exchange them: each ending is right once and wrong once.
So nothing that looks at the ending alone, its length or its words, does better than chance.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slam.errors import InputError
from slam.pair_layouts import Candidate, Part
from slam.run import json_object
from slam.synthesizers.sentences import split_sentences
from slam.text_files import text_lines

Unfit = Literal["unfit_story", "without_partner"]

_PROMPT_SENTENCES = 4
_MOST_PROMPT_WORDS = 100
_ENDING_WORDS = range(4, 31)
_NEAR = 3  # characters by which endings that are exchanged may differ in length
# a capital behind a small letter or a comma: a name, and not the beginning of a sentence
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")


@dataclass(frozen=True)
class _Opening:
    """The first sentences of a story."""

    place: tuple[Path, int]  # file and line
    prompt: str
    ending: str  # the sentence that follows

    @property
    def names(self) -> frozenset[str]:
        return frozenset(_NAME.findall(f"{self.prompt} {self.ending}"))

    def fits(self, other: "_Opening") -> bool:
        """Whether the endings can be exchanged, and neither prompt tells of what the other's does."""
        return (
            abs(len(self.ending) - len(other.ending)) <= _NEAR
            and self.ending != other.ending
            and not self.names & other.names
        )


def story_pairs(
    files: Sequence[Path], column: str, seed: int
) -> Iterator[tuple[Path, int, Candidate | Unfit]]:
    """A pair for each story that is fit, with the file and line of its own; or why there is none.

    Args:
        files: .jsonl with a story a row, or .txt with a story a line; either packed with gzip or not.
        column: of the rows, where the story stands.
        seed: decides which stories exchange their endings.

    Raises:
        InputError: a file cannot be read, or a row has no story.
    """
    fit: list[_Opening] = []
    for file in files:
        for line, story in _stories(file, column):
            opening = _opening(story, (file, line))
            if opening is None:
                yield file, line, "unfit_story"
            else:
                fit.append(opening)
    couples = _couples(fit, seed)
    for opening in fit:
        if opening not in couples:
            yield *opening.place, "without_partner"
            continue
        other, number = couples[opening]
        yield (
            *opening.place,
            Candidate(
                prompt=Part(opening.prompt),
                chosen=Part(opening.ending),
                rejected=Part(other.ending),
                kind="topic",
                reason=f"goes on another story, of {other.place[0].name}:{other.place[1]}",
                story=f"{opening.place[0].name}:{opening.place[1]}",
                cluster=f"couple-{number}",
            ),
        )


def _stories(file: Path, column: str) -> Iterator[tuple[int, str]]:
    holds_rows = file.name.removesuffix(".gz").endswith(".jsonl")
    for number, line in enumerate(text_lines(file), 1):
        if line.strip():
            story = json_object(line, f"{file}:{number}").get(column) if holds_rows else line
            if not isinstance(story, str) or not story.strip():
                raise InputError(f'{file}:{number}: has no "{column}"')
            yield number, story


def _opening(story: str, place: tuple[Path, int]) -> _Opening | None:
    """The first stretch of sentences of the story that is fit; None if there is none."""
    sentences = _sentences(" ".join(story.split()))
    for start in range(len(sentences) - _PROMPT_SENTENCES):
        *before, ending = sentences[start : start + _PROMPT_SENTENCES + 1]
        prompt = " ".join(before)
        whole = all(sentence.count('"') % 2 == 0 for sentence in (*before, ending))  # no speech is cut
        if whole and len(prompt.split()) <= _MOST_PROMPT_WORDS and len(ending.split()) in _ENDING_WORDS:
            return _Opening(place, prompt, ending)
    return None


def _sentences(text: str) -> list[str]:
    """Sentences, each with what follows its speech: `"Come!" said the fox.` is one."""
    found: list[str] = []
    for _, sentence in split_sentences(text):
        if found and sentence[0].islower():
            found[-1] += f" {sentence}"
        else:
            found.append(sentence)
    return found


def _couples(fit: Sequence[_Opening], seed: int) -> dict[_Opening, tuple[_Opening, int]]:
    """Each story's partner, and the number of the couple; some may have none."""
    draw = random.Random(seed)  # noqa: S311 - reproducible, not secret
    by_length: dict[int, list[_Opening]] = defaultdict(list)
    for opening in draw.sample(fit, len(fit)):
        by_length[len(opening.ending)].append(opening)
    alone = [opening for _, some in sorted(by_length.items()) for opening in some]
    couples: dict[_Opening, tuple[_Opening, int]] = {}
    while alone:
        one = alone.pop()
        for place in range(len(alone) - 1, -1, -1):
            other = alone[place]
            if len(one.ending) - len(other.ending) > _NEAR:
                break
            if one.fits(other):
                del alone[place]
                number = len(couples) // 2
                couples |= {one: (other, number), other: (one, number)}
                break
    return couples
