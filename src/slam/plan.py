"""A budget, a machine and data → which base to train, what it will see of the data, and the loss to expect.

Speed and memory are measured by trying (`slam.probing`); on a machine that is not here they are estimates,
and said to be. The loss is what scaling laws predict: the published one, and the user's own where a study
has fitted it. No torch here until a plan is made: settings are read by `slam --help`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slam.architecture import Architecture
from slam.budget import Budget
from slam.cards import Card, card_of, find_card
from slam.errors import ConfigError, InputError
from slam.plan_data import Corpus, Row, read_corpus, read_law
from slam.pretrain import PretrainConfig
from slam.scaling_law import PUBLISHED, ScalingLaw

_CPU_SIZES = (
    (96, 256, 4, 2),
    (192, 512, 4, 4),
    (256, 704, 6, 4),
    (384, 1024, 8, 6),
)  # the second: the demo's
CPU_SIZES = {
    f"qwen2 {width} x {layers}": Architecture(
        hidden_size=width, intermediate_size=inner, num_layers=layers, num_heads=heads
    )
    for width, inner, layers, heads in _CPU_SIZES
}
# The paper's best base saw 1.4 B tokens in its day, 3.9 for each of its 358 M parameters (Table 3).
TOKENS_A_PARAMETER = 3.9


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What is planned for."""

    budget: str
    """What pre-training may spend: 24h, 1.4B tokens, 500 steps, or the first of several."""
    gpu: str | None = None
    """The GPU to plan for, such as H200; if it is not here, figures are estimates."""
    data: tuple[Path, ...] = ()
    """Token shards that slam pack wrote (one folder), or folders of units."""
    bases: tuple[str, ...] = ()
    """Folders or hub names of text LMs; if none, the paper's on a GPU, small sizes on a CPU."""
    law: Path | None = None
    """The study.json of a study of yours that fitted a law."""
    context: int = 1024
    """Most tokens in a document."""
    batch_tokens: int | None = None
    """Tokens in an update: 131,072 on a GPU, 2,048 on a CPU, if not given."""
    micro_batch_tokens: tuple[int, ...] = ()
    """Sizes of a forward pass to try; if none, 8,192 and 32,768 on a GPU, 1,024 and 2,048 on a CPU."""
    seconds: float = 120.0
    """How long to measure, about; what is left then is estimated from what was measured."""

    def __post_init__(self) -> None:
        Budget.parse(self.budget).check()
        for name in ("context", "seconds", "batch_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} = {value}: must be at least 1")
        if any(size < 1 for size in self.micro_batch_tokens):
            raise ConfigError("micro_batch_tokens: each must be at least 1")


@dataclass(frozen=True)
class Plan:
    """What was found out."""

    settings: PlanSettings
    machine: str
    estimated: bool  # whether nothing was measured
    corpus: Corpus
    batch_tokens: int
    optimizer: str
    rows: tuple[Row, ...]
    best: Row
    reason: str
    remarks: tuple[str, ...] = ()


def make_plan(settings: PlanSettings) -> Plan:
    """Measure or estimate every base, and recommend one.

    Raises:
        ConfigError: the GPU is not known, or the budget buys too few updates with every base.
        InputError: data, a base or the law cannot be read, or no base fits.
        MismatchError: data are of different tokenizers.
    """
    from slam.candidates import estimated_rows, measured_rows
    from slam.probing import Trial

    wanted = find_card(settings.gpu) if settings.gpu is not None else None
    corpus = read_corpus(settings.data, settings.context)
    own = read_law(settings.law) if settings.law is not None else None
    place = _place(wanted)
    batch = settings.batch_tokens or (131_072 if place.gpu else 2048)
    sizes = settings.micro_batch_tokens or ((8192, 32_768) if place.gpu else (1024, 2048))
    names = _names(settings, gpu=place.gpu)
    config = PretrainConfig(
        shards=Path(), budget="1000000 steps", context=settings.context, batch_tokens=batch, on_spike="skip"
    )
    trials = [
        Trial(
            name=name, base=CPU_SIZES.get(name, name), lengths=corpus.lengths, num_units=corpus.num_units,
            config=replace(config, micro_batch_tokens=size),
        )
        for size in sorted({min(size, batch) for size in sizes})
        for name in names
    ]  # fmt: skip
    if place.away is not None:
        rows = estimated_rows(trials, place.away)
    else:
        rows = measured_rows(trials, settings.seconds)
    rows = [_bought(row, batch, settings, corpus, own) for row in rows]
    rows.sort(key=lambda row: (row.parameters, row.micro_batch_tokens))
    best, reason = recommend(rows, started=not set(names) & set(CPU_SIZES), own=own is not None)
    return Plan(
        settings=settings, machine=place.said, estimated=place.away is not None, corpus=corpus,
        batch_tokens=batch, optimizer=config.optimizer, rows=tuple(rows), best=best, reason=reason,
        remarks=_remarks(corpus, own),
    )  # fmt: skip


@dataclass(frozen=True)
class _Place:
    """Where the training is to be."""

    said: str
    gpu: bool
    away: Card | None = None  # a card that is not here


def _place(wanted: Card | None) -> _Place:
    import torch

    here = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if wanted is not None and (here is None or card_of(here) != wanted):
        return _Place(f"{wanted.name} ({wanted.memory_gib:g} GiB), which is not here", gpu=True, away=wanted)
    return _Place(here or "this machine's CPU", gpu=here is not None)


def _names(settings: PlanSettings, *, gpu: bool) -> Sequence[str]:
    """The bases to look at."""
    if settings.bases:
        return tuple(dict.fromkeys(settings.bases))
    if not gpu:
        return tuple(CPU_SIZES)
    from slam.bases import known_bases

    return tuple(known_bases())


def _bought(row: Row, batch: int, settings: PlanSettings, corpus: Corpus, own: ScalingLaw | None) -> Row:
    """What the budget buys of a base at its speed, and what the laws expect of it."""
    speed = row.tokens_per_second
    if speed is None:
        return row
    budget = Budget.parse(settings.budget)
    tokens = min(budget.tokens, budget.steps * batch, budget.seconds * speed)
    row = replace(row, tokens=tokens, updates=tokens / batch)
    try:
        budget.check(step_seconds=batch / speed, step_tokens=batch)
    except ConfigError as error:
        return replace(row, trouble=str(error))
    if corpus.tokens:
        row = replace(row, epochs=tokens / corpus.tokens)
    published = expected_loss(PUBLISHED["speech"], row.parameters, tokens, corpus.tokens)
    expected = None if own is None else expected_loss(own, row.parameters, tokens, corpus.tokens)
    return replace(row, published_loss=published, own_loss=expected)


def expected_loss(law: ScalingLaw, parameters: float, tokens: float, unique: float | None) -> float:
    """What the law predicts; repeated tokens count for less, by the published R_D where it has none."""
    if unique is None or unique >= tokens:
        return float(law.loss(parameters, tokens))
    if law.R_D is None:
        law = replace(law, R_D=PUBLISHED["speech"].R_D)
    return float(law.loss(parameters, tokens, unique_tokens=unique))


def recommend(rows: Sequence[Row], *, started: bool, own: bool) -> tuple[Row, str]:
    """The row to take, and why.

    Args:
        rows: all that were looked at.
        started: whether the bases are text LMs to start from.
        own: whether the user's own law says what to expect.

    Raises:
        SlamError: there is none.
    """
    fit = [row for row in rows if not row.trouble and row.tokens_per_second]
    if not fit:
        why = next((row.trouble for row in rows if row.trouble.startswith("budget")), None)
        if why:
            raise ConfigError(why)
        first = f"{rows[0].base}: {rows[0].trouble}"
        raise InputError(f"no base can be trained, the first: {first}; give smaller --bases")
    if own:
        best = min(fit, key=lambda row: (row.own_loss or math.inf, -(row.tokens_per_second or 0)))
        return best, f"the lowest loss by your own law, {best.own_loss:.3f} nats a token"
    seen = [row for row in fit if row.tokens_a_parameter >= TOKENS_A_PARAMETER]
    if started and seen:
        best = max(seen, key=lambda row: (row.parameters, row.tokens_per_second or 0))
        return best, (
            f"the largest that sees {TOKENS_A_PARAMETER} tokens a parameter or more "
            f"({best.tokens_a_parameter:.1f}), as the paper's best did: what starts from text may be larger "
            "than the law's optimum (Slam, Figure 3)"
        )
    best = min(fit, key=lambda row: (row.published_loss or math.inf, -(row.tokens_per_second or 0)))
    return best, f"the lowest loss by the published law, {best.published_loss:.3f} nats a token"


def _remarks(corpus: Corpus, own: ScalingLaw | None) -> tuple[str, ...]:
    published = (
        "published law: Cuervo and Marxer (2024), of 500 mHuBERT units at 25 Hz and random initialisation; "
        "other units have losses on another scale, and what starts from text does better"
    )
    said = [published]
    if own is not None and own.R_D is None and corpus.tokens:
        said.append("your law knows nothing of repeats: the published R_D stands in for it")
    return tuple(said)
