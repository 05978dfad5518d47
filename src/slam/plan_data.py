"""Folders of units or token shards, and a study → what a plan has to know of them; and the rows of a plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slam.errors import InputError, MismatchError
from slam.run import read_json
from slam.scaling_law import ScalingLaw
from slam.shards import SHARDS_FILE, open_shards
from slam.units import UNITS_FILE, read_units

# of the logarithms of lengths like Libri-Light's: 620 tokens on average once they are cut
_MIX = (6.45, 0.75)
_COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
_SHOWN = 4096  # lengths that stand for all


@dataclass(frozen=True)
class Corpus:
    """What a training would be of."""

    lengths: tuple[int, ...]  # tokens in each document, or in some of them
    num_units: int = 500
    tokens: int | None = None  # None where there is no data
    packed: bool = False  # whether it is token shards already


@dataclass(frozen=True)
class Row:
    """A base at a size of micro-batch, and what the budget buys with it."""

    base: str
    parameters: int
    micro_batch_tokens: int
    accumulation: int
    measured: bool = False
    memory: float | None = None  # bytes
    tokens_per_second: float | None = None
    mfu: float | None = None
    updates: float | None = None
    tokens: float | None = None  # in the budget
    epochs: float | None = None
    published_loss: float | None = None  # nats a token
    own_loss: float | None = None
    trouble: str = ""  # why it cannot be had

    @property
    def tokens_a_parameter(self) -> float:
        """How much it sees for its size."""
        return (self.tokens or 0.0) / self.parameters


def read_corpus(folders: Sequence[Path], context: int) -> Corpus:
    """Lengths and size of the data, or lengths like Libri-Light's where there is none.

    Raises:
        InputError: a folder holds neither units nor token shards, or several hold shards.
        MismatchError: they are of different tokenizers.
    """
    if not folders:
        drawn = np.random.default_rng(0).lognormal(*_MIX, _SHOWN).astype(int) + 8
        return Corpus(tuple(np.minimum(drawn, context).tolist()))
    packed = [(folder / SHARDS_FILE).is_file() for folder in folders]
    if any(packed) and len(folders) > 1:
        raise InputError("data: give one folder of token shards, or folders of units, to be packed together")
    if packed[0]:
        shards = open_shards(folders[0], "train")
        lengths = shards.chunked(context).lengths
        return Corpus(_some(lengths), shards.vocabulary.num_units, len(shards.tokens), packed=True)
    for folder in folders:
        if not (folder / UNITS_FILE).is_file():
            raise InputError(
                f"{folder}: holds neither units nor token shards; give what encode or pack wrote"
            )
    units = [read_units(folder) for folder in folders]
    for folder, other in zip(folders, units, strict=True):
        if other.tokenizer_fingerprint != units[0].tokenizer_fingerprint:
            raise MismatchError(
                f"{folder}: units of {other.tokenizer} {other.tokenizer_fingerprint}, {folders[0]} holds "
                f"{units[0].tokenizer} {units[0].tokenizer_fingerprint}; encode both with one tokenizer"
            )
    lengths = np.concatenate([np.diff(one.ends, prepend=0) for one in units]) + 2  # with both boundaries
    if not len(lengths):
        raise InputError(f"{folders[0]}: holds no units")
    return Corpus(_some(np.minimum(lengths, context)), units[0].vocabulary.num_units, int(lengths.sum()))


def _some(lengths: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """As many of the lengths as stand for all, evenly spaced in the order of their size."""
    places = np.linspace(0, len(lengths) - 1, min(_SHOWN, len(lengths))).astype(int)
    return tuple(np.sort(lengths)[places].tolist())


def read_law(path: Path) -> ScalingLaw:
    """The law that a study fitted.

    Raises:
        InputError: the file holds none.
    """
    content = read_json(path)
    try:
        found = {name: float(row["value"]) for name, row in content["law"]["coefficients"].items()}
        values = {name: found[name] for name in _COEFFICIENTS}
    except (TypeError, KeyError, ValueError, AttributeError):
        raise InputError(f"{path}: holds no fitted law; give the study.json of a study with one") from None
    return ScalingLaw(**values, R_D=found.get("R_D"), source=str(path))
