"""Vocoders: units → audio. One file each; all keep the contract below (`tests/conformance.py`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy.typing as npt

from slam import parts
from slam.audio import Audio
from slam.tokenizers import SpeechTokenizer
from slam.units import Units

BUILT_IN = {
    "griffin-lim": "slam.vocoders.griffin_lim:GriffinLim",
    "unit-hifigan": "slam.vocoders.unit_hifigan:UnitHiFiGAN",
    "unit-mel": "slam.vocoders.unit_mel:UnitMel",
}


@runtime_checkable
class Vocoder(Protocol):
    """Speaks units; units without durations are given likely ones."""

    name: str
    sample_rate: int  # Hz of what it makes

    @classmethod
    def for_tokenizer(cls, tokenizer: SpeechTokenizer, *, folder: Path | None) -> Self:
        """The vocoder of this tokenizer's units, from `folder` if it has weights of its own.

        `ConfigError` if it cannot speak these units or misses its folder, `MismatchError` if the folder's
        vocoder was made for other units, `InputError` if the folder is damaged.
        """
        ...

    def durations(self, units: Units) -> npt.NDArray[Any]:
        """Likely frames of each unit, `[N]`, at least one: those that `decode` gives units without any.

        All frames of a vocoder have equally many samples.
        """
        ...

    def decode(self, batch: Sequence[Units]) -> list[Audio]:
        """One `Audio` for each `Units`."""
        ...


def load_vocoder(name: str, tokenizer: SpeechTokenizer, folder: Path | None = None) -> Vocoder:
    """The vocoder called `name` for this tokenizer's units, its weights read from `folder`.

    Raises:
        ConfigError: there is none of that name, it does not speak these units, or it needs a folder.
        MismatchError: the folder's vocoder was made for other units.
        InputError: the folder is missing or damaged.
    """
    found: type[Vocoder] = parts.resolve("vocoder", name, BUILT_IN)
    return found.for_tokenizer(tokenizer, folder=folder)
