"""A step of a recipe, before it is made → what it will make, and the time, disk and memory that it takes.

Figures of others are named with their source. What nobody can know beforehand (how long encoding takes) is
not guessed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slam.amounts import TOKENS_A_SECOND, UNITS, WAV_BYTES_A_SECOND, Amount, count
from slam.budget import Budget
from slam.cards import ASSUMED_MFU, USABLE, Card
from slam.dpo import DpoConfig
from slam.errors import InputError
from slam.pretrain import PretrainConfig
from slam.recipe import Step
from slam.run import Run

TOKENS_A_PAIR = 4.5e6 / 47e3  # Slam, section 4: SpokenSwag
# Slam, Table 5: 813 updates of 64 pairs in half an hour, by 358 M parameters on an A5000
_PAIRS_A_SECOND, _OF_PARAMETERS, _OF_FLOPS = 813 * 64 / 1800, 358.3e6, 111e12
_UNIT_BYTES, _TOKEN_BYTES = 4, 2  # ids and durations; uint16


@dataclass(frozen=True)
class Forecast:
    """What making a step comes to."""

    makes: Amount
    says: str  # in words
    seconds: float | None = None  # of training
    trained_tokens: float | None = None
    disk: float = 0.0  # bytes that stay
    passing_disk: float = 0.0  # bytes that it needs beside them while it works
    memory: float | None = None  # bytes on the device
    needs: tuple[str, ...] = ()  # what stands in its way
    downloads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Known:
    """What is known when a step's turn comes."""

    amounts: Mapping[Path, Amount]  # of the steps before it, and of what is brought
    card: Card | None
    cards: int = 1
    done: Mapping[str, Run] = field(default_factory=dict)  # runs of steps that need not be made


def forecast(step: Step, known: Known) -> Forecast:
    """What making `step` comes to."""
    of = _FORECASTS.get(step.stage)
    return of(step.config, known) if of is not None else Forecast(Amount(), _PLAIN.get(step.stage, ""))


_PLAIN = {
    "report": "one page",
    "evaluate": "scores",
    "synthesize": "speech, or text",
    "fit-units": "a tokenizer",
    "fit-vocoder": "a vocoder",
    "fit-recognizer": "a recogniser",
}


def _found(known: Known, path: Path | None) -> Amount:
    return known.amounts.get(path, Amount()) if path is not None else Amount()


def _encode(config: Any, known: Known) -> Forecast:
    given = _found(known, config.audio)
    num_units = config.num_units or (
        _found(known, config.tokenizer_from).num_units if config.tokenizer_from else UNITS
    )
    if config.tokenizer == "logmel-kmeans" and config.tokenizer_from is None:
        num_units = config.units_to_fit
    hub = config.hub_model or _preset_model(config)
    says = f"units of {count(given.hours)} h" if given.hours else "units"
    return Forecast(
        Amount(given.hours, given.tokens, given.pairs, num_units),
        says,
        disk=_UNIT_BYTES * (given.tokens or 0),
        downloads=(hub,) if hub else (),
    )


def _preset_model(config: Any) -> str | None:
    """The model on the hub that a preset takes where no folder is given."""
    from slam.tokenizers import BUILT_IN
    from slam.tokenizers.hubert import Preset

    if config.model is not None or config.tokenizer_from is not None or config.tokenizer not in BUILT_IN:
        return None
    from slam.tokenizers import tokenizer_class

    found: Any = tokenizer_class(config.tokenizer)
    return found.hub_model if isinstance(found, Preset) else None


def _pack(config: Any, known: Known) -> Forecast:
    parts = [_found(known, path) for path in (*config.train, *config.validation)]
    train = [_found(known, path).tokens for path in config.train]
    tokens = sum(some for some in train if some is not None) or None
    if None in train:
        tokens = None
    held = sum(part.tokens or 0 for part in parts[len(config.train) :])
    amount = Amount(tokens=tokens, num_units=parts[0].num_units)
    return Forecast(amount, "token shards", disk=_TOKEN_BYTES * ((tokens or 0) + held))


def _pretrain(config: PretrainConfig, known: Known) -> Forecast:
    shards = _found(known, config.shards)
    try:
        base = _base(config, known)
    except InputError as error:
        return Forecast(Amount(), "an LM", needs=(str(error),))
    if base is None:  # of a folder that is not there yet
        return Forecast(Amount(), "an LM")
    longest = getattr(base, "max_position_embeddings", None)
    short = longest is not None and config.context > longest
    needs = [f"context = {config.context}: the base allows {longest} tokens"] if short else []
    fetched = config.hub_base if config.initialization == "twist" else None
    trained = _trained(config, base, known, shards.num_units, config.batch_tokens)
    return Forecast(
        Amount(base=base, num_units=shards.num_units),
        trained.says,
        seconds=trained.seconds,
        trained_tokens=trained.tokens,
        disk=trained.disk,
        passing_disk=trained.passing_disk,
        memory=trained.memory,
        needs=(*needs, *trained.needs),
        downloads=(fetched,) if fetched and not Path(fetched).is_dir() else (),
    )


def _base(config: PretrainConfig, known: Known) -> Any:
    """The config of the model to be trained, or None where its base is not there yet.

    Raises:
        InputError: nobody knows a base of that name.
    """
    from slam.bases import base_config

    if config.base is None:
        return base_config(config.hub_base or config.architecture)
    if (config.base / "config.json").is_file():
        return base_config(str(config.base))
    return _found(known, config.base).base


def _dpo(config: DpoConfig, known: Known) -> Forecast:
    model, pairs = _found(known, config.model), _found(known, config.pairs)
    if model.base is None:
        return Forecast(Amount(), "a tuned LM")
    step_tokens = config.batch_pairs * TOKENS_A_PAIR
    trained = _trained(config, model.base, known, model.num_units, step_tokens)
    seconds, budget = trained.seconds, Budget.parse(config.budget)
    says = trained.says
    if known.card is not None and budget.steps < math.inf and budget.seconds == math.inf:
        speed = _PAIRS_A_SECOND * known.cards * known.card.peak_flops / _OF_FLOPS
        speed *= _OF_PARAMETERS / trained.parameters
        seconds = budget.steps * config.batch_pairs / speed
    if pairs.pairs and budget.steps < math.inf:
        epochs = budget.steps * config.batch_pairs / pairs.pairs
        says += f", {epochs:.1f} epochs of {count(pairs.pairs)} pairs"
    return Forecast(
        Amount(base=model.base, num_units=model.num_units),
        says,
        seconds=seconds,
        trained_tokens=budget.steps * step_tokens if budget.steps < math.inf else None,
        disk=trained.disk,
        passing_disk=trained.passing_disk,
        memory=trained.memory,
        needs=trained.needs,
    )


@dataclass(frozen=True)
class _Trained:
    parameters: int
    says: str
    seconds: float | None
    tokens: float | None
    disk: float
    passing_disk: float
    memory: float
    needs: tuple[str, ...]


def _trained(config: Any, base: Any, known: Known, num_units: int, step_tokens: float) -> _Trained:
    """What a training of a model of this config comes to."""
    from slam.bases import num_parameters, outline
    from slam.flops import training_flops
    from slam.training_memory import training_memory

    vocabulary = num_units + 2
    lm = outline(base, vocabulary)
    parameters = num_parameters(lm)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and known.card is not None)
    rows = min(config.micro_batch_tokens, round(step_tokens))
    memory = training_memory(base, vocabulary, row_tokens=rows, muon=config.optimizer == "muon", bf16=bf16)
    needs: list[str] = []
    if known.card is not None and memory.total > USABLE * known.card.memory_gib * 2**30:
        needs.append(
            f"micro_batch_tokens = {config.micro_batch_tokens}: takes about {memory.total / 2**30:.0f} GiB, "
            f"{known.card.name} has {known.card.memory_gib:g}; lower it"
        )
    budget = Budget.parse(config.budget)
    speed = math.nan
    if known.card is not None:
        each = training_flops(lm, [config.context // 2]) / (config.context // 2)
        speed = ASSUMED_MFU * known.cards * known.card.peak_flops / each
    in_tokens = min(budget.tokens, budget.steps * step_tokens)
    seconds = min(budget.seconds, math.inf if math.isnan(speed) else in_tokens / speed)
    tokens = min(in_tokens, math.inf if math.isnan(speed) else budget.seconds * speed)
    masters, moments = 4 * parameters, memory.moments
    return _Trained(
        parameters=parameters,
        says=f"an LM of {count(parameters)} parameters",
        seconds=seconds if seconds < math.inf else None,
        tokens=tokens if tokens < math.inf else None,
        disk=masters,
        passing_disk=3 * (masters + moments),  # two checkpoints, and one that is being written
        memory=memory.total,
        needs=tuple(needs),
    )


def _build_pairs(_: Any, known: Known) -> Forecast:
    pairs = next((amount.pairs for amount in known.amounts.values() if amount.pairs), None)
    if pairs is None:
        return Forecast(Amount(), "pairs")
    seconds = pairs * TOKENS_A_PAIR / TOKENS_A_SECOND
    amount = Amount(seconds / 3600, pairs * TOKENS_A_PAIR, pairs)
    return Forecast(amount, f"{count(pairs)} pairs at most", disk=seconds * WAV_BYTES_A_SECOND)


def _import_benchmark(config: Any, known: Known) -> Forecast:
    return Forecast(_found(known, config.source), "pairs of recordings, where they lie")


def _generate(config: Any, _: Known) -> Forecast:
    sounds = config.num_prompts * (1 + len(config.models))
    seconds = (config.prompt_seconds or 0) + config.max_new_units / TOKENS_A_SECOND
    says = f"{config.num_prompts * len(config.models):,} continuations"
    return Forecast(Amount(), says, disk=sounds * seconds * WAV_BYTES_A_SECOND)


def _evaluate_generation(config: Any, _: Known) -> Forecast:
    hub: Sequence[str] = (
        ()
        if config.units_only
        else (
            *(
                (config.hub_recognizer,)
                if config.recognizer == "whisper" and not config.recognizer_from
                else ()
            ),
            *((config.hub_lm,) if config.lm is None else ()),
        )
    )
    fetched = tuple(name for name in hub if not Path(name).is_dir())
    return Forecast(Amount(), "GenPPL, auto-BLEU-2 …", downloads=fetched)


_FORECASTS: Mapping[str, Callable[[Any, Known], Forecast]] = {
    "encode": _encode,
    "pack": _pack,
    "pretrain": _pretrain,
    "dpo": _dpo,
    "build-pairs": _build_pairs,
    "import-benchmark": _import_benchmark,
    "generate": _generate,
    "evaluate-generation": _evaluate_generation,
}


def of_done(run: Run, forecast_of: Forecast) -> Amount:
    """What a finished step really holds."""
    found, results = forecast_of.makes, run.results
    tokens = found.tokens
    if run.stage == "pack":
        tokens = results["splits"]["train"]["tokens"]
    elif "num_units" in results and run.stage in ("encode", "import-units"):
        tokens = results["num_units"]
    return Amount(found.hours, tokens, results.get("num_pairs", found.pairs), found.num_units, found.base)
