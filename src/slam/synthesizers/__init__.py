"""Synthesizers: text → speech. One file each; all keep the contract below (`tests/conformance.py`)."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from slam import parts
from slam.audio import Audio
from slam.errors import ConfigError

BUILT_IN = {
    "espeak": "slam.synthesizers.espeak:Espeak",
    "kokoro": "slam.synthesizers.kokoro:Kokoro",
    "piper": "slam.synthesizers.piper:Piper",
}


@dataclass(frozen=True)
class Utterance:
    """What to say, in which voice and how fast."""

    text: str
    voice: str
    rate: int  # words per minute


@dataclass(frozen=True)
class Speech:
    """A spoken utterance, and when each of its words began."""

    audio: Audio
    word_seconds: tuple[tuple[int, float], ...]  # (position of the word's first character, seconds)

    def seconds_at(self, character: int) -> float:
        """When the first word at or after `character` of the text began; the end if there is none."""
        return next(
            (seconds for start, seconds in self.word_seconds if start >= character), self.audio.seconds
        )


@runtime_checkable
class Synthesizer(Protocol):
    """Speaks text; the same utterance gives the same samples."""

    name: str
    version: str

    def check_voice(self, voice: str) -> None:
        """Raise `ConfigError`, listing voices that exist, if this one does not."""
        ...

    def synthesize(self, utterances: Sequence[Utterance], sample_rate: int) -> list[Speech]:
        """One `Speech` at `sample_rate` Hz for each utterance."""
        ...


def load_synthesizer(name: str, folder: Path | None = None) -> Synthesizer:
    """The synthesizer called `name`, ready to speak.

    Args:
        name: of a built-in one, or package.module:Name of the user's own.
        folder: of its voices or weights, for one that takes a `folder`.

    Raises:
        ConfigError: there is none of that name, it takes no folder, or it needs one.
        MissingExtraError: a package that it needs is not installed.
        InputError: the folder is missing or damaged.
    """
    found = parts.resolve("synthesizer", name, BUILT_IN)
    made: Synthesizer
    if folder is None:
        made = found()
    elif "folder" in inspect.signature(found).parameters:
        made = found(folder)
    else:
        raise ConfigError(f"the synthesizer {name!r} takes no folder; leave it out")
    return made
