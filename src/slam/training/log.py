"""Figures of a training → `metrics.jsonl`, TensorBoard, Weights & Biases and a word for the progress line."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from slam import world
from slam.errors import InputError, MissingExtraError
from slam.run import STARTED_FILE, atomic_write, read_json, read_json_lines
from slam.training.checkpoints import State

METRICS_FILE = "metrics.jsonl"
_EVERY = 10  # steps

Write = Callable[[dict[str, float], int], None]  # figures, step


class Log:
    """Rows of figures; those later than the state resumed from are taken back first. Process 0 writes."""

    def __init__(self, out: Path, state: State, *, peak_flops: float | None, wandb: str | None) -> None:
        self._path = out / METRICS_FILE if world.rank() == 0 else Path(os.devnull)
        self._where = out
        self._others: list[tuple[Write, Callable[[], None]]] = []
        if world.rank() == 0:  # a missing package is told before anything is written
            self._others = [*_wandb(out, wandb), *_tensorboard(out, state.step)]
        rows = read_json_lines(out / METRICS_FILE) if (out / METRICS_FILE).is_file() else []
        training = [row for row in rows if "loss" in row and row["step"] <= state.step]
        validation = [row for row in rows if "loss" not in row][: state.validations]
        kept = sorted(training + validation, key=lambda row: (row["step"], "loss" not in row))
        if world.rank() == 0:
            atomic_write(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._window: list[Mapping[str, float]] = list(state.window)
        self._last = training[-1] if training else {"tokens": 0, "seconds": 0.0}
        self._peak_flops = peak_flops
        self._note = ""

    def __enter__(self) -> Self:
        self._handle = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()
        for other in self._others:
            other[1]()

    def training(self, state: State, figures: dict[str, float]) -> str:
        """Take a step's figures; write their mean every few steps. Gives the word for the progress line."""
        self._window.append(figures)
        if state.step % _EVERY == 0:
            self.flush(state)
        return self._note

    def window(self) -> list[Mapping[str, float]]:
        """The figures not yet written, for a checkpoint: a resumed run's next row is a mean over them too."""
        return list(self._window)

    def flush(self, state: State) -> None:
        """Write the mean of the figures taken since the last row, if there are any."""
        if not self._window:
            return
        names = dict.fromkeys(name for row in self._window for name in row)
        means = {}
        for name in names:
            found = [row[name] for row in self._window if name in row]
            means[name] = math.fsum(found) / len(found)
        seconds = max(state.seconds - self._last["seconds"], 1e-9)
        flops = means.pop("model_flops", 0.0) * len(self._window) / seconds
        means["tokens_per_second"] = (state.tokens - self._last["tokens"]) / seconds
        if self._peak_flops is not None:
            means["mfu"] = flops / (self._peak_flops * world.size())
        self._last = {"tokens": state.tokens, "seconds": state.seconds}
        self._window.clear()
        self._write(state, means)
        speed = f"{means['tokens_per_second']:,.0f} tokens/s"
        self._note = f"loss {means['loss']:.3f}, {speed}" + (
            f", MFU {means['mfu']:.0%}" if "mfu" in means else ""
        )

    def validation(self, state: State, figures: dict[str, float]) -> None:
        """Write what a validation found.

        Raises:
            InputError: its loss is not finite.
        """
        loss = figures.get("validation_loss", 0.0)
        if not math.isfinite(loss):
            raise InputError(
                f"{self._where}: the validation loss is {loss} at step {state.step}; "
                "lower learning_rate, or clip harder"
            )
        self._write(state, figures)

    def _write(self, state: State, figures: dict[str, float]) -> None:
        row = {"step": state.step, "tokens": state.tokens, "seconds": round(state.seconds, 3)} | figures
        self._handle.write(json.dumps(row) + "\n")
        self._handle.flush()
        for write, _ in self._others:
            write(figures, state.step)


def _tensorboard(out: Path, step: int) -> list[tuple[Write, Callable[[], None]]]:
    """TensorBoard, or nothing where the package is not installed: `metrics.jsonl` holds the same."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return []
    board: Any = SummaryWriter(out / "tensorboard", purge_step=step or None)

    def write(figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            board.add_scalar(name, value, step)

    return [(write, board.close)]


def _wandb(out: Path, project: str | None) -> list[tuple[Write, Callable[[], None]]]:
    """A run on Weights & Biases, the same one when the training is resumed.

    Raises:
        MissingExtraError: the package is not installed.
    """
    if project is None:
        return []
    try:
        import wandb
    except ModuleNotFoundError:
        raise MissingExtraError(
            "wandb is not installed: pip install 'slam[wandb]', or leave wandb out"
        ) from None
    name = out.resolve().name
    run = wandb.init(project=project, name=name, id=f"{name}-{_identity(out)}", resume="allow", dir=str(out))

    def write(figures: dict[str, float], step: int) -> None:
        run.log(figures, step=step)

    return [(write, run.finish)]


def _identity(out: Path) -> str:
    """The fingerprint of the run under way: what makes a resumed run the same one."""
    started = out / STARTED_FILE
    return str(read_json(started)["fingerprint"])[:8] if started.is_file() else "run"
