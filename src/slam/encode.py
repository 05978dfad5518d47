"""Speech → units: a folder of recordings, any rate and format, or what `slam synthesize` wrote.

The tokenizer is fitted on a sample of the recordings, or taken from a folder of units that another encode
wrote. Each recording's fate is recorded: encoded, or failed with a reason; failures above a set share stop
the stage. Shards are written whole, so an interrupted run goes on at the first missing one.
"""

import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slam.audio import Audio, find_audio, read_audio
from slam.errors import ConfigError, InputError
from slam.pairs import PAIRS_FILE
from slam.progress import bar
from slam.run import Results, atomic_write, effort, read_json_lines, source, stage, write_json_lines
from slam.tokenizers import (
    ABOUT_FILE,
    BUILT_IN,
    SpeechTokenizer,
    check_settings,
    load_tokenizer,
    tokenizer_class,
)
from slam.tokenizers.speech_features import PINNED
from slam.units import TOKENIZER_FOLDER, Units, finish_units, read_rows, shard_path, write_shard

_MANIFEST_FILE = "manifest.jsonl"
_FAILURES_FILE = "failures.jsonl"
_NUM_UNITS = 100


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Settings of `slam encode`."""

    audio: Path = source(required=True)
    """Folder of recordings, searched through, or a folder that `slam synthesize` wrote."""
    tokenizer_from: Path | None = source()
    """A folder of units whose tokenizer to use; without one a tokenizer is fitted on `audio`."""
    tokenizer: str = "logmel-kmeans"
    """Which tokenizer to fit: a built-in one, or package.module:Name."""
    model: Path | None = source()
    """Folder of a pretrained speech model, for `hubert`; for a preset, where its model is."""
    hub_model: str | None = None
    """Or a model of the Hugging Face hub, its revision pinned: owner/name@commit."""
    layer: int | None = None
    """Whose hidden state becomes units, counted from 1."""
    normalize: bool | None = None
    """Whether each waveform is normalised; the model's own preprocessor_config.json if not given."""
    kmeans: Path | None = source()
    """File of centroids to use instead of fitting: safetensors, npy, or a pickled KMeans (never run)."""
    num_units: int | None = None
    """How many units to fit: 100 if not given; `kmeans` has its own number."""
    fit_seconds: float = 3600.0
    """Seconds of speech, drawn at random, to fit on."""
    seed: int = 0
    """Decides the fitting sample and the first centroids."""
    shard_size: int = 1000
    """Recordings in a unit of work."""
    num_workers: int = effort(lambda: os.cpu_count() or 1)
    """Recordings that are encoded at the same time."""
    max_failures: float = 0.05
    """Share of recordings that may fail before the stage does."""

    def __post_init__(self) -> None:
        if not 2 <= self.units_to_fit <= 65_000:  # noqa: PLR2004 - tokens are uint16
            raise ConfigError(f"num_units = {self.num_units}: must lie between 2 and 65,000")
        if self.shard_size < 1 or self.num_workers < 1 or self.fit_seconds <= 0:
            raise ConfigError("shard_size, num_workers and fit_seconds must be more than 0")
        if not 0 <= self.max_failures <= 1:
            raise ConfigError(f"max_failures = {self.max_failures}: is a share, between 0 and 1")
        given = ", ".join(self.model_settings)
        if given and self.tokenizer_from is not None:
            raise ConfigError(f"tokenizer_from brings its own {given}; leave out one or the other")
        if self.model is not None and self.hub_model is not None:
            raise ConfigError("give model (a folder) or hub_model (a name), not both")
        if self.hub_model is not None and not PINNED.fullmatch(self.hub_model):
            raise ConfigError(
                f"hub_model = {self.hub_model!r}: write owner/name@commit, all 40 digits of the commit"
            )
        if self.kmeans is not None and self.num_units is not None:
            raise ConfigError("kmeans has its own number of units; leave out num_units")
        if self.tokenizer_from is None and ":" not in self.tokenizer:  # a stranger's is not imported yet
            check_settings(self.tokenizer, self.model_settings)

    @property
    def units_to_fit(self) -> int:
        """`num_units`, or its default."""
        return _NUM_UNITS if self.num_units is None else self.num_units

    @property
    def model_settings(self) -> dict[str, Any]:
        """The settings that only some tokenizers have, those that were given."""
        names = ("model", "hub_model", "layer", "normalize", "kmeans")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class Recording:
    """A sound file to encode."""

    id: str
    path: Path


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


def find_recordings(folder: Path) -> list[Recording]:
    """The rows of a manifest if there is one, else every sound file under `folder`, sorted.

    Raises:
        InputError: the folder is missing or holds none, or its manifest is none of recordings.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of recordings")
    manifest = folder / _MANIFEST_FILE
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


def _tokenizer(config: EncodeConfig, recordings: Sequence[Recording], out: Path) -> SpeechTokenizer:
    """The tokenizer given, or the one fitted in an earlier sitting, or one fitted now; saved in `out`."""
    folder = out / TOKENIZER_FOLDER
    named = None if config.tokenizer in BUILT_IN else config.tokenizer
    if not (folder / ABOUT_FILE).is_file():
        if config.tokenizer_from is not None:
            tokenizer = load_tokenizer(config.tokenizer_from / TOKENIZER_FOLDER, named=named)
        else:
            check_settings(config.tokenizer, config.model_settings)
            tokenizer = tokenizer_class(config.tokenizer).fit(
                _sample(recordings, config),
                num_units=config.units_to_fit,
                seed=config.seed,
                **config.model_settings,
            )
        tokenizer.save(folder)
    return load_tokenizer(folder, named=named)


def _sample(recordings: Sequence[Recording], config: EncodeConfig) -> Iterator[Audio]:
    """Readable recordings in a random order until they last `fit_seconds`."""
    order = list(recordings)
    random.Random(config.seed).shuffle(order)  # noqa: S311 - reproducible, not secret
    seconds = 0.0
    with bar("fitting units", config.fit_seconds) as progress:
        for recording in order:
            try:
                audio = read_audio(recording.path)
            except InputError:
                continue  # it will be named and counted when its turn to be encoded comes
            yield audio
            seconds += audio.seconds
            progress.reach(seconds)
            if seconds >= config.fit_seconds:
                return


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
