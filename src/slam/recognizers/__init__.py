"""Recognizers: audio → text. One file each; all keep the contract below (`tests/conformance.py`)."""

from collections.abc import Sequence
from typing import Protocol, Self, runtime_checkable

from slam import parts
from slam.audio import Audio

BUILT_IN = {
    "whisper": "slam.recognizers.whisper:Whisper",
    "units-ctc": "slam.recognizers.units_ctc:UnitsCtc",
}


@runtime_checkable
class Recognizer(Protocol):
    """Writes down what is said; the same audio gives the same text in any batch."""

    name: str
    sample_rate: int  # Hz of the audio that it hears; `transcribe` takes any and resamples

    @classmethod
    def load(cls, source: str) -> Self:
        """Open its weights: a folder, or for one that can, a name on the hub.

        `InputError` if there are none that can be read.
        """
        ...

    def transcribe(self, batch: Sequence[Audio]) -> list[str]:
        """One text for each recording, on one line; empty where nothing was heard."""
        ...


def load_recognizer(name: str, source: str) -> Recognizer:
    """The recognizer called `name`, its weights read from `source`.

    Args:
        name: of a built-in one, or package.module:Name of the user's own.
        source: a folder, or a name on the hub.

    Raises:
        ConfigError: there is none of that name.
        MissingExtraError: a package that it needs is not installed.
        InputError: its weights cannot be read.
    """
    found: type[Recognizer] = parts.resolve("recognizer", name, BUILT_IN)
    return found.load(source)
