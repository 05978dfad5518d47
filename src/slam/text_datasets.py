"""A Hugging Face data set, by name or in a folder → its texts, streamed: nothing is downloaded whole.

A data set of the hub may change. The commit that is read is settled when the stage first looks, and noted in
the folder that it writes, so that a run that goes on later reads the same rows.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam.errors import InputError, MissingExtraError, reason_of
from slam.run import read_json, write_json
from slam.text_sources import TextConfig

_RECORD_FILE = "dataset.json"
# those of the library's readers that give text, and unpickle and run nothing
_READERS = ("parquet", "json", "csv", "text", "arrow")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class TextDataset:
    """A data set's rows, and what they are known by."""

    rows: Any  # datasets.IterableDataset
    column: str
    place: str  # for errors
    revision: str | None  # commit, for one of the hub
    num_rows: int | None  # None where only reading it through would tell

    def read(self, skip: int) -> Iterator[tuple[int, str]]:
        """`(number, text)` of each row but the first `skip`, counted from 1; "" where a row holds no text.

        Raises:
            InputError: a row cannot be read, or has no such column.
        """
        rows = enumerate(self.rows.skip(skip), skip + 1)
        while True:
            try:
                number, row = next(rows)
            except StopIteration:
                return
            except _unreadable() as error:
                raise InputError(
                    f"{self.place}: cannot be read on ({reason_of(error)}); "
                    "the same command goes on from here"
                ) from None
            if self.column not in row:
                raise InputError(f"{self.place}: has no column {self.column!r}; it has {', '.join(row)}")
            text = row[self.column]
            yield number, text if isinstance(text, str) else ""


def open_dataset(config: TextConfig, out: Path) -> TextDataset | None:
    """The data set that `config` names, if it names one; for one of the hub, its commit is kept in `out`.

    Raises:
        InputError: it cannot be reached, or has no such revision, configuration, split or column.
        MissingExtraError: the library is not installed.
    """
    if config.dataset is None and config.dataset_folder is None:
        return None
    try:
        import datasets
    except ModuleNotFoundError:
        raise MissingExtraError("data sets need the package datasets: pip install 'slam[hf]'") from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what goes wrong is raised, too
    if config.dataset_folder is not None:
        place, revision = str(config.dataset_folder), None
    else:
        assert config.dataset is not None  # noqa: S101 - one of the two was given
        place, revision = config.dataset, _commit(config.dataset, out / _RECORD_FILE)
    try:
        rows, num_rows = _opened(config, place, revision)
    except _unreadable() as error:
        raise InputError(f"{place}: cannot be opened ({reason_of(error)})") from None
    if rows.column_names is not None:
        if config.column not in rows.column_names:
            raise InputError(
                f"{place}: has no column {config.column!r}; it has {', '.join(rows.column_names)}"
            )
        rows = rows.select_columns([config.column])
    if revision is not None and not (out / _RECORD_FILE).is_file():
        write_json(out / _RECORD_FILE, {"dataset": config.dataset, "revision": revision})
    if config.limit is not None:
        rows = rows.take(config.limit)
        num_rows = None if num_rows is None else min(num_rows, config.limit)
    return TextDataset(rows, config.column, place, revision, num_rows)


def _opened(config: TextConfig, place: str, revision: str | None) -> tuple[Any, int | None]:
    """The rows of the split, and how many there are, where that is known."""
    import datasets

    folder = config.dataset_folder
    if folder is not None and ((folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()):
        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, datasets.DatasetDict):
            if config.dataset_split not in saved:
                raise InputError(
                    f"{place}: has no split {config.dataset_split!r}; it has {', '.join(map(str, saved))}"
                )
            saved = saved[config.dataset_split]
        return saved.to_iterable_dataset(), saved.num_rows
    name = place.partition("@")[0] if folder is None else str(folder)
    builder = datasets.load_dataset_builder(name, config.dataset_config, revision=revision)
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in _READERS:
        raise InputError(f"{place}: is read as {reader}; texts are read from {', '.join(_READERS)}")
    rows = builder.as_streaming_dataset(split=config.dataset_split)
    known = (builder.info.splits or {}).get(config.dataset_split)
    return rows, None if known is None else known.num_examples or None


def _commit(dataset: str, record: Path) -> str:
    """The commit to read: that which an earlier sitting noted in `record`, or what the hub says now.

    Raises:
        InputError: the hub cannot be reached, or has no such data set or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # of the client that it uses

    noted = read_json(record)["revision"] if record.is_file() else None
    name, _, revision = dataset.partition("@")
    try:
        found = HfApi().dataset_info(name, revision=noted or revision or None, timeout=30).sha
    except (OSError, ValueError, HTTPError) as error:
        raise InputError(
            f"{dataset}: the hub cannot be asked for it ({reason_of(error)}); "
            "where there is no network give the data set as a folder (dataset_folder)"
        ) from None
    if found is None or not _COMMIT.fullmatch(found):
        raise InputError(f"{dataset}: the hub gives no commit for it, but {found!r}")
    return found


def _unreadable() -> tuple[type[Exception], ...]:
    """What the library raises for data that are not there, not as they should be, or out of reach."""
    from datasets.exceptions import DatasetsError

    return (OSError, ValueError, DatasetsError)
