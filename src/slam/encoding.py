"""What became of recordings → the shards of a folder of units, and what is said of it as a whole.

`slam encode` and `slam synthesize --units-only` write the same folder by way of this module.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from slam.errors import ConfigError
from slam.long_audio import detector
from slam.metrics.unit_quality import perplexity
from slam.run import write_json_lines
from slam.tokenizers import ABOUT_FILE, SpeechTokenizer, load_tokenizer
from slam.units import TOKENIZER_FOLDER, finish_units, read_rows, read_units, write_shard
from slam.utterances import Encoder, Outcome

MAX_SECONDS = 60.0  # a longer recording is not encoded at once
Precision = Literal["fp32", "bf16"]
_BATCH_SECONDS = 320.0


def given_tokenizer(source: Path, out: Path, named: str | None) -> SpeechTokenizer:
    """The tokenizer of the folder of units `source`, copied into `out` where it is not there yet.

    Raises:
        InputError: there is none, or it is not built in and was not named.
        MismatchError: its folder was changed.
    """
    folder = out / TOKENIZER_FOLDER
    if not (folder / ABOUT_FILE).is_file():
        load_tokenizer(source / TOKENIZER_FOLDER, named=named).save(folder)
    return load_tokenizer(folder, named=named)


def encoder(
    tokenizer: SpeechTokenizer,
    workers: ThreadPoolExecutor,
    *,
    whole: bool,
    precision: Precision = "fp32",
    max_seconds: float = MAX_SECONDS,
    voice: str = "energy",
    batch_seconds: float | None = None,
) -> Encoder:
    """The tokenizer, and how recordings are brought to it.

    Args:
        tokenizer: what encodes.
        workers: threads that read, or on a CPU encode.
        whole: a long recording stays one utterance, encoded in windows; else it is cut at silences.
        precision: what a speech model's products are computed in.
        max_seconds: a longer recording is not encoded at once.
        voice: who finds the silences.
        batch_seconds: of speech encoded together; None lets the tokenizer's device decide.

    Raises:
        ConfigError: the tokenizer has no such precision, or there is no such detector.
    """
    if batch_seconds is None:
        features = getattr(tokenizer, "features", None)  # of a model; other tokenizers compute on the CPU
        on_cpu = features is None or features.model.device.type == "cpu"
        batch_seconds = 0.0 if on_cpu else _BATCH_SECONDS
    if precision != "fp32":
        if not hasattr(tokenizer, "at_precision"):
            raise ConfigError(f"tokenizer {tokenizer.name!r} computes in fp32 only; leave out precision")
        tokenizer = tokenizer.at_precision(precision)
    return Encoder(
        tokenizer=tokenizer,
        max_seconds=max_seconds,
        detector=None if whole else detector(voice),
        batch_seconds=batch_seconds,
        workers=workers,
    )


def write_outcomes(
    out: Path, index: int, outcomes: Sequence[Outcome], inputs: list[dict[str, Any]] | None = None
) -> None:
    """Write a shard, its inputs first, so that a finished shard has told of them.

    Args:
        out: the folder of units.
        index: of the shard.
        outcomes: of its recordings, in order.
        inputs: rows that say more of the recordings than the outcomes do.
    """
    rows = [outcome.row for outcome in outcomes] if inputs is None else inputs
    write_json_lines(inputs_path(out, index), rows)
    utterances = [utterance for outcome in outcomes for utterance in outcome.utterances]
    write_shard(out, index, [units for _, units in utterances], [row for row, _ in utterances])


def inputs_path(out: Path, index: int) -> Path:
    """Where the rows of a shard's recordings stand, with their fates."""
    return out / "shards" / f"{index:05d}.inputs.jsonl"


def failed(inputs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of recordings that could not be encoded."""
    return [row for row in inputs if row["fate"] == "failed"]


def finish_encoded(out: Path, num_shards: int, tokenizer: SpeechTokenizer) -> dict[str, Any]:
    """Describe the folder as a whole; figures of its units.

    Two of them show a wrong tokenizer: how many units are in use, and their perplexity.
    """
    finish_units(
        out,
        num_units=tokenizer.num_units,
        tokenizer=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        frame_rate=tokenizer.frame_rate,
        num_shards=num_shards,
    )
    units = read_units(out)
    counts = np.bincount(units.ids, minlength=tokenizer.num_units)
    seconds = sum(row["seconds"] for row in read_rows(out, num_shards))
    return {
        "num_utterances": len(units),
        "seconds_of_speech": round(seconds, 2),
        "num_units": len(units.ids),
        "units_per_second": round(len(units.ids) / max(seconds, 1e-9), 2),
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocabulary_used": int((counts > 0).sum()),
        "vocabulary": tokenizer.num_units,
        "unit_perplexity": round(perplexity(counts), 2),
    }
