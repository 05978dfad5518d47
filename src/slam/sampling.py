"""How a unit is drawn from a model's scores. No torch here: settings are read by `slam --help`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt

from slam.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How units are drawn; the defaults are the paper's (Slam, Table 6).

    They act in the order of `transformers`: on units said before, then temperature, top-k, top-p, min-p.

    Raises:
        ConfigError: a number cannot be meant.

    Example:
        >>> Sampling(temperature=0.0).greedy
        True
    """

    temperature: float = 0.8
    """Divides the scores before sampling; 0 takes the likeliest unit."""
    top_k: int = 25
    """Likeliest units among which one is sampled."""
    top_p: float = 1.0
    """Share of probability that the likeliest units kept must hold (Holtzman et al., 2020); 1 is off."""
    min_p: float = 0.0
    """Least probability of a unit, as a share of the likeliest one's (Nguyen et al., 2024); 0 is off."""
    repetition_penalty: float = 1.1
    """Divides the scores of units already said (Keskar et al., 2019); 1 is off."""
    no_repeat_ngram: int = 0
    """Length in units of what is never said twice, the prompt included; 0 is off."""

    def __post_init__(self) -> None:
        for name, fine, rule in (
            ("temperature", self.temperature >= 0, "must not be negative"),
            ("top_k", self.top_k >= 1, "must be at least 1"),
            ("top_p", 0 < self.top_p <= 1, "must be more than 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "must be between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "must be more than 0"),
            ("no_repeat_ngram", self.no_repeat_ngram >= 0, "must not be negative"),
        ):
            value = getattr(self, name)
            if not (fine and isfinite(value)):
                raise ConfigError(f"{name} = {value}: {rule}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest unit is taken each time, so that nothing is drawn."""
        return self.temperature == 0


def seed_of(seed: int, name: str) -> int:
    """The seed of one continuation, from the run's and the prompt's name."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4])


def uniforms(seeds: Sequence[int], num_steps: int) -> npt.NDArray[np.float32]:
    """`[B, num_steps]` numbers in [0, 1): a row is decided by its seed alone, its beginning by no length."""
    rows = [np.random.Generator(np.random.Philox(seed)).random(num_steps, np.float32) for seed in seeds]
    return np.stack(rows) if rows else np.zeros((0, num_steps), np.float32)
