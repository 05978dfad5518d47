"""Speech LMs and benchmark pairs → accuracies with 95 % intervals, differences, floors, every pair's scores.

Benchmarks are encoded pairs or recordings; recordings are encoded once for each tokenizer. The default
protocol is the paper's (`slam.protocols`). The accuracy is the mean over pairs (micro); the mean over kinds
(macro) and over items (voices first) stand beside it where they say something else.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from slam.benchmark_units import (
    Benchmark,
    Encoders,
    default_cache,
    open_benchmark,
    tokenizers_in,
    utterances,
)
from slam.errors import ConfigError, InputError, MismatchError
from slam.floors import length_floor, unigram_floor, unit_counts
from slam.metrics.preference import (
    Estimate,
    Numbers,
    bootstrap_mean,
    groups,
    item_values,
    macro_mean,
    paired_difference,
    preferences,
)
from slam.pairs import PairRow
from slam.progress import bar
from slam.protocols import DEFAULT, Protocol, Utterances, read_protocol
from slam.run import Results, atomic_write, effort, replacing, source, stage, write_json
from slam.score_tables import markdown
from slam.units import read_units

RESULTS_FILE = "results.json"
GROUPS_FILE = "groups.json"
COMPARISONS_FILE = "comparisons.json"
FLOORS_FILE = "floors.json"
ITEMS_FILE = "items.jsonl"
PAGE_FILE = "scores.md"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `slam evaluate`."""

    models: dict[str, Path] = source(required=True)
    """The speech LMs to score: the name to report → folder."""
    benchmarks: tuple[Path, ...] = source(required=True)
    """Folders of pairs, encoded or as recordings."""
    protocols: tuple[str, ...] = (DEFAULT,)
    """How pairs are scored, the first the one that is reported: slam, slam+continuation, slam+sum …"""
    tokenizer_from: tuple[Path, ...] = source(())
    """Folders with the models' tokenizers, where benchmarks are recordings."""
    tokenizer: str | None = None
    """The name of that tokenizer, package.module:Name, if it is not a built-in one."""
    unigram_from: tuple[Path, ...] = source(())
    """Folders of units whose frequencies the unigram floor knows; without any, the benchmark's own."""
    max_pairs: int | None = None
    """At most so many pairs of each benchmark, drawn by the seed."""
    seed: int = 0
    """Decides resamples, and which pairs are drawn."""
    most_tokens: int | None = effort(None)
    """Tokens in one forward pass, if not as the device likes it; changes speed, not scores."""
    cache: Path | None = effort(None)
    """Folder where units of recordings are kept; if not given, $SLAM_CACHE or the user's cache folder."""
    num_workers: int = effort(lambda: os.cpu_count() or 1)
    """Recordings that are read, or on a CPU encoded, at the same time."""

    def __post_init__(self) -> None:
        if not self.models or not self.benchmarks:
            raise ConfigError("name at least one model and one folder of benchmark pairs")
        if not self.protocols or len(set(self.protocols)) < len(self.protocols):
            raise ConfigError("protocols: name at least one, and each once")
        for name in self.protocols:
            read_protocol(name)
        for name in ("most_tokens", "num_workers", "max_pairs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1")


@dataclass(frozen=True)
class Set:
    """The pairs of one benchmark."""

    name: str
    folder: Benchmark
    rows: tuple[PairRow, ...]

    @cached_property
    def clusters(self) -> list[str]:
        """`[B]`: what each pair is resampled with."""
        return [row.resampled_with for row in self.rows]

    @cached_property
    def kinds(self) -> list[str]:
        """`[B]`."""
        return [row.kind for row in self.rows]

    @cached_property
    def items(self) -> list[str]:
        """`[B]`: what each pair asks, whoever says it."""
        return [row.item or row.id for row in self.rows]

    def groupings(self) -> Iterator[tuple[str, list[str]]]:
        """Every way in which the pairs are divided, and the group of each pair."""
        yield "kind", self.kinds
        for name in dict.fromkeys(name for row in self.rows for name in row.groups):
            yield name, [row.groups.get(name, "") for row in self.rows]


@stage
def evaluate(config: EvaluateConfig, out: Path) -> Results:
    """Score every model on every benchmark into the folder `out`.

    Writes `results.json`, `groups.json`, `comparisons.json`, `floors.json`, `items.jsonl` and `scores.md`.

    Raises:
        InputError: a model or a benchmark cannot be read, two folders hold the same benchmark, or a score
            is not a number.
        MismatchError: a benchmark was encoded by another tokenizer than a model's.
    """
    from slam.model import SpeechLM, read_about
    from slam.packing import use_packed
    from slam.pair_scoring import score_pairs

    sets = _sets(config)
    protocols = [read_protocol(name) for name in config.protocols]
    encoders = Encoders(
        folders=tokenizers_in(config.tokenizer_from),
        named=config.tokenizer,
        cache=config.cache or default_cache(),
        num_workers=config.num_workers,
    )
    speakers = {name: read_about(folder) for name, folder in config.models.items()}
    encoded: dict[str, list[list[Utterances]]] = {}  # by tokenizer: all is encoded before anything is scored
    for about in speakers.values():
        spoken = (about.tokenizer, about.tokenizer_fingerprint)
        if spoken[1] not in encoded:
            encoded[spoken[1]] = [
                utterances(one.rows, encoders.units(one.folder, *spoken), one.folder.path) for one in sets
            ]
    values: dict[str, list[Numbers]] = {}  # [P, B] of each set
    rows: list[dict[str, Any]] = []
    divided: list[dict[str, Any]] = []
    total = len(config.models) * sum(len(one.rows) for one in sets)
    with (
        bar("scoring", total) as progress,
        replacing(out / ITEMS_FILE) as partial,
        partial.open("w") as items,
    ):
        for name, folder in config.models.items():
            speech_lm = SpeechLM.load(folder)
            use_packed(speech_lm.lm)
            values[name] = []
            for one, pairs in zip(sets, encoded[speakers[name].tokenizer_fingerprint], strict=True):
                scores = score_pairs(
                    speech_lm, pairs, protocols, most_tokens=config.most_tokens, advance=progress.advance
                )
                values[name].append(preferences(scores[:, :, 0], scores[:, :, 1]))
                for protocol, by_pair, judged in zip(protocols, scores, values[name][-1], strict=True):
                    of = {"model": name, "benchmark": one.name, "protocol": protocol.name}
                    rows += [of | row for row in _accuracies(one, judged, config.seed)]
                    divided += [of | row for row in _by_group(one, judged, config.seed)]
                    items.writelines(_items(of, one.rows, by_pair, judged))
    write_json(out / GROUPS_FILE, divided)
    comparisons = list(_comparisons(sets, protocols, values, config.seed))
    floors = list(_floors(sets, encoded, config))
    words = {protocol.name: protocol.words for protocol in protocols}
    write_json(out / COMPARISONS_FILE, comparisons)
    write_json(out / FLOORS_FILE, floors)
    atomic_write(out / PAGE_FILE, markdown(rows, divided, comparisons, floors, words))
    write_json(out / RESULTS_FILE, rows)
    return {"num_pairs": sum(len(one.rows) for one in sets), "protocols": words}


def _sets(config: EvaluateConfig) -> list[Set]:
    """The benchmarks of all folders, in order; pairs that are not drawn are left out.

    Raises:
        InputError: a benchmark is in two folders: its name would stand for two numbers.
    """
    sets: dict[str, Set] = {}
    for path in config.benchmarks:
        folder = open_benchmark(path)
        for name, numbers in groups([row.benchmark for row in folder.rows]).items():
            if name in sets:
                raise InputError(
                    f"{path}: holds pairs of {name!r}, and so does {sets[name].folder.path}; "
                    "evaluate one of them"
                )
            drawn = numbers
            if config.max_pairs is not None and len(numbers) > config.max_pairs:
                generator = np.random.default_rng(config.seed)
                drawn = sorted(generator.choice(numbers, config.max_pairs, replace=False).tolist())
            sets[name] = Set(name, folder, tuple(folder.rows[number] for number in drawn))
    return list(sets.values())


def _numbers(metric: str, estimate: Estimate) -> dict[str, Any]:
    return {"metric": metric} | asdict(estimate)


def _accuracies(one: Set, values: Numbers, seed: int) -> Iterator[dict[str, Any]]:
    """The mean over pairs, and where they say something else the means over kinds and over items."""
    yield _numbers("accuracy", bootstrap_mean(values, one.clusters, seed=seed))
    if len(set(one.kinds)) > 1:
        yield _numbers("accuracy_macro", macro_mean(values, one.kinds, one.clusters, seed=seed))
    if len(set(one.items)) < len(one.items):
        means, firsts = item_values(values, one.items)
        clusters = [one.clusters[number] for number in firsts]
        yield _numbers("accuracy_by_item", bootstrap_mean(means, clusters, seed=seed))


def _by_group(one: Set, values: Numbers, seed: int) -> Iterator[dict[str, Any]]:
    """The accuracy of each group of each grouping."""
    for grouping, keys in one.groupings():
        for group, numbers in groups(keys).items():
            clusters = [one.clusters[number] for number in numbers]
            estimate = bootstrap_mean(values[numbers], clusters, seed=seed)
            yield _numbers("accuracy", estimate) | {"grouping": grouping, "group": group}


def _items(of: Mapping[str, str], rows: Sequence[PairRow], scores: Numbers, values: Numbers) -> Iterator[str]:
    """A line a pair."""
    for row, (chosen, rejected), value in zip(rows, scores.tolist(), values.tolist(), strict=True):
        content = {"kind": row.kind, "id": row.id, "chosen": chosen, "rejected": rejected, "value": value}
        yield json.dumps(dict(of) | content, ensure_ascii=False) + "\n"


def _comparisons(
    sets: Sequence[Set], protocols: Sequence[Protocol], values: Mapping[str, list[Numbers]], seed: int
) -> Iterator[dict[str, Any]]:
    """Each model against each that was named before it, on the same pairs."""
    for number, one in enumerate(sets):
        for index, protocol in enumerate(protocols):
            for other, model in combinations(values, 2):
                found = paired_difference(
                    values[model][number][index], values[other][number][index], one.clusters, seed=seed
                )
                about = {"benchmark": one.name, "protocol": protocol.name, "model": model, "other": other}
                difference = {"difference" if key == "value" else key: v for key, v in asdict(found).items()}
                yield about | difference


def _floors(
    sets: Sequence[Set], encoded: Mapping[str, list[list[Utterances]]], config: EvaluateConfig
) -> Iterator[dict[str, Any]]:
    """What scorers reach that know nothing but lengths, or how frequent units are."""
    known = [read_units(folder) for folder in config.unigram_from]
    if strange := [units for units in known if units.tokenizer_fingerprint not in encoded]:
        raise MismatchError(
            f"{strange[0].path}: no model here speaks its units, of {strange[0].tokenizer} "
            f"{strange[0].tokenizer_fingerprint}; leave it out of unigram_from"
        )
    for fingerprint, benchmarks in encoded.items():
        counted = [units for units in known if units.tokenizer_fingerprint == fingerprint]
        for one, pairs in zip(sets, benchmarks, strict=True):
            own = [side.ids for pair in pairs for side in (pair.chosen, pair.rejected)]
            counts = unit_counts([units.ids for units in counted] or own)
            about = {"benchmark": one.name, "tokenizer_fingerprint": fingerprint}
            yield about | length_floor(pairs, one.clusters, config.seed)
            yield about | unigram_floor(pairs, one.clusters, counts, config.seed)
