"""Files of any layout → the pairs that they hold or that are made of them, each with its file and line."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slam.errors import InputError
from slam.nonword_pairs import NonwordPairs
from slam.pair_layouts import Candidate, Reading, read_candidates, read_rows
from slam.story_pairs import story_pairs
from slam.word_lexicon import read_lexicon

_STORY = "story"  # column, if none is named


@dataclass(frozen=True)
class Row:
    """A row of a file, or what was made of it."""

    file: Path
    line: int
    found: Candidate | str | InputError  # a pair, why it is none, or what is wrong with it
    number: int = 0  # among the pairs of its row


@dataclass
class PairSource:
    """What is read, and how."""

    files: tuple[Path, ...]
    reading: Reading
    dictionary: Path | None
    accents: tuple[str, ...]
    num_pairs: int | None
    num_pairs_each: int | None
    about: dict[str, Any] = field(default_factory=dict)  # for the results, once all is read

    def rows(self) -> Iterator[Row]:
        """The rows, in order; where a row holds several pairs, one after the other.

        Raises:
            InputError: a file cannot be read, or is of another kind.
        """
        match self.reading.layout:
            case "words":
                yield from self._words()
            case "stories":
                column = self.reading.columns.get(_STORY, _STORY)
                yield from (Row(*row) for row in story_pairs(self.files, column, self.reading.seed))
            case _:
                yield from self._read()

    def _words(self) -> Iterator[Row]:
        assert self.dictionary is not None  # noqa: S101 - the settings say so
        lexicon = read_lexicon(self.files, self.dictionary, self.accents)
        maker = NonwordPairs(lexicon, self.reading.seed)
        yield from (Row(*row) for row in maker.pairs(self.num_pairs, self.num_pairs_each))
        self.about["ngram_accuracies"] = maker.accuracies

    def _read(self) -> Iterator[Row]:
        for file in self.files:
            for line, raw in read_rows(file):
                try:
                    found = read_candidates(raw, file, self.reading)
                except InputError as error:
                    yield Row(file, line, error)
                    continue
                if isinstance(found, str):
                    yield Row(file, line, found)
                    continue
                for number, pair in enumerate(found):
                    shared = f"{file.name}:{line}" if len(found) > 1 else pair.cluster
                    yield Row(file, line, replace(pair, cluster=shared), number)


def check_columns(layout: str, columns: Mapping[str, str]) -> str | None:
    """What is wrong with `columns` for this layout, or None."""
    known = {
        "pairs": ("prompt", "chosen", "rejected", "kind", "reason", "story", "voice", "cluster"),
        "stories": (_STORY,),
    }.get(layout, ())
    for name in columns:
        if name not in known and not (layout == "pairs" and name.startswith("groups.")):
            listed = ", ".join(known + (("groups.NAME",) if layout == "pairs" else ()))
            return f"columns.{name}: layout {layout!r} has {listed or 'columns of its own'}"
    return None
