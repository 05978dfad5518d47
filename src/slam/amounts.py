"""A folder or file that a recipe reads → how much it holds: measured, or as the recipe says."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from slam.audio import audio_seconds, find_audio
from slam.errors import InputError
from slam.recipe import Brought
from slam.recordings import MANIFEST_FILE
from slam.run import read_json_lines

# Slam, Table 8: 67 M tokens of LibriSpeech's 960 h; of other tokenizers the order of magnitude
TOKENS_A_SECOND = 67e6 / (960 * 3600)
WAV_BYTES_A_SECOND = 2 * 16_000
UNITS = 500  # of a tokenizer that is not fitted yet
_LOOKED_INTO = 50  # recordings whose length stands for the others'


@dataclass(frozen=True)
class Amount:
    """What a folder or file holds, as far as it is known."""

    hours: float | None = None  # of speech
    tokens: float | None = None
    pairs: float | None = None
    num_units: int = UNITS
    base: Any = None  # a model's config


def of_brought(path: Path, brought: Brought | None) -> Amount:
    """What is there, measured; or what the recipe says of it."""
    if path.is_dir():
        return _measured(path, brought)
    if brought is None:
        return Amount()
    tokens = brought.tokens
    if tokens is None and brought.hours is not None:
        tokens = brought.hours * 3600 * TOKENS_A_SECOND
    return Amount(hours=brought.hours, tokens=tokens, pairs=brought.pairs)


def _measured(folder: Path, brought: Brought | None) -> Amount:
    """Hours of a folder of recordings: its manifest's, or the bytes' by the first few's length."""
    pairs = brought.pairs if brought else None
    manifest = folder / MANIFEST_FILE
    if manifest.is_file():
        rows = read_json_lines(manifest)
        seconds = sum(float(row.get("seconds", 0)) for row in rows)
        return Amount(hours=seconds / 3600, tokens=seconds * TOKENS_A_SECOND, pairs=pairs)
    files = list(find_audio(folder))
    seconds = looked_into = 0.0
    for path in islice(files, _LOOKED_INTO):
        try:
            seconds += audio_seconds(path)
        except InputError:
            continue
        looked_into += path.stat().st_size
    if not looked_into:
        return Amount(pairs=pairs)
    seconds *= sum(path.stat().st_size for path in files) / looked_into
    return Amount(hours=seconds / 3600, tokens=seconds * TOKENS_A_SECOND, pairs=pairs)


def count(number: float | None) -> str:
    """1.4 B, 358 M, 50 k."""
    if number is None:
        return ""
    for size, sign in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{sign}"
    return f"{number:.3g}"


def duration(seconds: float | None) -> str:
    """23.5 h, 56 min, 40 s."""
    if seconds is None:
        return ""
    for size, sign in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {sign}"
    return f"{seconds:.3g} s"
