"""Speech → units: a folder of recordings, any rate and format, or what `slam synthesize` wrote.

The tokenizer is fitted on a sample of the recordings, or taken from a folder of units that another encode
wrote. Each recording's fate is recorded: encoded, or failed with a reason; failures above a set share stop
the stage. Shards are written whole, so an interrupted run goes on at the first missing one, and several
processes may share them.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slam.encoding import (
    MAX_SECONDS,
    Precision,
    encoder,
    failed,
    finish_encoded,
    given_tokenizer,
    inputs_path,
    write_outcomes,
)
from slam.errors import ConfigError, InputError
from slam.fitting import FitConfig, fitted_tokenizer
from slam.pairs import PAIRS_FILE
from slam.progress import bar
from slam.recordings import MANIFEST_FILE, Recording, find_recordings
from slam.run import Results, atomic_write, effort, read_json_lines, source, stage, write_json_lines
from slam.shares import one_process, read_share
from slam.tokenizers import SpeechTokenizer
from slam.units import TOKENIZER_FOLDER, shard_path

_FAILURES_FILE = "failures.jsonl"
_SHORTEST = 10.0  # seconds; a window of less has hardly anything between its contexts


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(FitConfig):
    """Settings of `slam encode`."""

    tokenizer_from: Path | None = source()
    """A folder of units whose tokenizer to use; without one a tokenizer is fitted on `audio`."""
    precision: Precision = "fp32"
    """What a speech model's products are computed in; bf16 changes a few units."""
    max_seconds: float = MAX_SECONDS
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
        read_share(self.shard)
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
        Unfinished: with `config.shard`, other processes have shards yet to write.
    """
    from threadpoolctl import threadpool_limits

    recordings = find_recordings(config.audio)
    with one_process(out, config.shard):
        tokenizer = _tokenizer(config, recordings, out)
    shards = [recordings[i : i + config.shard_size] for i in range(0, len(recordings), config.shard_size)]
    share = read_share(config.shard)
    mine = [index for index in range(len(shards)) if index in share]
    # reading, resampling and transforms leave the interpreter's lock, so threads are enough
    with (
        bar("encoding", sum(len(shards[index]) for index in mine)) as progress,
        threadpool_limits(1),
        ThreadPoolExecutor(config.num_workers) as workers,
    ):
        # pairs are cut by times of their whole recordings
        whole = config.long_audio == "windows" or (config.audio / PAIRS_FILE).is_file()
        at_work = encoder(
            tokenizer,
            workers,
            whole=whole,
            precision=config.precision,
            max_seconds=config.max_seconds,
            voice=config.voice,
            batch_seconds=config.batch_seconds,
        )
        failures: list[dict[str, Any]] = []
        for index in mine:
            if shard_path(out, index).is_file():
                progress.advance(len(shards[index]))
            else:
                outcomes = {}
                for number, outcome in at_work.outcomes(shards[index]):
                    outcomes[number] = outcome
                    progress.advance()
                write_outcomes(out, index, [outcomes[number] for number in range(len(shards[index]))])
            failures += failed(read_json_lines(inputs_path(out, index)))
            _check(failures, config, out, len(recordings))
    with one_process(out, config.shard):
        left = [index for index in range(len(shards)) if not shard_path(out, index).is_file()]
        share.check_joined(out, left, len(shards))
        return _join(config, out, len(shards), tokenizer, len(recordings))


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
    inputs = [row for index in range(num_shards) for row in read_json_lines(inputs_path(out, index))]
    failures = failed(inputs)
    _check(failures, config, out, num_recordings)
    write_json_lines(out / MANIFEST_FILE, inputs)
    write_json_lines(out / _FAILURES_FILE, failures)
    if (config.audio / PAIRS_FILE).is_file():
        atomic_write(out / PAIRS_FILE, (config.audio / PAIRS_FILE).read_bytes())
    found = finish_encoded(out, num_shards, tokenizer)
    counts = {
        "num_recordings": len(inputs) - len(failures),
        "num_utterances": found["num_utterances"],
        "num_failures": len(failures),
        "failures": [row["reason"] for row in failures[:20]],
    }
    return counts | found


def _tokenizer(config: EncodeConfig, recordings: Sequence[Recording], out: Path) -> SpeechTokenizer:
    """The tokenizer given, copied into `out`, or the one fitted there."""
    if config.tokenizer_from is not None:
        return given_tokenizer(config.tokenizer_from, out, config.named)
    return fitted_tokenizer(config, recordings, out / TOKENIZER_FOLDER)
