"""Speech → units: a folder of recordings, any rate and format, or what `slam synthesize` wrote.

The tokenizer is fitted on a sample of the recordings, or taken from a folder of units that another encode
wrote. Each recording's fate is recorded: encoded, or failed with a reason; failures above a set share stop
the stage. Shards are written whole, so an interrupted run goes on at the first missing one, and several
processes may share them.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from slam.errors import ConfigError, InputError
from slam.fitting import FitConfig, fitted_tokenizer
from slam.long_audio import detector
from slam.metrics.unit_quality import perplexity
from slam.pairs import PAIRS_FILE
from slam.progress import bar
from slam.recordings import MANIFEST_FILE, Recording, find_recordings
from slam.run import (
    Results,
    Unfinished,
    atomic_write,
    effort,
    read_json_lines,
    source,
    stage,
    write_json_lines,
)
from slam.tokenizers import ABOUT_FILE, SpeechTokenizer, load_tokenizer
from slam.units import TOKENIZER_FOLDER, finish_units, read_rows, read_units, shard_path, write_shard
from slam.utterances import Encoder, Outcome

_PART = re.compile(r"(\d+)/(\d+)")
_BATCH_SECONDS = 320.0
_FAILURES_FILE = "failures.jsonl"
_SHORTEST = 10.0  # seconds; a window of less has hardly anything between its contexts


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(FitConfig):
    """Settings of `slam encode`."""

    tokenizer_from: Path | None = source()
    """A folder of units whose tokenizer to use; without one a tokenizer is fitted on `audio`."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What a speech model's products are computed in; bf16 changes a few units."""
    max_seconds: float = 60.0
    """A longer recording is not encoded at once."""
    long_audio: Literal["cut", "windows"] = "cut"
    """A long recording becomes utterances, cut at silences, or one, from overlapping windows."""
    voice: str = "energy"
    """Who finds the silences: energy, silero (an extra), or package.module:Name."""
    shard_size: int = 1000
    """Recordings in a unit of work."""
    shard: str | None = effort(None)
    """I/N: encode only each N-th shard, from the I-th on; the last process to end joins them."""
    num_workers: int = effort(lambda: os.cpu_count() or 1)
    """Recordings that are read, or on a CPU encoded, at the same time."""
    batch_seconds: float | None = effort(None)
    """Seconds of speech encoded together; if not given, 320 on an accelerator, 0 (singly) on a CPU."""
    max_failures: float = 0.05
    """Share of recordings that may fail before the stage does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard_size < 1 or self.num_workers < 1:
            raise ConfigError("shard_size and num_workers must be more than 0")
        if not 0 <= self.max_failures <= 1:
            raise ConfigError(f"max_failures = {self.max_failures}: is a share, between 0 and 1")
        if self.max_seconds < _SHORTEST:
            raise ConfigError(f"max_seconds = {self.max_seconds:g}: must be at least {_SHORTEST:g}")
        if self.batch_seconds is not None and self.batch_seconds < 0:
            raise ConfigError(f"batch_seconds = {self.batch_seconds:g}: must not be below 0")
        self.part  # noqa: B018 - reads it
        if self.tokenizer_from is None:
            self.check_settings()
        elif given := ", ".join(self.model_settings):
            raise ConfigError(f"tokenizer_from brings its own {given}; leave out one or the other")

    @property
    def part(self) -> tuple[int, int]:
        """Which shards are this process's: `(first, step)`.

        Raises:
            ConfigError: `shard` is not I/N with 1 ≤ I ≤ N.
        """
        if self.shard is None:
            return 0, 1
        found = _PART.fullmatch(self.shard)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigError(f"shard = {self.shard!r}: write I/N, from 1/N to N/N")
        return int(found[1]) - 1, int(found[2])


@stage
def encode(config: EncodeConfig, out: Path) -> Results:
    """Encode every recording of `config.audio` into the folder `out`.

    Raises:
        InputError: there is no recording, or too large a share of them cannot be read.
        MismatchError: the tokenizer's folder was changed.
        Unfinished: with `config.shard`, other processes have shards yet to write.
    """
    from threadpoolctl import threadpool_limits

    recordings = find_recordings(config.audio)
    with _one_process(config, out):
        tokenizer = _tokenizer(config, recordings, out)
    shards = [recordings[i : i + config.shard_size] for i in range(0, len(recordings), config.shard_size)]
    first, step = config.part
    mine = range(first, len(shards), step)
    # reading, resampling and transforms leave the interpreter's lock, so threads are enough
    with (
        bar("encoding", sum(len(shards[index]) for index in mine)) as progress,
        threadpool_limits(1),
        ThreadPoolExecutor(config.num_workers) as workers,
    ):
        encoder = _encoder(config, tokenizer, workers)
        failures: list[dict[str, Any]] = []
        for index in mine:
            if shard_path(out, index).is_file():
                progress.advance(len(shards[index]))
            else:
                outcomes = {}
                for number, outcome in encoder.outcomes(shards[index]):
                    outcomes[number] = outcome
                    progress.advance()
                _write(out, index, [outcomes[number] for number in range(len(shards[index]))])
            failures += _failures(read_json_lines(_inputs_path(out, index)))
            _check(failures, config, out, len(recordings))
    with _one_process(config, out):
        left = [index for index in range(len(shards)) if not shard_path(out, index).is_file()]
        if left:
            raise Unfinished(
                f"{out}: part {config.shard} is done; {len(left)} of {len(shards)} shards are other parts' "
                "to write, and the last to end joins them"
            )
        return _join(config, out, len(shards), tokenizer, len(recordings))


@contextmanager
def _one_process(config: EncodeConfig, out: Path) -> Iterator[None]:
    """Alone among those that share the folder."""
    from filelock import FileLock

    if config.shard is None:
        yield
        return
    with FileLock(out / ".lock"):
        yield


def _encoder(config: EncodeConfig, tokenizer: SpeechTokenizer, workers: ThreadPoolExecutor) -> Encoder:
    seconds = config.batch_seconds
    if seconds is None:
        features = getattr(tokenizer, "features", None)  # of a model; other tokenizers compute on the CPU
        seconds = 0.0 if features is None or features.model.device.type == "cpu" else _BATCH_SECONDS
    if config.precision != "fp32":
        if not hasattr(tokenizer, "at_precision"):
            raise ConfigError(f"tokenizer {tokenizer.name!r} computes in fp32 only; leave out precision")
        tokenizer = tokenizer.at_precision(config.precision)
    # pairs are cut by times of their whole recordings
    whole = config.long_audio == "windows" or (config.audio / PAIRS_FILE).is_file()
    return Encoder(
        tokenizer=tokenizer,
        max_seconds=config.max_seconds,
        detector=None if whole else detector(config.voice),
        batch_seconds=seconds,
        workers=workers,
    )


def _write(out: Path, index: int, outcomes: Sequence[Outcome]) -> None:
    """A shard's inputs first, so that a finished shard has told of them."""
    write_json_lines(_inputs_path(out, index), [outcome.row for outcome in outcomes])
    utterances = [utterance for outcome in outcomes for utterance in outcome.utterances]
    write_shard(out, index, [units for _, units in utterances], [row for row, _ in utterances])


def _inputs_path(out: Path, index: int) -> Path:
    return out / "shards" / f"{index:05d}.inputs.jsonl"


def _failures(inputs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in inputs if row["fate"] == "failed"]


def _check(failures: list[dict[str, Any]], config: EncodeConfig, out: Path, num_recordings: int) -> None:
    """Stop as soon as more recordings have failed than may."""
    if len(failures) > config.max_failures * num_recordings:
        write_json_lines(out / _FAILURES_FILE, failures)
        raise InputError(
            f"{config.audio}: {len(failures)} of {num_recordings} recordings failed, "
            f"the first: {failures[0]['reason']}; all are named in {out / _FAILURES_FILE}"
        )


def _join(
    config: EncodeConfig, out: Path, num_shards: int, tokenizer: SpeechTokenizer, num_recordings: int
) -> Results:
    """Describe the folder as a whole."""
    inputs = [row for index in range(num_shards) for row in read_json_lines(_inputs_path(out, index))]
    failures = _failures(inputs)
    _check(failures, config, out, num_recordings)
    write_json_lines(out / MANIFEST_FILE, inputs)
    write_json_lines(out / _FAILURES_FILE, failures)
    if (config.audio / PAIRS_FILE).is_file():
        atomic_write(out / PAIRS_FILE, (config.audio / PAIRS_FILE).read_bytes())
    finish_units(
        out,
        num_units=tokenizer.num_units,
        tokenizer=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        frame_rate=tokenizer.frame_rate,
        num_shards=num_shards,
    )
    return _results(out, num_shards, tokenizer, inputs)


def _tokenizer(config: EncodeConfig, recordings: Sequence[Recording], out: Path) -> SpeechTokenizer:
    """The tokenizer given, copied into `out`, or the one fitted there."""
    folder = out / TOKENIZER_FOLDER
    if config.tokenizer_from is not None and not (folder / ABOUT_FILE).is_file():
        load_tokenizer(config.tokenizer_from / TOKENIZER_FOLDER, named=config.named).save(folder)
    return fitted_tokenizer(config, recordings, folder)


def _results(
    out: Path, num_shards: int, tokenizer: SpeechTokenizer, inputs: Sequence[dict[str, Any]]
) -> Results:
    """Counts, and the two figures by which a wrong tokenizer shows: units used and their perplexity."""
    failures = _failures(inputs)
    rows = list(read_rows(out, num_shards))
    units = read_units(out)
    counts = np.bincount(units.ids, minlength=tokenizer.num_units)
    seconds = sum(row["seconds"] for row in rows)
    return {
        "num_recordings": len(inputs) - len(failures),
        "num_utterances": len(rows),
        "num_failures": len(failures),
        "failures": [row["reason"] for row in failures[:20]],
        "seconds_of_speech": round(seconds, 2),
        "num_units": len(units.ids),
        "units_per_second": round(len(units.ids) / max(seconds, 1e-9), 2),
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocabulary_used": int((counts > 0).sum()),
        "vocabulary": tokenizer.num_units,
        "unit_perplexity": round(perplexity(counts), 2),
    }
