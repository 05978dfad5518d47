"""Settings → the lines to speak, each with its voice and rate, and the pairs among them.

The user's texts are read as they are asked for, so a corpus need not fit into memory; texts and pairs of the
built-in grammar, and pairs that were built, are few.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from slam.errors import ConfigError, InputError
from slam.normalization import normalizer
from slam.pairs import PairRow
from slam.run import source
from slam.speaking import Line
from slam.stories import Split, write_pairs, write_texts
from slam.text_datasets import TextDataset, open_dataset
from slam.text_sources import GivenPair, TextConfig, count_texts, read_text_pairs, read_texts

KINDED = ("preferences", "storycloze")  # whose pairs `kinds` restricts


@dataclass(frozen=True, kw_only=True)
class PlanConfig(TextConfig):
    """What is said, and in which voices."""

    texts: dict[str, int] = field(default_factory=dict)
    """How many texts of the built-in grammar: stories, sentences, phrases, words → count."""
    pairs: dict[str, int] = field(default_factory=dict)
    """How many pairs: preferences, swuggy, sblimp, storycloze, topic-storycloze → count."""
    kinds: tuple[str, ...] = ()
    """Kinds of contradiction in story pairs; all kinds if none is named."""
    split: Split = "train"
    """Which stories: no story is in two splits."""
    pairs_from: Path | None = source()
    """A folder that `slam build-pairs` wrote: text pairs to speak."""
    voices: tuple[str, ...] = ("en-us",)
    """Voices, drawn for each utterance; a pair keeps one voice on both sides."""
    every_voice: bool = False
    """Speak each pair of `pairs_from` in every voice, rather than in one that is drawn."""
    rates: tuple[int, ...] = (180,)
    """Speaking rates in words per minute, drawn for each utterance."""
    seed: int = 0
    """Decides texts, voices and rates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.own_texts or self.texts or self.pairs or self.pairs_from):
            raise ConfigError(
                "nothing to say: give text (a file), dataset, texts or pairs (counts of the built-in "
                "grammar), or pairs_from"
            )
        if not self.voices or not self.rates:
            raise ConfigError("voices and rates must each name at least one")
        if self.every_voice and not self.pairs_from:
            raise ConfigError("every_voice is for the pairs of pairs_from; leave it out")
        if self.every_voice and len(set(self.voices)) < len(self.voices):
            raise ConfigError("every_voice: name each voice once")
        for table in ("texts", "pairs"):
            for name, number in getattr(self, table).items():
                if number < 1:
                    raise ConfigError(f"{table}.{name} = {number}: must be at least 1")

    @property
    def has_pairs(self) -> bool:
        """Whether pairs are spoken."""
        return bool(self.pairs or self.pairs_from)

    def draw(self, key: str) -> tuple[str, int]:
        """The voice and the rate that the seed draws for `key`."""
        generator = random.Random(f"{self.seed}-{key}")  # noqa: S311 - reproducible, not secret
        return generator.choice(self.voices), generator.choice(self.rates)


@dataclass(frozen=True)
class Plan:
    """The lines to speak, and the pairs among them."""

    config: PlanConfig
    num_texts: int  # of the user's files
    written: tuple[Line, ...]  # by the grammar, and of pairs
    pairs: tuple[PairRow, ...]  # without times
    built: frozenset[str]  # ids of the pairs that are not the grammar's
    dataset: TextDataset | None

    @property
    def num_lines(self) -> int | None:
        """How many lines there are; None where only reading the data set through would tell."""
        rows = 0 if self.dataset is None else self.dataset.num_rows
        return None if rows is None else self.num_texts + len(self.written) + rows

    @property
    def voices(self) -> frozenset[str]:
        """Every voice that may speak."""
        return frozenset(self.config.voices) | {line.voice for line in self.written}

    @property
    def about(self) -> dict[str, Any]:
        """What the results say of the texts' origin."""
        if self.dataset is None or self.dataset.revision is None:
            return {}
        return {"dataset_revision": self.dataset.revision}

    def lines(self, skip: int = 0) -> Iterator[Line]:
        """All lines but the first `skip`, read as they are asked for.

        Raises:
            InputError: the data set cannot be read on.
        """
        known = self.num_texts + len(self.written)
        yield from islice(chain(self._own_lines(), self.written), skip, None)
        if self.dataset is not None:
            for number, text in self.dataset.read(max(0, skip - known)):
                yield self._given(f"row-{number:07d}", text, "dataset", key=f"row-{number}")

    def _own_lines(self) -> Iterator[Line]:
        config = self.config
        if config.text is None:
            return
        for number, text in enumerate(read_texts(config.text, config.column, config.limit), 1):
            yield self._given(f"line-{number:07d}", text, "text", key=f"line-{number}")

    def _given(self, name: str, text: str, origin: str, *, key: str) -> Line:
        return Line(name, text, origin, None, *self.config.draw(key), given=True)


def plan(config: PlanConfig, out: Path) -> Plan:
    """What `config` asks for; the commit of a data set of the hub is noted in `out`.

    Raises:
        InputError: the user's text or pairs are missing or malformed, or the data set cannot be opened.
        ConfigError: the grammar has no such source or kind, or not so many of it.
        MissingExtraError: the normalisation, or data sets, need a package that is not installed.
    """
    if config.own_texts or config.pairs_from:
        normalizer(config.normalization)  # before other processes are begun: what it lacks, it lacks here
    num_texts = 0 if config.text is None else count_texts(config.text, config.column, config.limit)
    lines: list[Line] = []
    pairs: list[PairRow] = []
    try:
        for origin, number in config.texts.items():
            items = write_texts(origin, number, split=config.split, seed=config.seed)
            lines += [
                Line(item.id, item.text, item.source, item.story, *config.draw(item.id)) for item in items
            ]
        for origin, number in config.pairs.items():
            kinds = config.kinds if origin in KINDED else ()
            told = write_pairs(origin, number, split=config.split, seed=config.seed, kinds=kinds)
            for pair in told:
                content = {name: value for name, value in pair.__dict__.items() if name != "source"}
                _add(GivenPair(benchmark=pair.source, **content), lines, pairs, config)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    built = [] if config.pairs_from is None else read_text_pairs(config.pairs_from)
    grammar = frozenset(pair.id for pair in pairs)
    if twice := grammar & {pair.id for pair in built}:
        raise InputError(f"{config.pairs_from}: the pair {min(twice)!r} is one of the grammar, too")
    for given in built:
        _add(given, lines, pairs, config, given=True)
    names = [pair.id for pair in pairs]
    if len(set(names)) < len(names):  # "a" in the voice "b" is named as a pair "a-b" is
        name = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{config.pairs_from}: with every_voice two pairs are named {name!r}")
    return Plan(
        config=config,
        num_texts=num_texts,
        written=tuple(lines),
        pairs=tuple(pairs),
        built=frozenset(pair.id for pair in pairs) - grammar,
        dataset=open_dataset(config, out),
    )


def _add(
    pair: GivenPair, lines: list[Line], pairs: list[PairRow], config: PlanConfig, *, given: bool = False
) -> None:
    """Add a pair and its two utterances, of one voice and rate; or one such for each voice."""
    # drawn for all that are of one cluster: who speaks is then no difference between them
    drawn, rate = config.draw(pair.cluster or pair.id)
    several = given and config.every_voice and pair.voice is None
    for voice in config.voices if several else (pair.voice or drawn,):
        name = f"{pair.id}-{voice}" if several else pair.id
        row = PairRow(
            id=name,
            benchmark=pair.benchmark,
            kind=pair.kind,
            chosen=f"{name}-chosen",
            rejected=f"{name}-rejected",
            chosen_start=None,
            rejected_start=None,
            reason=pair.reason,
            story=pair.story,
            item=pair.item or (pair.id if several else None),
            cluster=pair.cluster,
            groups=pair.groups | ({"voice": voice} if several else {}),
        )
        pairs.append(row)
        line = Line(row.chosen, pair.chosen, pair.benchmark, pair.story, voice, rate, pair.prompt, given)
        lines += [line, replace(line, id=row.rejected, text=pair.rejected)]
