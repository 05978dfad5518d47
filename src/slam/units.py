"""One unit label a frame → deduplicated units with durations; and the folder in which units are kept.

Consecutive equal labels merge into one unit (the paper, section 4); the durations kept beside them give the
frames back exactly. On disk, a folder of units is a row of shards, each written whole or not at all, so that
an interrupted stage goes on at the first missing one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.errors import InputError, MismatchError
from slam.run import read_json, read_json_lines, replacing, write_json, write_json_lines

Ids = npt.NDArray[np.uint16]

TOKENIZER_FOLDER = "tokenizer"
UNITS_FILE = "units.json"
_MAX_DURATION = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Units:
    """Deduplicated speech units of one utterance."""

    ids: Ids  # [N], 0 ≤ id < num_units
    durations: Ids | None  # [N] frames, ≥ 1; None when a model wrote the units, or nobody kept them
    frame_rate: float  # Hz

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_frames(self) -> int:
        """How many frames the units cover.

        Raises:
            InputError: the units carry no durations.
        """
        return int(self.known_durations.sum())

    def expand(self) -> Ids:
        """One id a frame, `[F]`: what deduplication started from.

        Raises:
            InputError: the units carry no durations.
        """
        return np.repeat(self.ids, self.known_durations)

    def split(self, frame: int) -> tuple["Units", "Units"]:
        """The units before `frame` and those from it on; a unit that spans it is cut in two."""
        frames = self.expand()
        return deduplicate(frames[:frame], self.frame_rate), deduplicate(frames[frame:], self.frame_rate)

    @property
    def known_durations(self) -> Ids:
        """Frames of each unit, `[N]`.

        Raises:
            InputError: the units carry no durations.
        """
        if self.durations is None:
            raise InputError(
                "these units carry no durations (a model wrote them, or they were imported without); "
                "encode the recordings instead"
            )
        return self.durations


def deduplicate(frames: npt.NDArray[Any], frame_rate: float) -> Units:
    """Merge runs of equal ids in `frames` `[F]` into units and durations; a run over 65,535 is cut."""
    frames = np.asarray(frames)
    return merge(frames, np.ones(len(frames), np.int64), frame_rate)


def merge(ids: npt.NDArray[Any], durations: npt.NDArray[Any], frame_rate: float) -> Units:
    """Merge runs of equal `ids` `[N]` and add their `durations` `[N]` in frames; one over 65,535 is cut."""
    if not len(ids):
        empty = np.zeros(0, np.uint16)
        return Units(empty, empty, frame_rate)
    starts = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1])))
    durations = np.add.reduceat(durations, starts, dtype=np.int64)
    if durations.max() > _MAX_DURATION:
        pieces = -(-durations // _MAX_DURATION)
        starts = np.repeat(starts, pieces)
        last = np.cumsum(pieces) - 1
        remainders = durations - (pieces - 1) * _MAX_DURATION
        durations = np.full(len(starts), _MAX_DURATION)
        durations[last] = remainders
    return Units(ids[starts].astype(np.uint16), durations.astype(np.uint16), frame_rate)


@dataclass(frozen=True)
class Vocabulary:
    """Which token stands for which unit: `token = unit + 2`, after padding and one boundary token.

    The order is the reference's: pad 0, `<S>` 1 as both beginning and end, units from 2.
    """

    num_units: int
    pad: int = 0
    bos: int = 1
    eos: int = 1

    @property
    def offset(self) -> int:
        """The token of unit 0."""
        return max(self.pad, self.bos, self.eos) + 1

    @property
    def size(self) -> int:
        """How many tokens there are: units, padding and boundary."""
        return self.num_units + self.offset

    def tokens(self, ids: npt.NDArray[Any]) -> Ids:
        """Unit ids `[N]` → tokens `[N]`.

        Raises:
            MismatchError: an id is outside the vocabulary.
        """
        ids = np.asarray(ids)
        if ids.size and (ids.min() < 0 or ids.max() >= self.num_units):
            outside = int(ids.min() if ids.min() < 0 else ids.max())
            raise MismatchError(
                f"unit {outside} is outside a vocabulary of {self.num_units} units; "
                "encode with the tokenizer that the model was trained on"
            )
        return (ids + self.offset).astype(np.uint16)

    def document(self, ids: npt.NDArray[Any]) -> Ids:
        """Unit ids `[N]` → `[N + 2]` tokens: `<S>`, the units, `<S>`."""
        return np.concatenate(
            ([np.uint16(self.bos)], self.tokens(ids), [np.uint16(self.eos)]), dtype=np.uint16
        )

    def ids(self, tokens: npt.NDArray[Any]) -> Ids:
        """Tokens → the unit ids among them, padding and boundaries left out."""
        tokens = np.asarray(tokens)
        return (tokens[tokens >= self.offset] - self.offset).astype(np.uint16)


@dataclass(frozen=True)
class UnitsFolder:
    """A folder of encoded utterances, held in memory: 4 bytes a unit, or 2 where durations are not kept."""

    path: Path
    vocabulary: Vocabulary
    tokenizer: str  # name
    tokenizer_fingerprint: str
    frame_rate: float  # Hz
    names: tuple[str, ...]  # [D] utterance ids, in the order of the manifest
    ids: Ids  # [N], all utterances end to end
    durations: Ids | None  # [N] frames; None when they were not kept
    ends: npt.NDArray[np.int64]  # [D], where each utterance ends

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Units:
        start = int(self.ends[index - 1]) if index else 0
        window = slice(start, int(self.ends[index]))
        durations = None if self.durations is None else self.durations[window]
        return Units(self.ids[window], durations, self.frame_rate)

    def by_name(self) -> dict[str, Units]:
        """Utterance id → units."""
        return {name: self[index] for index, name in enumerate(self.names)}

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer that wrote these units is kept."""
        return self.path / TOKENIZER_FOLDER


def check_spoken(units: tuple[str, str], model: tuple[str, str], where: Path) -> None:
    """Refuse units of another tokenizer than a model's; both are `(name, fingerprint)`.

    Raises:
        MismatchError: the fingerprints differ.
    """
    if units[1] != model[1]:
        raise MismatchError(
            f"{where}: units of {' '.join(units)}, but the model speaks {' '.join(model)}; "
            "encode with the model's tokenizer"
        )


def shard_path(folder: Path, index: int) -> Path:
    """The tensors of a shard; its rows stand beside it as `.jsonl`."""
    return folder / "shards" / f"{index:05d}.safetensors"


def write_shard(folder: Path, index: int, units: Sequence[Units], rows: list[dict[str, Any]]) -> None:
    """Write one shard: ids, durations and ends, then nothing can be missing but the next shard.

    Durations are left out where no utterance has them; then `finish_units` must say so.

    Raises:
        InputError: some of the utterances carry durations and some do not.
    """
    from safetensors.numpy import save_file

    path = shard_path(folder, index)
    write_json_lines(path.with_suffix(".jsonl"), rows)
    lengths = np.array([len(u) for u in units], np.int64)
    empty = [np.zeros(0, np.uint16)]
    tensors = {"ids": np.concatenate([u.ids for u in units] or empty), "ends": np.cumsum(lengths)}
    if not units or any(u.durations is not None for u in units):
        tensors["durations"] = np.concatenate([u.known_durations for u in units] or empty)
    with replacing(path) as partial:
        save_file(tensors, partial)


def finish_units(
    folder: Path,
    *,
    num_units: int,
    tokenizer: str,
    fingerprint: str,
    frame_rate: float,
    num_shards: int,
    durations: bool = True,
) -> None:
    """Write what describes the folder as a whole; `read_units` reads nothing without it.

    `durations` says whether the shards hold them.
    """
    about = {
        "num_units": num_units,
        "tokenizer": tokenizer,
        "tokenizer_fingerprint": fingerprint,
        "frame_rate": frame_rate,
        "num_shards": num_shards,
    }
    write_json(folder / UNITS_FILE, about if durations else about | {"durations": False})


def read_rows(folder: Path, num_shards: int) -> Iterator[dict[str, Any]]:
    """The manifest rows of the first `num_shards` shards."""
    for index in range(num_shards):
        yield from read_json_lines(shard_path(folder, index).with_suffix(".jsonl"))


def read_units(folder: Path) -> UnitsFolder:
    """Open a folder that `slam encode` or `slam import-units` wrote.

    Raises:
        InputError: it is no such folder, or a shard is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (folder / UNITS_FILE).is_file():
        raise InputError(f"{folder}: holds no units; give a folder that `slam encode` wrote")
    about = read_json(folder / UNITS_FILE)
    has_durations = about.get("durations", True)
    parts, total = [], 0
    names: list[str] = []
    for index in range(about["num_shards"]):
        path = shard_path(folder, index)
        try:
            part = load_file(path)
            ids, ends = part["ids"], part["ends"]
            durations = part["durations"] if has_durations else np.zeros(len(ids), np.uint16)
            shard_names = [row["id"] for row in read_json_lines(path.with_suffix(".jsonl"))]
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"{path}: damaged shard ({error}); encode again") from None
        last = int(ends[-1]) if len(ends) else 0
        if not (len(ids) == len(durations) == last and len(ends) == len(shard_names)):
            raise InputError(f"{path}: damaged shard (its units and its rows disagree); encode again")
        parts.append((ids, durations, ends + total))
        names += shard_names
        total += len(ids)
    columns = list(zip(*parts, strict=True)) or [(), (), ()]
    return UnitsFolder(
        path=folder,
        vocabulary=Vocabulary(about["num_units"]),
        tokenizer=about["tokenizer"],
        tokenizer_fingerprint=about["tokenizer_fingerprint"],
        frame_rate=about["frame_rate"],
        names=tuple(names),
        ids=np.concatenate([np.zeros(0, np.uint16), *columns[0]]),
        durations=np.concatenate([np.zeros(0, np.uint16), *columns[1]]) if has_durations else None,
        ends=np.concatenate([np.zeros(0, np.int64), *columns[2]]),
    )
