"""A folder → its recordings: those that its manifest names, or every sound file; and a sample of them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam.audio import Audio, find_audio, read_blocks
from slam.errors import InputError
from slam.progress import bar
from slam.run import read_json_lines

MANIFEST_FILE = "manifest.jsonl"
BLOCK_SECONDS = 60.0  # of a long recording that are in memory at a time


@dataclass(frozen=True)
class Recording:
    """A sound file to encode."""

    id: str
    path: Path


def find_recordings(folder: Path) -> list[Recording]:
    """The rows of a manifest if there is one, else every sound file under `folder`, sorted.

    Raises:
        InputError: the folder is missing or holds none, or its manifest is none of recordings.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of recordings")
    manifest = folder / MANIFEST_FILE
    if manifest.is_file():
        rows = read_json_lines(manifest)
        recordings = list(_listed(manifest, rows))
    else:
        recordings = [Recording(str(path.relative_to(folder)), path) for path in find_audio(folder)]
    if not recordings:
        raise InputError(f"{folder}: holds no recordings (wav, flac, ogg, mp3 …)")
    return recordings


def _listed(manifest: Path, rows: Sequence[dict[str, Any]]) -> Iterator[Recording]:
    """The recordings that a manifest names, each once."""
    seen = set()
    for number, row in enumerate(rows, 1):
        if "audio" not in row:
            raise InputError(
                f'{manifest}: row {number} has no "audio"; text without sound? synthesize without text_only'
            )
        name = row.get("id")
        if not isinstance(name, str) or name in seen:
            raise InputError(f"{manifest}: row {number}: the id {name!r} is missing or was given before")
        seen.add(name)
        yield Recording(name, manifest.parent / row["audio"])


def sample_recordings(recordings: Sequence[Recording], *, seconds: float, seed: int) -> Iterator[Audio]:
    """Readable recordings in an order that `seed` decides, until they last `seconds`; long ones in blocks."""
    order = list(recordings)
    random.Random(seed).shuffle(order)  # noqa: S311 - reproducible, not secret
    total = 0.0
    with bar("fitting units", seconds) as progress:
        for recording in order:
            try:
                for audio in read_blocks(recording.path, BLOCK_SECONDS):
                    yield audio
                    total += audio.seconds
                    progress.reach(total)
                    if total >= seconds:
                        return
            except InputError:
                continue  # it will be named and counted when its turn to be encoded comes
