"""The user's text files, or text pairs of `slam build-pairs` → the texts to speak, one at a time.

Files may be larger than memory: they are read through once to be checked and counted, and again as their
texts are needed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from slam.errors import ConfigError, InputError
from slam.normalization import Normalization
from slam.recordings import MANIFEST_FILE
from slam.run import json_object, read_json_lines, source
from slam.text_files import text_lines

TEXT_PAIRS_FILE = "text-pairs.jsonl"
_SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_ID = re.compile(r"[\w+#@=-][\w.+#@=-]*")  # may be a file's name


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The user's own text: where it comes from, and how it is made fit to be spoken."""

    text: Path | None = source()
    """The user's own text: .txt with an utterance a line, .jsonl (either .gz), or a folder of such files."""
    dataset: str | None = None
    """Or a data set of the Hugging Face hub, streamed: owner/name, or owner/name@revision."""
    dataset_folder: Path | None = source()
    """Or a data set in a folder: as `save_to_disk` wrote it, or a tree of parquet, JSON lines or CSV."""
    dataset_config: str | None = None
    """Which configuration of the data set, where it has several."""
    dataset_split: str = "train"
    """Which split of the data set."""
    column: str = "text"
    """The column of the data set, or the field of .jsonl files, that holds the text."""
    limit: int | None = None
    """Most texts to take of `text` or of the data set; all if not given."""
    normalization: Normalization = "unicode"
    """none, unicode (characters repaired), or spoken (also numbers and dates in English words)."""

    def __post_init__(self) -> None:
        if self.dataset is not None and self.dataset_folder is not None:
            raise ConfigError("give dataset (a name) or dataset_folder (a folder), not both")
        if self.dataset is not None and not _HUB_NAME.fullmatch(self.dataset):
            raise ConfigError(
                f"dataset = {self.dataset!r}: write owner/name or owner/name@revision; "
                "a folder is given as dataset_folder"
            )
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit = {self.limit}: must be at least 1")

    @property
    def own_texts(self) -> bool:
        """Whether the user gives texts, apart from pairs."""
        return bool(self.text or self.dataset or self.dataset_folder)


@dataclass(frozen=True)
class GivenPair:
    """A row of `text-pairs.jsonl`: a prompt with a better and a worse side, to be spoken."""

    id: str
    benchmark: str
    kind: str
    prompt: str  # may be empty
    chosen: str
    rejected: str
    reason: str = ""
    story: str | None = None
    voice: str | None = None  # None lets the stage choose
    item: str | None = None  # what it asks, if other pairs ask the same
    cluster: str | None = None  # what it shares with other pairs: a word, a story; they share a voice too
    groups: dict[str, str] = field(default_factory=dict)  # more that it is counted by


def read_texts(path: Path, column: str, limit: int | None) -> Iterator[str]:
    """The texts of a file or of a folder's files, in order; blank lines are passed over.

    Raises:
        InputError: a file cannot be read, is not UTF-8, or a row of it has no text.
    """
    texts = (text for file in _text_files(path) for text in _file_texts(file, column))
    return islice(texts, limit)


def count_texts(path: Path, column: str, limit: int | None) -> int:
    """How many texts `read_texts` gives, all of them checked.

    Raises:
        InputError: as `read_texts`, or there is no text.
    """
    count = sum(1 for _ in read_texts(path, column, limit))
    if not count:
        raise InputError(f"{path}: holds no text")
    return count


def _text_files(path: Path) -> list[Path]:
    """The file itself; of a folder its manifest, or else its text files, sorted."""
    if not path.is_dir():
        return [path]
    if (path / MANIFEST_FILE).is_file():
        return [path / MANIFEST_FILE]
    found = sorted(file for file in path.rglob("*") if file.name.endswith(_SUFFIXES) and file.is_file())
    if not found:
        raise InputError(f"{path}: holds no text ({', '.join(_SUFFIXES)})")
    return found


def _file_texts(path: Path, column: str) -> Iterator[str]:
    holds_rows = path.name.removesuffix(".gz").endswith(".jsonl")
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        text = json_object(line, f"{path}:{number}").get(column) if holds_rows else line
        if not isinstance(text, str) or not text.strip():
            raise InputError(f'{path}:{number}: has no "{column}"')
        yield text


def read_text_pairs(folder: Path) -> list[GivenPair]:
    """The text pairs that `slam build-pairs` wrote.

    Raises:
        InputError: there are none, or a row lacks a field, is without text, or repeats an id.
    """
    path = folder / TEXT_PAIRS_FILE
    if not path.is_file():
        raise InputError(f"{folder}: holds no {TEXT_PAIRS_FILE}; give a folder that `slam build-pairs` wrote")
    pairs, seen = [], set()
    for number, row in enumerate(read_json_lines(path), 1):
        pair = _pair(row, f"{path}: row {number}")
        if pair.id in seen:
            raise InputError(f"{path}: row {number}: a second pair named {pair.id!r}")
        seen.add(pair.id)
        pairs.append(pair)
    if not pairs:
        raise InputError(f"{path}: holds no pairs")
    return pairs


def _pair(row: dict[str, Any], where: str) -> GivenPair:
    known = {name: row[name] for name in GivenPair.__dataclass_fields__ if row.get(name) is not None}
    for name in ("id", "benchmark", "kind", "chosen", "rejected"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise InputError(f'{where}: has no "{name}"')
    groups = known.pop("groups", {})
    if not isinstance(groups, dict) or not all(isinstance(value, str) for value in groups.values()):
        raise InputError(f"{where}: groups = {groups!r}: expected a table of texts")
    for name, value in known.items():
        if not isinstance(value, str):
            raise InputError(f"{where}: {name} = {value!r}: expected text")
    if not _ID.fullmatch(row["id"]):
        raise InputError(f"{where}: the id {row['id']!r} cannot name a file; use letters, digits, - _ . only")
    return GivenPair(**({"prompt": ""} | known), groups=groups)
