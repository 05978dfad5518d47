"""A folder of units → the beginnings that a speech LM is to continue, cut by the clock or at a word's end.

Which prompts they are decides a generative score as much as the model does, so nothing here depends on the
order of a directory: prompts come in the order of `pairs.jsonl`, or of the folder's utterances.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np

from slam.errors import ConfigError, InputError
from slam.labels import LABELS_FILES, read_labels
from slam.pairs import PAIRS_FILE, read_pair_rows, read_pairs
from slam.run import read_json, source
from slam.units import Units, UnitsFolder

_ALIGNED = "aligned_text"  # of an alignment file: [word, start, end] of each word, in seconds


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Which prompts are taken from a folder, and how long they are."""

    prompts: Path = source(required=True)
    """A folder of units: its pairs' prompts or better sides, or its utterances where it has no pairs."""
    prompts_from: Literal["prompt", "chosen"] = "prompt"
    """Of pairs: what stands before the seam, or the whole better utterance, to be cut."""
    selection: Literal["spaced", "first"] = "spaced"
    """Prompts evenly spaced over the folder, or the first of them."""
    num_prompts: int = 8
    """How many prompts."""
    prompt_seconds: float | None = 3.0
    """Length to which a prompt is cut, in seconds; 0 keeps all of it."""
    min_seconds: float = 0.0
    """What is shorter before it is cut, in seconds, is left out and counted."""
    word_ends: Path | None = source()
    """Labels of words, or a folder of alignment JSON: prompts end with the word nearest to prompt_seconds."""

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise ConfigError("num_prompts must be at least 1")
        for name in ("prompt_seconds", "min_seconds"):
            if (value := getattr(self, name)) is not None and not (isfinite(value) and value >= 0):
                raise ConfigError(f"{name} = {value}: must not be negative")
        if self.word_ends is not None and not self.prompt_seconds:
            raise ConfigError("word_ends: prompts end with the word nearest to prompt_seconds; give those")


@dataclass(frozen=True)
class Prompt:
    """What a model is asked to continue."""

    id: str  # of the pair, or of the utterance
    units: Units

    @property
    def seconds(self) -> float | None:
        """How long it lasts; None where nobody kept its units' durations."""
        return None if self.units.durations is None else self.units.num_frames / self.units.frame_rate


@dataclass(frozen=True)
class Prompts:
    """The prompts that were taken, and what was left out on the way to them."""

    taken: tuple[Prompt, ...]
    num_short: int = 0  # shorter than min_seconds
    without_words: tuple[str, ...] = ()  # ids of which no word is known

    def __len__(self) -> int:
        return len(self.taken)


def find_prompts(units: UnitsFolder, config: PromptConfig) -> Prompts:
    """`num_prompts` prompts, each cut as the settings say.

    Raises:
        InputError: there are none, or none is left.
    """
    found = list(_candidates(units, config))
    if not found:
        raise InputError(f"{units.path}: holds no prompts{_hint(units, config)}")
    # nobody need know durations where nothing is asked of them
    long = [one for one in found if not config.min_seconds or _seconds(one[2]) >= config.min_seconds]
    num_short = len(found) - len(long)
    if not long:
        raise InputError(f"{units.path}: none of {len(found)} prompts lasts {config.min_seconds:g} seconds")
    ends = None if config.word_ends is None else _WordEnds(config.word_ends)
    if config.selection == "spaced":
        places = np.linspace(0, len(long) - 1, min(config.num_prompts, len(long))).round().astype(int)
        long = [long[place] for place in places]
    taken: list[Prompt] = []
    without_words = []
    for name, utterance, whole in long:
        if len(taken) == config.num_prompts:
            break
        end = config.prompt_seconds if ends is None else ends.nearest(utterance, config.prompt_seconds or 0.0)
        if end is None:
            without_words.append(name)
        else:
            taken.append(Prompt(name, _cut(whole, end) if end else whole))
    if not taken:
        raise InputError(
            f"{config.word_ends}: knows the words of none of {len(without_words)} prompts, the first: "
            f"{without_words[0]!r}"
        )
    return Prompts(tuple(taken), num_short, tuple(without_words))


def _hint(units: UnitsFolder, config: PromptConfig) -> str:
    if config.prompts_from == "prompt" and (units.path / PAIRS_FILE).is_file():
        return '; prompts_from = "chosen" cuts the better utterances of its pairs'
    return ""


def _candidates(units: UnitsFolder, config: PromptConfig) -> Iterator[tuple[str, str, Units]]:
    """Id, utterance and units of all that could be a prompt, before any cut; each utterance once."""
    if not (units.path / PAIRS_FILE).is_file():
        found = [(name, name, units[number]) for number, name in enumerate(units.names)]
    elif config.prompts_from == "prompt":
        rows = read_pair_rows(units.path)
        found = [(row.id, row.chosen, pair.prompt) for row, pair in zip(rows, read_pairs(units), strict=True)]
    else:
        found = list(_better_sides(units))
    yield from (one for one in found if len(one[2]))


def _better_sides(units: UnitsFolder) -> Iterator[tuple[str, str, Units]]:
    """Pair, utterance and units of each better utterance, under the first pair that names it."""
    by_name, seen = units.by_name(), set()
    for row in read_pair_rows(units.path):
        if row.chosen not in by_name:
            raise InputError(
                f"{units.path}: pair {row.id!r} names the utterance {row.chosen!r}, which is not here"
            )
        if row.chosen not in seen:
            seen.add(row.chosen)
            yield row.id, row.chosen, by_name[row.chosen]


def _seconds(units: Units) -> float:
    return units.num_frames / units.frame_rate + 1e-9


def _cut(whole: Units, end: float) -> Units:
    """The units before `end` seconds, at least one frame of them."""
    return whole.split(max(1, round(end * whole.frame_rate)))[0]


class _WordEnds:
    """When words end, by utterance: from one file of labels, or a JSON file beside each recording."""

    def __init__(self, path: Path) -> None:
        self._path = path
        is_folder = path.is_dir() and not any((path / name).is_file() for name in LABELS_FILES)
        self._labels = None if is_folder else read_labels(path)

    def nearest(self, utterance: str, seconds: float) -> float | None:
        """The end of the word that ends nearest to `seconds`; None where no word is known."""
        if self._labels is not None:
            ends = [label.end for label in self._labels.get(utterance, ())]
        else:
            name = Path(utterance).name
            path = self._path / f"{name.partition('.')[0] or name}.json"
            ends = list(_aligned(path)) if path.is_file() else []
        return min(ends, key=lambda end: abs(end - seconds), default=None)


def _aligned(path: Path) -> Iterator[float]:
    """When the words of an alignment file end, in seconds.

    The file is the reference toolkit's, or a row of sTinyStories: its `aligned_text` holds
    `[word, start, end]` or `{"word", "start_time", "end_time"}` for each word.
    """
    content: Any = read_json(path)
    rows = content.get(_ALIGNED) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise InputError(f"{path}: no alignment; expected {_ALIGNED!r}, a list of words and their times")
    for row in rows:
        match row:
            case [_, _, int() | float() as end] | {"end_time": int() | float() as end} if end > 0:
                yield float(end)
            case _:
                raise InputError(f"{path}: {row!r}: expected [word, start, end] in seconds")
