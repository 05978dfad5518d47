"""A base and the lengths of documents → how fast it trains here and what memory that takes, by trying it.

Each trial is a few of a training's own updates, on random tokens and random weights: neither changes the
time. It runs in a process of its own, so that its memory is what a training's would be, and so that one that
the system kills for its memory ends nothing else.
"""

import gc
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from slam import progress
from slam.architecture import Architecture
from slam.bases import base_config, num_parameters
from slam.devices import best_device
from slam.errors import ConfigError
from slam.flops import peak_flops, training_flops
from slam.model import new_lm
from slam.packing import use_packed
from slam.pretrain import PretrainConfig, next_token_task
from slam.run import peak_memory, reset_peak_memory
from slam.shards import TokenShards
from slam.training.checkpoints import State, save_checkpoint
from slam.training.log import Log
from slam.training.loop import Training
from slam.training.signals import Stop
from slam.units import Vocabulary

_LEAST_UPDATES = 2  # timed, beside the first, which is slower
_MOST_UPDATES = 30
_BATCHES = _MOST_UPDATES + 2  # of documents that are made up: an epoch's last batch is a smaller one


@dataclass(frozen=True)
class Trial:
    """What to try."""

    name: str
    base: str | Architecture  # a folder, a name on the hub, or sizes
    lengths: tuple[int, ...]  # of documents, some of which are drawn
    num_units: int
    config: PretrainConfig  # as the training would have it; its shards are not opened
    seconds: float = 0.0  # of updates, about


@dataclass(frozen=True)
class Measured:
    """How a training went."""

    parameters: int
    tokens_per_second: float
    mfu: float | None  # None where nobody knows what the device could do
    memory: float  # bytes at most: of the accelerator, or of the process on a CPU


@dataclass(frozen=True)
class NoFit:
    """Why there is no figure."""

    reason: str


def probe_apart(trial: Trial) -> Measured | NoFit:
    """`probe` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=progress.silence) as pool:
        try:
            return pool.submit(probe, trial).result()
        except BrokenProcessPool:
            return NoFit("does not fit: the process was killed")


def probe(trial: Trial) -> Measured | NoFit:
    """Train a little, and say how it went.

    Raises:
        InputError: the base's config cannot be read.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="slam-plan-") as folder:
            return _tried(trial, Path(folder))
    except (torch.OutOfMemoryError, MemoryError):
        return NoFit("does not fit")
    except ConfigError as error:  # the family cannot be packed, the context is too long …
        return NoFit(str(error))
    except RuntimeError as error:
        # torch's CPU allocator has no exception of its own
        if "memory" not in str(error) and "alloc" not in str(error):
            raise
        return NoFit("does not fit")
    finally:
        gc.collect()


def _tried(trial: Trial, folder: Path) -> Measured:
    shards = made_up(trial)
    base = None
    if not isinstance(trial.base, Architecture):
        base_config(trial.base).save_pretrained(folder / "base")
        base = str(folder / "base")
    config = trial.config
    _begin_memory()
    lm = new_lm(
        shards.vocabulary, base=base, initialization="random",
        architecture=trial.base if isinstance(trial.base, Architecture) else config.architecture,
        context=config.context, rope_theta=config.rope_theta, seed=config.seed,
    )  # fmt: skip
    use_packed(lm)
    training = Training(lm, config, next_token_task(lm, shards, shards, config), folder, Stop())
    lm.train()
    with Log(folder, State(), peak_flops=None, wandb=None) as training.log:
        training.warm_up()
        batches = training.task.order.starting_at(0)
        training.update(next(batches), 0.5)
        first, updates = training.state, 0
        while updates < _MOST_UPDATES and (
            updates < _LEAST_UPDATES or training.state.seconds - first.seconds < trial.seconds
        ):
            training.update(next(batches), 0.5)
            updates += 1
        if best_device().type == "cpu":
            # what its writing holds counts, where weights and files share a memory
            save_checkpoint(lm, training.optimizers, training.state, folder)
    tokens = training.state.tokens - first.tokens
    speed = tokens / (training.state.seconds - first.seconds)
    return Measured(num_parameters(lm), speed, _mfu(training, speed), _memory())


def made_up(trial: Trial) -> TokenShards:
    """Random tokens in documents of the given lengths, a few batches of them."""
    generator = np.random.default_rng(trial.config.seed)
    vocabulary = Vocabulary(trial.num_units)
    given = np.asarray(trial.lengths, np.int64)
    enough = max(4, int(_BATCHES * trial.config.batch_tokens / given.mean()))
    # all of them in turn, then some: the mean length is the data's
    drawn = np.concatenate([generator.permutation(given) for _ in range(-(-enough // len(given)))])[:enough]
    tokens = generator.integers(vocabulary.offset, vocabulary.size, drawn.sum()).astype(np.uint16)
    shards = TokenShards(tokens, np.cumsum(drawn), vocabulary, "random", "0" * 16)
    return shards.chunked(trial.config.context)


def _mfu(training: Training, speed: float) -> float | None:
    peak = peak_flops(training.engine.device)
    if peak is None:
        return None
    lengths = [int(length) for length in training.task.costs]
    return speed * training_flops(training.lm, lengths) / sum(lengths) / peak


def _begin_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    reset_peak_memory()


def _memory() -> float:
    return float(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory())
