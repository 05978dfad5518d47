"""A budget and what has been spent of it → the share spent, and from it the learning rate.

The schedule is a function of the *share of the budget spent*, so a training that stops on the clock has
decayed to its floor just as one that counts steps has. No torch here: settings are read by `slam --help`.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from slam.errors import ConfigError
from slam.run import effort

ScheduleName = Literal["cosine", "linear", "wsd", "constant", "inverse-sqrt"]

LEAST_STEPS = 10  # fewer are no training: the schedule has no shape and the optimizer no memory

_SECONDS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|sec|m|min|h|d)", re.IGNORECASE)
_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmb]?)\s*(tokens|steps)", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """How much a training may spend: seconds, tokens, steps, or whichever of several is spent first."""

    seconds: float = math.inf
    tokens: float = math.inf
    steps: float = math.inf
    text: str = field(default="", compare=False)  # as the user wrote it

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read `24h`, `90s`, `1.4B tokens`, `500 steps` or `24h or 1.4B tokens`.

        Raises:
            ConfigError: a part names no budget (a bare number, `24:00`), one of nothing, or a kind twice.
        """
        limits: dict[str, float] = {}
        for part in re.split(r"\s+or\s+", text.strip(), flags=re.IGNORECASE):
            duration, count = _DURATION.fullmatch(part), _COUNT.fullmatch(part)
            if duration is not None:
                kind, limit = "seconds", float(duration[1]) * _SECONDS[duration[2].lower()]
            elif count is not None:
                kind, limit = count[3].lower(), float(round(float(count[1]) * _SCALE[count[2].lower()]))
            else:
                raise ConfigError(
                    f"budget {text!r}: write a number with its unit: 24h, 90s, 2M tokens, 500 steps, "
                    "or several joined by 'or'"
                )
            if kind in limits:
                raise ConfigError(f"budget {text!r}: names {kind} twice; give one number of each kind")
            if not limit:
                raise ConfigError(f"budget {text!r}: buys nothing; give more than 0")
            limits[kind] = limit
        return cls(**limits, text=text)

    def share(self, *, seconds: float, tokens: float, steps: float) -> float:
        """The share of the budget spent, 0 to 1, by the limit that is nearest."""
        return min(1.0, max(seconds / self.seconds, tokens / self.tokens, steps / self.steps))

    def check(self, *, step_seconds: float = 0.0, step_tokens: float = 0.0) -> None:
        """Refuse a budget that buys fewer than 10 updates.

        Args:
            step_seconds: what an update takes, as far as it is known.
            step_tokens: the same in tokens.

        Raises:
            ConfigError: too few updates; the line says how many.
        """
        spent = self.share(seconds=step_seconds, tokens=step_tokens, steps=1)
        # an update begins while anything is left: 9.5 updates' worth is spent by ten
        if spent * (LEAST_STEPS - 1) >= 1.0 - 1e-9:
            raise ConfigError(
                f"budget {self.text!r}: buys about {math.ceil(1 / spent - 1e-9)} updates, fewer than "
                f"{LEAST_STEPS}; raise it, or make the batch smaller"
            )


def learning_rate_share(
    schedule: ScheduleName,
    share: float,
    *,
    warmup: float,
    floor: float,
    decay: float = 0.2,
) -> float:
    """The learning rate as a share of its peak when `share` of the budget is spent.

    Args:
        schedule: after warm-up, `cosine` or `linear` to the floor; `wsd`, which stays at the peak and then
            falls as 1 minus a square root to the floor (Hägele et al., 2024); `constant`; or `inverse-sqrt`
            (the paper's for DPO, Table 5).
        share: of the budget, 0 to 1.
        warmup: share of the budget over which the rate rises linearly from 0.
        floor: the smallest value after warm-up, as a share of the peak.
        decay: share of the budget, at its end, over which `wsd` falls.
    """
    if share < warmup:
        return share / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "inverse-sqrt":
        return max(floor, math.sqrt(max(warmup, 1e-3) / max(share, warmup, 1e-3)))
    progress = (share - warmup) / max(1e-12, 1.0 - warmup)
    if schedule == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif schedule == "linear":
        left = 1.0 - progress
    else:
        left = 1.0 - math.sqrt(min(1.0, max(0.0, share - (1.0 - decay)) / decay))
    return floor + (1.0 - floor) * left


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every training sets, whatever its loss.

    Defaults are the paper's (Table 4), but for optimizer and schedule: there they are what won (docs/log.md).
    """

    budget: str
    """What may be spent: 24h, 1.4B tokens, 500 steps, or the first of several (24h or 1.4B tokens)."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """Who updates the body's matrices; AdamW always updates embeddings, biases and gains."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 2e-3
    """Peak learning rate of Muon, in steps matched to AdamW's root mean square."""
    schedule: ScheduleName = "linear"
    """Shape of the learning rate over the share of the budget spent."""
    warmup: float = 0.01
    """Share of the budget over which the learning rate rises."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises at least, where the share would be shorter."""
    decay: float = 0.2
    """Share of the budget, at its end, over which the schedule wsd falls."""
    floor: float = 0.0
    """Smallest learning rate after warm-up, as a share of the peak."""
    embeddings_first: float = 0.0
    """Share of the budget in which only embeddings and head are trained."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, on matrices only."""
    clip: float = 0.5
    """Largest norm of the gradient."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of products and activations; weights and moments are fp32. auto: bf16 on CUDA, fp32 elsewhere."""
    validations: int = 10
    """How often the validation loss is measured over the budget."""
    seed: int = 0
    """Decides the initial weights and the order of the data."""
    micro_batch_tokens: int = effort(8192)
    """Tokens in one forward pass; a batch that holds more is split, its gradients summed."""
    compile: Literal["auto", "on", "off"] = effort("auto")
    """Compile the model into one graph. auto: on CUDA."""
    sharding: Literal["replicate", "shard"] = effort("replicate")
    """On several processes: a whole model on each (DDP), or its weights divided among them (FSDP2)."""
    on_spike: Literal["stop", "skip"] = effort("stop")
    """With a batch whose loss is not a number or jumps: stop with a checkpoint, or leave it out."""
    spike_deviations: float = effort(10.0)
    """How many standard deviations above the mean of the last 100 losses are a jump."""
    checkpoint_seconds: float = effort(600.0)
    """Seconds between checkpoints."""
    wandb: str | None = effort(None)
    """Project on Weights & Biases to log to as well."""

    def __post_init__(self) -> None:
        limits = Budget.parse(self.budget)
        limits.check()
        for name in (
            "learning_rate",
            "muon_learning_rate",
            "clip",
            "micro_batch_tokens",
            "checkpoint_seconds",
            "spike_deviations",
        ):
            if not getattr(self, name) > 0:  # nor not a number
                raise ConfigError(f"{name} = {getattr(self, name)}: must be more than 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas = {self.betas}: each must be 0 or more and below 1")
        for name in ("weight_decay", "validations", "warmup_steps"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: must not be negative")
        for name in ("warmup", "floor", "embeddings_first"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be a share, 0 or more and below 1")
        room = 1 - self.warmup + 1e-9 if self.schedule == "wsd" else 1  # the others do not use it
        if not 0 < self.decay <= room:
            raise ConfigError(f"decay = {self.decay}: must be a share that fits beside warmup {self.warmup}")

    def rate(self, share: float, step: int) -> float:
        """The learning rate as a share of its peak, before update `step` (from 0)."""
        wanted = learning_rate_share(
            self.schedule, share, warmup=self.warmup, floor=self.floor, decay=self.decay
        )
        return min(wanted, (step + 1) / self.warmup_steps) if step < self.warmup_steps else wanted
