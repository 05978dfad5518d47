"""The recordings of a pair's prompt and sides → two utterances, each prompt and side one after the other.

A seam between two recordings is one that nobody spoke: the voice breaks off and begins anew. Where there are
texts, speaking them as one utterance is better; where there are only recordings, this is what can be done.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.audio import Audio, read_audio, write_audio
from slam.pair_layouts import Candidate, Part


@dataclass(frozen=True)
class Joined:
    """The two utterances of a pair."""

    rows: tuple[dict[str, Any], dict[str, Any]]  # of the manifest: chosen, rejected
    seam_seconds: float  # at which both sides begin


def join_pair(pair: Candidate, name: str, sample_rate: int, out: Path, folder: Path) -> Joined:
    """Write the sound files of a pair whose parts are recordings, at one rate.

    Args:
        pair: what to join.
        name: the pair's id; the utterances' are made of it.
        sample_rate: of the files written, in Hz.
        out: what the manifest's paths are relative to.
        folder: where in it the files go.

    Raises:
        InputError: a recording cannot be read.
    """
    prompt, chosen, rejected = (
        _samples(part, sample_rate) for part in (pair.prompt, pair.chosen, pair.rejected)
    )

    def row(role: str, side: Part, samples: npt.NDArray[np.float32]) -> dict[str, Any]:
        audio = Audio(np.concatenate((prompt, samples)), sample_rate)
        path = folder / f"{name}-{role}.wav"
        write_audio(out / path, audio)
        text = f"{pair.prompt.text} {side.text}".strip()
        about = {"story": pair.story, "voice": pair.voice, "audio": str(path), "seconds": audio.seconds}
        return {"id": f"{name}-{role}", "text": text} | about

    rows = (row("chosen", pair.chosen, chosen), row("rejected", pair.rejected, rejected))
    return Joined(rows, len(prompt) / sample_rate)


def _samples(part: Part, sample_rate: int) -> npt.NDArray[np.float32]:
    if part.audio is None:  # of a pair that has no prompt; one that lacks a recording was counted as empty
        return np.zeros(0, np.float32)
    return read_audio(part.audio, sample_rate).samples
