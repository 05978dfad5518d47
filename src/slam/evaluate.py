"""Speech LMs and encoded pairs → accuracies with 95 % intervals, and every pair's scores.

The default protocol is the reference's: `<S>`, prompt, side, `<S>`; the log-likelihood is a mean over all
tokens after the first `<S>`, the last `<S>` included; a tie counts one half; the accuracy is the mean over
pairs (micro).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slam.errors import ConfigError, InputError
from slam.metrics.preference import bootstrap_mean, preferences
from slam.pairs import Pair, read_pairs
from slam.progress import bar
from slam.run import Results, source, stage, write_json, write_json_lines
from slam.units import Units, UnitsFolder, read_units

if TYPE_CHECKING:
    from slam.model import SpeechLM

RESULTS_FILE = "results.json"
KINDS_FILE = "kinds.json"
PROTOCOL = "mean log-likelihood a token, prompt and both <S> included, ties 1/2, micro average"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `slam evaluate`."""

    models: dict[str, Path] = source(required=True)
    """The speech LMs to score: the name to report → folder."""
    benchmarks: tuple[Path, ...] = source(required=True)
    """Folders of encoded pairs."""
    most_tokens: int = 8192
    """Tokens in one forward pass; changes speed, not scores."""
    seed: int = 0
    """Decides the bootstrap's resamples."""

    def __post_init__(self) -> None:
        if not self.models or not self.benchmarks:
            raise ConfigError("name at least one model and one folder of benchmark pairs")
        if self.most_tokens < 1:
            raise ConfigError("most_tokens must be at least 1")


@dataclass(frozen=True)
class Row:
    """One number of `results.json`."""

    model: str
    benchmark: str
    metric: str
    value: float
    low: float  # of the 95 % interval
    high: float
    n: int


@stage
def evaluate(config: EvaluateConfig, out: Path) -> Results:
    """Score every model on every benchmark; write `results.json`, `kinds.json` and `items.jsonl`.

    Raises:
        InputError: a model or a benchmark cannot be read, two folders hold the same benchmark, or a score
            is not a number.
        MismatchError: a benchmark was encoded by another tokenizer than a model's.
    """
    from slam.model import SpeechLM
    from slam.packing import use_packed

    rows: list[Row] = []
    kinds: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    opened = [read_units(folder) for folder in config.benchmarks]
    sets = [(units, read_pairs(units)) for units in opened]
    _check_distinct(sets)
    with bar("scoring", len(config.models) * len(sets)) as progress:
        for name, folder in config.models.items():
            speech_lm = SpeechLM.load(folder)
            use_packed(speech_lm.lm)
            for units, pairs in sets:
                speech_lm.check_tokenizer(units.tokenizer, units.tokenizer_fingerprint, units.path)
                chosen, rejected = score(speech_lm, pairs, config.most_tokens)
                values = preferences(chosen, rejected)
                for benchmark, numbers in _groups([pair.benchmark for pair in pairs]).items():
                    rows.append(_row(name, benchmark, values[numbers], config.seed))
                for key, numbers in _groups([f"{pair.benchmark}\t{pair.kind}" for pair in pairs]).items():
                    benchmark, kind = key.split("\t")
                    row = _row(name, benchmark, values[numbers], config.seed)
                    kinds.append(asdict(row) | {"kind": kind})
                items += [
                    {
                        "model": name,
                        "benchmark": pair.benchmark,
                        "kind": pair.kind,
                        "id": pair.id,
                        "chosen": c,
                        "rejected": r,
                        "value": v,
                    }
                    for pair, c, r, v in zip(
                        pairs, chosen.tolist(), rejected.tolist(), values.tolist(), strict=True
                    )
                ]
                progress.advance()
    write_json_lines(out / "items.jsonl", items)
    write_json(out / KINDS_FILE, kinds)
    write_json(out / RESULTS_FILE, [asdict(row) for row in rows])
    return {"protocol": PROTOCOL, "num_pairs": sum(len(pairs) for _, pairs in sets)}


def score(speech_lm: "SpeechLM", pairs: Sequence[Pair], most_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean log-likelihood a token of each pair's better and worse document, `([B], [B])` nats.

    Raises:
        InputError: a score is not a number.
    """
    from slam.packing import log_likelihoods

    def document(prompt: Units, side: Units) -> np.ndarray:
        return speech_lm.vocabulary.document(np.concatenate([prompt.ids, side.ids]))

    documents = [document(pair.prompt, pair.chosen) for pair in pairs]
    documents += [document(pair.prompt, pair.rejected) for pair in pairs]
    # equal documents are scored once: rounding, which differs with the place in a batch, must not break a tie
    first_seen = {one.tobytes(): one for one in documents}
    number = {key: index for index, key in enumerate(first_seen)}
    sums, counts = log_likelihoods(speech_lm.lm, list(first_seen.values()), most_tokens=most_tokens)
    means = (sums / counts)[[number[one.tobytes()] for one in documents]]
    if not np.isfinite(means).all():
        first = pairs[int(np.flatnonzero(~np.isfinite(means))[0]) % len(pairs)]
        raise InputError(
            f"pair {first.id!r}: its log-likelihood is not a number; the model's weights are broken"
        )
    return means[: len(pairs)], means[len(pairs) :]


def _check_distinct(sets: Sequence[tuple[UnitsFolder, list[Pair]]]) -> None:
    """Refuse a benchmark that is in two folders: its name would stand for two numbers."""
    owner: dict[str, Path] = {}
    for units, pairs in sets:
        for name in {pair.benchmark for pair in pairs}:
            if name in owner:
                raise InputError(
                    f"{units.path}: holds pairs of {name!r}, and so does {owner[name]}; evaluate one of them"
                )
            owner[name] = units.path


def _groups(keys: Sequence[str]) -> dict[str, list[int]]:
    """Numbers of the items of each key, keys in the order in which they first came."""
    groups: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return groups


def _row(model: str, benchmark: str, values: np.ndarray, seed: int) -> Row:
    estimate = bootstrap_mean(values, seed=seed)
    return Row(model, benchmark, "accuracy", estimate.value, estimate.low, estimate.high, estimate.n)
