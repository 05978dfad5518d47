"""A budget and what has been spent of it → the share spent, and from it the learning rate.

The schedule is a function of the *share of the budget spent*, so a training that stops on the clock has
decayed to its floor just as one that counts steps has. No torch here: settings are read by `slam --help`.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

from slam.errors import ConfigError

ScheduleName = Literal["cosine", "linear", "constant", "inverse-sqrt"]

_SECONDS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|sec|m|min|h|d)", re.IGNORECASE)
_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmb]?)\s*(tokens|steps)", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """How much a training may spend: exactly one of seconds, tokens and steps."""

    seconds: float | None = None
    tokens: int | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read `24h`, `90s`, `1.4B tokens` or `500 steps`; a bare number or `24:00` is refused.

        Raises:
            ConfigError: the text names no budget, or one of nothing.
        """
        duration, count = _DURATION.fullmatch(text.strip()), _COUNT.fullmatch(text.strip())
        if duration is not None:
            budget = cls(seconds=float(duration[1]) * _SECONDS[duration[2].lower()])
        elif count is not None:
            number = round(float(count[1]) * _SCALE[count[2].lower()])
            budget = cls(tokens=number) if count[3].lower() == "tokens" else cls(steps=number)
        else:
            raise ConfigError(
                f"budget {text!r}: write a number with its unit: 24h, 90s, 2M tokens, 500 steps"
            )
        if not (budget.seconds or budget.tokens or budget.steps):
            raise ConfigError(f"budget {text!r}: buys nothing; give more than 0")
        return budget

    def share(self, *, seconds: float, tokens: int, steps: int) -> float:
        """The share of the budget spent, 0 to 1."""
        if self.seconds is not None:
            spent = seconds / self.seconds
        elif self.tokens is not None:
            spent = tokens / self.tokens
        else:
            spent = steps / (self.steps or 1)
        return min(1.0, spent)


def learning_rate_share(schedule: ScheduleName, share: float, *, warmup: float, floor: float) -> float:
    """The learning rate as a share of its peak when `share` of the budget is spent.

    Args:
        schedule: after warm-up, `cosine` or `linear` to the floor, `constant`, or `inverse-sqrt`
            (the paper's for DPO, Table 5).
        share: of the budget, 0 to 1.
        warmup: share of the budget over which the rate rises linearly from 0.
        floor: the smallest value after warm-up, as a share of the peak.
    """
    if share < warmup:
        return share / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "inverse-sqrt":
        return max(floor, math.sqrt(max(warmup, 1e-3) / max(share, warmup, 1e-3)))
    progress = (share - warmup) / max(1e-12, 1.0 - warmup)
    fall = 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule == "cosine" else 1.0 - progress
    return floor + (1.0 - floor) * fall


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every training sets, whatever its loss; defaults are the paper's (Table 4) where it has one."""

    budget: str
    """What may be spent: time (24h, 90s), tokens (1.4B tokens) or steps (500 steps)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Who updates the body's matrices; AdamW always updates embeddings, biases and gains."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 1e-2
    """Peak learning rate of Muon, in steps matched to AdamW's root mean square."""
    schedule: ScheduleName = "cosine"
    """Shape of the learning rate over the share of the budget spent."""
    warmup: float = 0.01
    """Share of the budget over which the learning rate rises."""
    floor: float = 0.05
    """Smallest learning rate after warm-up, as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, on matrices only."""
    clip: float = 0.5
    """Largest norm of the gradient."""
    micro_batch_tokens: int = 8192
    """Tokens in one forward pass; a batch that holds more is split, its gradients summed."""
    validations: int = 10
    """How often the validation loss is measured over the budget."""
    checkpoint_seconds: float = 600.0
    """Seconds between checkpoints."""
    seed: int = 0
    """Decides the initial weights and the order of the data."""

    def __post_init__(self) -> None:
        Budget.parse(self.budget)
        for name in (
            "learning_rate",
            "muon_learning_rate",
            "clip",
            "micro_batch_tokens",
            "checkpoint_seconds",
        ):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be more than 0")
        for name in ("warmup", "floor"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be a share, 0 or more and below 1")
