"""Speech tokenizers: audio → units. One file each; all keep the contract below (`tests/conformance.py`)."""

import inspect
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from slam import parts
from slam.audio import Audio
from slam.errors import ConfigError, InputError, MismatchError
from slam.run import read_json
from slam.units import Units

BUILT_IN = {
    "logmel-kmeans": "slam.tokenizers.logmel_kmeans:LogMelKMeans",
    "hubert": "slam.tokenizers.hubert:Hubert",
    # presets: made with settings of their own, saved and read as `hubert`
    "mhubert-25hz": "slam.tokenizers.hubert:MHUBERT_25HZ",
    "hubert-base-l9": "slam.tokenizers.hubert:HUBERT_BASE_L9",
}
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
        """Learn units from recordings at any rate.

        A tokenizer may ask for more, by keywords that `slam encode` has settings for: `model` and `kmeans`
        (paths), `hub_model` (`owner/name@commit`), `layer`, `normalize`. They are passed where given.
        """
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
    """The class of a tokenizer named by the user, or a preset, which has a class's `fit` and `load`."""
    found: type[SpeechTokenizer] = parts.resolve("tokenizer", name, BUILT_IN)
    return found


def check_settings(name: str, given: Collection[str]) -> None:
    """Hold the settings given for a tokenizer against what its `fit` takes.

    Raises:
        ConfigError: one of them is not taken, or one that it must have was not given.
    """
    known = inspect.signature(tokenizer_class(name).fit).parameters.values()
    taken = {parameter.name for parameter in known} - {"num_units", "seed"}
    strange = sorted(set(given) - taken)
    if strange and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
        raise ConfigError(f"tokenizer {name!r} takes no {', '.join(strange)}; leave it out")
    needed = {p.name for p in known if p.kind is p.KEYWORD_ONLY and p.default is p.empty} & taken
    if lacking := sorted(needed - set(given)):
        raise ConfigError(f"tokenizer {name!r} needs {', '.join(lacking)}")


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
