"""The loop that both trainings share: budget, schedule, optimizer, checkpoints and log.

A training is a function of its settings and data: the step decides the batch, the share of the budget spent
decides the learning rate, and a checkpoint holds everything else (weights, moments, random state, clock), so
that a killed run, resumed, equals the run that was never killed.
"""

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from slam.budget import Budget, TrainingConfig, learning_rate_share
from slam.errors import InputError
from slam.progress import bar, console
from slam.run import Results, atomic_write, read_json, read_json_lines, write_json

METRICS_FILE = "metrics.jsonl"
CHECKPOINTS_FOLDER = "checkpoints"
_KEPT_CHECKPOINTS = 2
_LOG_EVERY = 10  # steps


class MicroBatch(Protocol):
    """What one forward pass sees."""

    @property
    def weight(self) -> int:
        """How many terms its loss sums: the batch's loss is a mean over them all."""
        ...

    @property
    def num_tokens(self) -> int:
        """How many tokens it costs."""
        ...


M = TypeVar("M", bound=MicroBatch)


@dataclass(frozen=True)
class Task(Generic[M]):
    """What is trained: the data by step, the loss and the validation."""

    batches: Callable[[int], Iterator[Sequence[M]]]  # first step → batches from there on, without end
    loss: Callable[[M], tuple[Tensor, dict[str, Tensor]]]  # summed loss, and summed figures to log
    validate: Callable[[], dict[str, float]]


@dataclass(frozen=True)
class State:
    """How far a training is."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # in training steps: the budget's clock
    overhead_seconds: float = 0.0  # in validation and checkpoints, outside the budget
    validations: int = 0
    window: Sequence[dict[str, float]] = ()  # figures of the steps since the log's last row


def train(lm: PreTrainedModel, config: TrainingConfig, task: Task[M], out: Path) -> Results:
    """Train `lm` in place until the budget is spent; go on from the last checkpoint in `out` if there is one.

    Raises:
        InputError: the loss is not finite.
        KeyboardInterrupt: Ctrl-C came; a checkpoint was written first.
        SystemExit: SIGTERM came; a checkpoint was written first.
    """
    budget = Budget.parse(config.budget)
    optimizers = make_optimizers(lm, config)
    torch.manual_seed(config.seed)
    state = restore(lm, optimizers, out)
    lm.train()
    with Log(out, state) as log, bar(f"training {out.name}", 1.0) as progress, _signals() as stop:
        last_checkpoint = time.perf_counter()
        batches = task.batches(state.step)
        while True:
            share = budget.share(seconds=state.seconds, tokens=state.tokens, steps=state.step)
            if share >= 1.0:
                break
            if share * config.validations >= state.validations:
                begin = time.perf_counter()
                log.validation(state, task.validate())
                spent = state.overhead_seconds + time.perf_counter() - begin
                state = replace(state, validations=state.validations + 1, overhead_seconds=spent)
            begin = time.perf_counter()
            if stop.requested or begin - last_checkpoint > config.checkpoint_seconds:
                save_checkpoint(lm, optimizers, replace(state, window=log.window()), out)
                last_checkpoint = time.perf_counter()
                spent = state.overhead_seconds + last_checkpoint - begin
                state = replace(state, overhead_seconds=spent)
                stop.leave()
            begin = time.perf_counter()
            rate = learning_rate_share(config.schedule, share, warmup=config.warmup, floor=config.floor)
            batch = next(batches)
            figures = step(lm, optimizers, task, batch, rate=rate, clip=config.clip)
            state = replace(
                state,
                step=state.step + 1,
                tokens=state.tokens + sum(micro.num_tokens for micro in batch),
                seconds=state.seconds + time.perf_counter() - begin,
            )
            note = log.training(state, figures | {"learning_rate": rate * config.learning_rate})
            progress.reach(share, note)
        log.flush(state)
        begin = time.perf_counter()
        # before the last validation, whose row a resumed run writes itself
        save_checkpoint(lm, optimizers, state, out)
        stop.leave()
        found = task.validate()
        log.validation(state, found)
        state = replace(state, overhead_seconds=state.overhead_seconds + time.perf_counter() - begin)
        stop.leave()
    return {
        "steps": state.step,
        "tokens": state.tokens,
        "training_seconds": round(state.seconds, 2),
        "validation_and_checkpoint_seconds": round(state.overhead_seconds, 2),
        "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9)),
        "num_parameters": sum(weight.numel() for weight in lm.parameters()),
    } | {f"final_{name}": value for name, value in found.items()}


def step(
    lm: PreTrainedModel,
    optimizers: Sequence[torch.optim.Optimizer],
    task: Task[M],
    batch: Sequence[M],
    *,
    rate: float,
    clip: float,
) -> dict[str, Tensor]:
    """One update: the loss is a mean over all terms of the batch, however it is split.

    Args:
        lm: the model.
        optimizers: each group of theirs knows its peak learning rate.
        task: gives the loss.
        batch: micro-batches.
        rate: learning rate as a share of its peak.
        clip: largest norm of the gradient.

    Returns:
        The batch's mean loss, the task's figures and the gradient's norm, still on the device.
    """
    weight = sum(micro.weight for micro in batch)
    totals: dict[str, Tensor] = {}
    for micro in batch:
        loss, figures = task.loss(micro)
        (loss / weight).backward()  # type: ignore[no-untyped-call]
        for name, value in ({"loss": loss} | figures).items():
            totals[name] = totals.get(name, torch.zeros((), device=loss.device)) + value.detach() / weight
    totals["gradient_norm"] = torch.nn.utils.clip_grad_norm_(lm.parameters(), clip, foreach=True)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["peak"]
        optimizer.step()
        optimizer.zero_grad()
    return totals


def make_optimizers(lm: PreTrainedModel, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Fused AdamW for all weights, or Muon (torch's own) for the body's matrices and AdamW for the rest.

    Muon's steps are scaled to the root mean square of AdamW's (Liu et al., 2025); weight decay is on
    matrices only.
    """
    head = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    tables = {id(part.weight) for part in (lm.get_input_embeddings(), head)}
    weights = [weight for weight in lm.parameters() if weight.requires_grad]
    by_muon = [w for w in weights if config.optimizer == "muon" and w.ndim == 2 and id(w) not in tables]  # noqa: PLR2004
    left = {id(weight) for weight in by_muon}
    matrices = [weight for weight in weights if id(weight) not in left and weight.ndim > 1]
    vectors = [weight for weight in weights if weight.ndim <= 1]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay, "peak": config.learning_rate},
                {"params": vectors, "weight_decay": 0.0, "peak": config.learning_rate},
            ],
            betas=config.betas,
            fused=True,
        )
    ]
    if by_muon:
        optimizers.append(
            torch.optim.Muon(
                [{"params": by_muon, "peak": config.muon_learning_rate}],
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


class Log:
    """`metrics.jsonl` and TensorBoard; rows later than the state resumed from are taken back first."""

    def __init__(self, out: Path, state: State) -> None:
        self._path = out / METRICS_FILE
        rows = read_json_lines(self._path) if self._path.is_file() else []
        training = [row for row in rows if "loss" in row and row["step"] <= state.step]
        validation = [row for row in rows if "loss" not in row][: state.validations]
        kept = sorted(training + validation, key=lambda row: (row["step"], "loss" not in row))
        atomic_write(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._window: list[Mapping[str, Tensor | float]] = list(state.window)
        self._since = time.perf_counter()
        self._tokens = 0
        self._note = ""
        self._board = _tensorboard(out, state.step)

    def __enter__(self) -> Self:
        self._handle = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()
        if self._board is not None:
            self._board.close()

    def training(self, state: State, figures: dict[str, Tensor | float]) -> str:
        """Take a step's figures, still on the device; read and write them every few steps.

        Raises:
            InputError: the loss is not finite.
        """
        self._window.append(figures)
        if state.step % _LOG_EVERY == 0:
            self.flush(state)
        return self._note

    def window(self) -> list[dict[str, float]]:
        """The figures not yet written, for a checkpoint: a resumed run's next row is a mean over them too."""
        return [{name: float(value) for name, value in row.items()} for row in self._window]

    def flush(self, state: State) -> None:
        """Write the mean of the figures taken since the last row, if there are any.

        Raises:
            InputError: the loss is not finite.
        """
        if not self._window:
            return
        means = {
            name: float(torch.tensor([float(row[name]) for row in self._window]).mean())
            for name in self._window[0]
        }
        self._check_finite(state, "loss", means)
        now = time.perf_counter()
        means["tokens_per_second"] = (
            (state.tokens - self._tokens) / (now - self._since) if self._tokens else 0.0
        )
        self._since, self._tokens = now, state.tokens
        self._window.clear()
        self._write(state, means)
        self._note = f"loss {means['loss']:.3f}, {means['tokens_per_second']:,.0f} tokens/s"

    def validation(self, state: State, figures: dict[str, float]) -> None:
        """Write what a validation found.

        Raises:
            InputError: its loss is not finite.
        """
        self._check_finite(state, "validation_loss", figures)
        self._write(state, figures)

    def _check_finite(self, state: State, name: str, figures: Mapping[str, float]) -> None:
        if not math.isfinite(figures.get(name, 0.0)):
            raise InputError(
                f"{self._path.parent}: the {name.replace('_', ' ')} is {figures[name]} at step {state.step}; "
                "lower learning_rate, or clip harder"
            )

    def _write(self, state: State, figures: dict[str, float]) -> None:
        row = {"step": state.step, "tokens": state.tokens, "seconds": round(state.seconds, 3)} | figures
        self._handle.write(json.dumps(row) + "\n")
        self._handle.flush()
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, state.step)


def _tensorboard(out: Path, step: int) -> Any:
    """A TensorBoard writer, or None where the package is not installed: `metrics.jsonl` holds the same."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return None
    return SummaryWriter(out / "tensorboard", purge_step=step or None)


def save_checkpoint(
    lm: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], state: State, out: Path
) -> None:
    """Write weights, moments, random state and clock as one folder, whole or not at all; keep two."""
    folder = out / CHECKPOINTS_FOLDER
    partial, final = folder / ".partial", folder / f"{state.step:09d}"
    shutil.rmtree(partial, ignore_errors=True)
    weights = {name: weight.detach().contiguous() for name, weight in lm.named_parameters()}
    moments = {
        f"{number}.{index}.{name}": value
        for number, optimizer in enumerate(optimizers)
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    partial.mkdir(parents=True)
    try:
        save_file(weights, partial / "model.safetensors")
        save_file(moments | {"random": torch.get_rng_state()}, partial / "optimizer.safetensors")
        write_json(partial / "state.json", asdict(state))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk leaves nothing half-written
    for old in sorted(path for path in folder.iterdir() if path.name.isdigit())[:-_KEPT_CHECKPOINTS]:
        shutil.rmtree(old)


def restore(lm: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], out: Path) -> State:
    """Load the newest checkpoint in `out` that can be read; a damaged one is named and passed over."""
    folder = out / CHECKPOINTS_FOLDER
    found = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
    for path in (path for path in found if path.name.isdigit()):
        try:
            state = State(**read_json(path / "state.json"))
            weights = load_file(path / "model.safetensors")
            moments = load_file(path / "optimizer.safetensors")
            random = moments.pop("random")
            weights = {name: weights[name] for name, _ in lm.named_parameters()}
        except (OSError, SafetensorError, InputError, TypeError, KeyError) as error:
            console.print(f"{path}: damaged checkpoint passed over ({error})", style="yellow")
            continue
        with torch.no_grad():
            for name, weight in lm.named_parameters():
                weight.copy_(weights[name])
        torch.set_rng_state(random)
        for number, optimizer in enumerate(optimizers):
            entries: dict[int, dict[str, Tensor]] = {}
            for key, value in moments.items():
                owner, index, name = key.split(".", 2)
                if int(owner) == number:
                    entries.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": entries})
        return state
    return State()


def discard_checkpoints(out: Path) -> None:
    """Free the disk once the finished model is saved."""
    shutil.rmtree(out / CHECKPOINTS_FOLDER, ignore_errors=True)


class _Stop:
    """Whether a signal asked to stop, and how to leave."""

    def __init__(self) -> None:
        self.requested: int | None = None

    def leave(self) -> None:
        """Leave as the signal asks, if one came: the caller has written its checkpoint."""
        if self.requested == signal.SIGINT:
            raise KeyboardInterrupt
        if self.requested is not None:
            raise SystemExit(0)


@contextmanager
def _signals() -> Iterator[_Stop]:
    """Note SIGINT and SIGTERM instead of dying of them; a second SIGINT is not waited for."""
    stop = _Stop()

    def note(number: int, _: FrameType | None) -> None:
        if stop.requested == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = number

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            with suppress(TypeError):
                signal.signal(number, handler)
