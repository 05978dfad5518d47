"""Speech tokenizers: audio → units. One file each; all keep the contract below (`tests/conformance.py`)."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from slam import parts
from slam.audio import Audio
from slam.errors import InputError, MismatchError
from slam.run import read_json
from slam.units import Units

BUILT_IN = {"logmel-kmeans": "slam.tokenizers.logmel_kmeans:LogMelKMeans"}
ABOUT_FILE = "tokenizer.json"


@runtime_checkable
class SpeechTokenizer(Protocol):
    """Turns speech into discrete units; the same audio gives the same units in any batch."""

    name: str
    fingerprint: str  # of everything that decides a unit
    num_units: int
    frame_rate: float  # Hz
    sample_rate: int  # Hz of the audio that `encode` takes

    @classmethod
    def fit(cls, audios: Iterable[Audio], *, num_units: int, seed: int) -> Self:
        """Learn units from recordings at any rate."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        ...

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` (with `name` and `fingerprint`) and safetensors into `folder`."""
        ...

    def encode(self, batch: Sequence[Audio]) -> list[Units]:
        """One `Units` for each recording."""
        ...


def tokenizer_class(name: str) -> type[SpeechTokenizer]:
    """The class of a tokenizer named by the user."""
    found: type[SpeechTokenizer] = parts.resolve("tokenizer", name, BUILT_IN)
    return found


def load_tokenizer(folder: Path, *, named: str | None = None) -> SpeechTokenizer:
    """Open a tokenizer folder.

    Args:
        folder: what `save` wrote.
        named: the tokenizer's name as the user gave it; needed for one that is not built in, because a
            name found in a data folder is never imported.

    Raises:
        InputError: there is no tokenizer in the folder, or it is not a built-in one and was not named.
        MismatchError: the folder's tokenizer is not the one named, or not the one its fingerprint says.
    """
    path = folder / ABOUT_FILE
    if not path.is_file():
        raise InputError(f"{folder}: holds no speech tokenizer ({ABOUT_FILE} is missing)")
    about = read_json(path)
    name = about.get("name")
    if named is not None and name != named:
        raise MismatchError(f"{folder}: holds the tokenizer {name!r}, not {named!r}")
    if named is None and name not in BUILT_IN:
        raise InputError(f"{folder}: the tokenizer {name!r} is not built in; name it in the recipe")
    tokenizer = tokenizer_class(name).load(folder)
    if tokenizer.fingerprint != about.get("fingerprint"):
        raise MismatchError(
            f"{folder}: its files give the fingerprint {tokenizer.fingerprint}, {ABOUT_FILE} says "
            f"{about.get('fingerprint')}; the folder was changed, fit the tokenizer again"
        )
    return tokenizer
