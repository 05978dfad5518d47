"""Speech → units: a folder of recordings, any rate and format, or what `slam synthesize` wrote.

The tokenizer is fitted on a sample of the recordings, or taken from a folder of units that another encode
wrote. Each recording's fate is recorded: encoded, or failed with a reason; failures above a set share stop
the stage. Shards are written whole, so an interrupted run goes on at the first missing one.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slam.audio import read_audio
from slam.errors import ConfigError, InputError
from slam.fitting import FitConfig, fitted_tokenizer
from slam.pairs import PAIRS_FILE
from slam.progress import bar
from slam.recordings import Recording, find_recordings
from slam.run import Results, atomic_write, effort, read_json_lines, source, stage, write_json_lines
from slam.tokenizers import ABOUT_FILE, SpeechTokenizer, load_tokenizer
from slam.units import TOKENIZER_FOLDER, Units, finish_units, read_rows, shard_path, write_shard

_FAILURES_FILE = "failures.jsonl"


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(FitConfig):
    """Settings of `slam encode`."""

    tokenizer_from: Path | None = source()
    """A folder of units whose tokenizer to use; without one a tokenizer is fitted on `audio`."""
    shard_size: int = 1000
    """Recordings in a unit of work."""
    num_workers: int = effort(lambda: os.cpu_count() or 1)
    """Recordings that are encoded at the same time."""
    max_failures: float = 0.05
    """Share of recordings that may fail before the stage does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard_size < 1 or self.num_workers < 1:
            raise ConfigError("shard_size and num_workers must be more than 0")
        if not 0 <= self.max_failures <= 1:
            raise ConfigError(f"max_failures = {self.max_failures}: is a share, between 0 and 1")
        if self.tokenizer_from is None:
            self.check_settings()
        elif given := ", ".join(self.model_settings):
            raise ConfigError(f"tokenizer_from brings its own {given}; leave out one or the other")


@stage
def encode(config: EncodeConfig, out: Path) -> Results:
    """Encode every recording of `config.audio` into the folder `out`.

    Raises:
        InputError: there is no recording, or too large a share of them cannot be read.
        MismatchError: the tokenizer's folder was changed.
    """
    from threadpoolctl import threadpool_limits

    recordings = find_recordings(config.audio)
    tokenizer = _tokenizer(config, recordings, out)
    shards = [recordings[i : i + config.shard_size] for i in range(0, len(recordings), config.shard_size)]
    # reading, resampling and transforms leave the interpreter's lock, so threads are enough
    with (
        bar("encoding", len(recordings)) as progress,
        threadpool_limits(1),
        ThreadPoolExecutor(config.num_workers) as workers,
    ):
        for index, shard in enumerate(shards):
            if shard_path(out, index).is_file():
                progress.advance(len(shard))
                continue
            units, rows = [], []
            for row, encoded in workers.map(partial(_encode, tokenizer=tokenizer), shard):
                rows.append(row)
                if encoded is not None:
                    units.append(encoded)
                progress.advance()
            _write(out, index, units, rows)
    failures = [row for index in range(len(shards)) for row in read_json_lines(_failures_path(out, index))]
    write_json_lines(out / _FAILURES_FILE, failures)
    if len(failures) > config.max_failures * len(recordings):
        raise InputError(
            f"{config.audio}: {len(failures)} of {len(recordings)} recordings failed, "
            f"the first: {failures[0]['reason']}; all are named in {out / _FAILURES_FILE}"
        )
    if (config.audio / PAIRS_FILE).is_file():
        atomic_write(out / PAIRS_FILE, (config.audio / PAIRS_FILE).read_bytes())
    finish_units(
        out,
        num_units=tokenizer.num_units,
        tokenizer=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        frame_rate=tokenizer.frame_rate,
        num_shards=len(shards),
    )
    return _results(out, len(shards), tokenizer, failures)


def _tokenizer(config: EncodeConfig, recordings: Sequence[Recording], out: Path) -> SpeechTokenizer:
    """The tokenizer given, copied into `out`, or the one fitted there."""
    folder = out / TOKENIZER_FOLDER
    if config.tokenizer_from is not None and not (folder / ABOUT_FILE).is_file():
        load_tokenizer(config.tokenizer_from / TOKENIZER_FOLDER, named=config.named).save(folder)
    return fitted_tokenizer(config, recordings, folder)


def _encode(recording: Recording, tokenizer: SpeechTokenizer) -> tuple[dict[str, Any], Units | None]:
    """The recording's manifest row and its units, or a row with the reason and None."""
    try:
        audio = read_audio(recording.path, tokenizer.sample_rate)
        units = tokenizer.encode([audio])[0]
    except InputError as error:
        return {"id": recording.id, "reason": str(error)}, None
    row = {"id": recording.id, "seconds": audio.seconds, "num_units": len(units)}
    return row, units


def _write(out: Path, index: int, units: Sequence[Units], rows: list[dict[str, Any]]) -> None:
    """A shard's failures first, so that a finished shard has told of them."""
    write_json_lines(_failures_path(out, index), [row for row in rows if "reason" in row])
    write_shard(out, index, units, [row for row in rows if "reason" not in row])


def _failures_path(out: Path, index: int) -> Path:
    return out / "shards" / f"{index:05d}.failures.jsonl"


def _results(
    out: Path, num_shards: int, tokenizer: SpeechTokenizer, failures: list[dict[str, Any]]
) -> Results:
    """Counts, and the two figures by which a wrong tokenizer shows: units used and their perplexity."""
    from slam.units import read_units

    rows = list(read_rows(out, num_shards))
    units = read_units(out)
    share = np.bincount(units.ids, minlength=tokenizer.num_units) / max(1, len(units.ids))
    used = share[share > 0]
    seconds = sum(row["seconds"] for row in rows)
    return {
        "num_recordings": len(rows),
        "num_failures": len(failures),
        "failures": [row["reason"] for row in failures[:20]],
        "seconds_of_speech": round(seconds, 2),
        "num_units": len(units.ids),
        "units_per_second": round(len(units.ids) / max(seconds, 1e-9), 2),
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocabulary_used": int((share > 0).sum()),
        "vocabulary": tokenizer.num_units,
        "unit_perplexity": round(float(np.exp(-(used * np.log(used)).sum())), 2),
    }
