"""The loop: rows → gradients → an update, until the budget is spent."""

import math
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from slam import world
from slam.budget import Budget, TrainingConfig
from slam.errors import ConfigError, InputError
from slam.flops import peak_flops
from slam.progress import bar, console
from slam.run import Results
from slam.training.checkpoints import CHECKPOINTS_FOLDER, restore, save_checkpoint
from slam.training.engine import precision, ready
from slam.training.kept import discard_kept, keep_weights, take_kept
from slam.training.log import METRICS_FILE, Log
from slam.training.optimizers import Moved, make_optimizers, update
from slam.training.parallel import summed
from slam.training.signals import Stop, StopRequested, signals
from slam.training.task import Task

_REMEMBERED = 100  # losses against which a jump is told
_LEAST_REMEMBERED = 20
_MOST_SKIPPED = 10  # batches in a row: then it is not the data
_SAMPLED_EVERY = 10  # steps between looks at how many weights move


def train(lm: PreTrainedModel, config: TrainingConfig, task: Task[Any], out: Path) -> Results:
    """Train `lm` in place until the budget is spent; go on from the last checkpoint in `out` if there is one.

    Raises:
        InputError: the loss is not a number, or jumps, or keeps doing so.
        ConfigError: the budget buys fewer than 10 updates, or the machine cannot do what is asked for.
        KeyboardInterrupt: Ctrl-C came; a checkpoint was written first.
        SystemExit: SIGTERM came; a checkpoint was written first.
    """
    Budget.parse(config.budget).check(step_tokens=task.step_tokens)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with signals() as stop:
        return Training(lm, config, task, out, stop).run()


class Training:
    """One training under way."""

    def __init__(
        self, lm: PreTrainedModel, config: TrainingConfig, task: Task[Any], out: Path, stop: Stop
    ) -> None:
        self.config, self.task, self.out, self.stop = config, task, out, stop
        self.budget = Budget.parse(config.budget)
        torch.manual_seed(config.seed)
        self.num_parameters = sum(weight.numel() for weight in lm.parameters())
        self.engine = ready(lm, config, task)
        self.lm = lm
        self.optimizers = make_optimizers(lm, config)
        self.state = restore(lm, self.optimizers, out)
        discard_kept(out, known={int(row["step"]) for row in self.state.found})
        self.stopped_by: str | None = None
        self.updates = 0  # in this sitting
        self.last_checkpoint = time.perf_counter()

    def run(self) -> Results:
        """Train to the budget's end, or until the task's judge says to stop."""
        self.lm.train()
        peak = peak_flops(self.engine.device)
        with (
            Log(self.out, self.state, peak_flops=peak, wandb=self.config.wandb) as self.log,
            bar(f"training {self.out.name}", 1.0) as progress,
        ):
            try:
                self.warm_up()
                batches = self.task.order.starting_at(self.state.step)
                while (share := self._share()) < 1.0:
                    self._look_up(share)
                    if self.stopped_by is not None:
                        break
                    progress.reach(share, self.update(next(batches), share))
                self.log.flush(self.state)
                if self.stopped_by is None:
                    # before the last validation, whose row a resumed run writes itself
                    self._checkpoint()
                    self._validate()
                kept = self._take_kept()
                self.stop.leave()
            except StopRequested:
                self._zero_gradients()
                self._checkpoint()
                self.stop.leave()
                raise
            except torch.OutOfMemoryError:
                rows = f"micro_batch_tokens = {self.config.micro_batch_tokens}"
                raise ConfigError(
                    f"{rows}: a row does not fit the memory; lower it, and the same command goes on"
                ) from None
            except RuntimeError as error:
                if not type(error).__module__.startswith("torch._dynamo"):
                    raise
                reason = str(error).strip().splitlines()[0]
                advice = 'set compile = "off"'
                raise ConfigError(f"this model does not compile ({reason}); {advice}") from None
        state = self.state
        return {
            "steps": state.step,
            "skipped_batches": state.skipped,
            "tokens": state.tokens,
            "training_seconds": round(state.seconds, 2),
            "overhead_seconds": round(state.overhead_seconds, 2),
            "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9)),
            "num_parameters": self.num_parameters,
        } | (kept | _device_memory(self.engine.device))

    def _share(self) -> float:
        state = self.state
        return self.budget.share(seconds=state.seconds, tokens=state.tokens, steps=state.step)

    def warm_up(self) -> None:
        """Compile before the clock starts, and find out early whether a row fits the memory."""
        if self.engine.fill is None:
            return
        begin = time.perf_counter()
        items = next(self.task.order.starting_at(self.state.step))
        self.engine.gradients(self.engine.micro_batches(items)[:1], 1)
        self._zero_gradients()
        torch.accelerator.synchronize()
        self._outside(begin)

    def _look_up(self, share: float) -> None:
        """Validate and write a checkpoint, where it is time."""
        if share * self.config.validations >= self.state.validations:
            self._validate()
            self.state = replace(self.state, validations=self.state.validations + 1)
        due = time.perf_counter() - self.last_checkpoint > self.config.checkpoint_seconds
        if world.size() > 1:  # all at the same step, by the clock of process 0
            found = summed(
                {"due": float(due and world.rank() == 0), "stop": float(self.stop.requested is not None)},
                self.engine.device,
            )
            due = found["due"] > 0
            if found["stop"] and self.stop.requested is None:
                self.stop.requested = signal.SIGTERM
        if self.stopped_by is None and (due or self.stop.requested is not None):
            self._checkpoint()
            self.stop.leave()

    def update(self, items: npt.NDArray[np.int64], share: float) -> str:
        """Learn from one batch; gives the word for the progress line."""
        begin = time.perf_counter()
        state, engine, config = self.state, self.engine, self.config
        weight = int(self.task.terms[items].sum())
        totals = engine.gradients(engine.micro_batches(items), weight, self.stop)
        norm: Any = torch.nn.utils.clip_grad_norm_(self.lm.parameters(), config.clip, foreach=True)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        figures = summed(totals, engine.device)
        figures["gradient_norm"] = float(norm)
        num_tokens = int(figures.pop("num_tokens"))
        rate = config.rate(share, state.step)
        good = self._judge(figures)
        if good:
            sampled = Moved(self.lm) if (state.step + 1) % _SAMPLED_EVERY == 0 else None
            update(self.optimizers, rate, body=share >= config.embeddings_first)
            if sampled is not None:
                figures["weights_moved"] = sampled.share(self.lm)
        self._zero_gradients()
        spent = time.perf_counter() - begin
        if world.size() > 1:
            spent = summed({"seconds": spent if world.rank() == 0 else 0.0}, engine.device)["seconds"]
        self.state = replace(
            state,
            step=state.step + 1,
            skipped=state.skipped + (not good),
            skipped_in_a_row=0 if good else state.skipped_in_a_row + 1,
            tokens=state.tokens + num_tokens,
            seconds=state.seconds + spent,
            recent_losses=(*state.recent_losses, figures["loss"])[-_REMEMBERED:]
            if good
            else state.recent_losses,
        )
        self.updates += 1
        if self.updates == self.state.step == 2 and self.budget.seconds < math.inf:  # noqa: PLR2004
            self._check_clock(spent)  # the first update is slower
        if not good:
            return f"{self.state.skipped} batches skipped"
        return self.log.training(self.state, figures | {"learning_rate": rate * config.learning_rate})

    def _judge(self, figures: dict[str, float]) -> bool:
        """Whether to learn from a batch; if not, stop here or let it be skipped, as set.

        Raises:
            InputError: it is set to stop, or there were too many in a row. The state before it is kept.
        """
        loss, norm = figures["loss"], figures["gradient_norm"]
        recent = self.state.recent_losses
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"the loss is {loss} (gradient norm {norm})"
        elif len(recent) >= _LEAST_REMEMBERED and loss > fmean(recent) + self.config.spike_deviations * max(
            pstdev(recent), 1e-3
        ):
            what = f"the loss jumps to {loss:.3f} from {fmean(recent):.3f}"
        else:
            return True
        skip = self.config.on_spike == "skip"
        if skip and self.state.skipped_in_a_row < _MOST_SKIPPED:
            return False
        self._zero_gradients()
        self._checkpoint()
        advice = "" if skip else 'set on_spike = "skip", or '
        raise InputError(
            f"{self.out}: {what} at step {self.state.step}, and a checkpoint holds the state before it; "
            f"{advice}lower learning_rate, or clip harder"
        )

    def _check_clock(self, step_seconds: float) -> None:
        """Refuse a clock that buys no training; what was written goes: another budget can be tried."""
        try:
            self.budget.check(step_seconds=step_seconds)
        except ConfigError:
            if world.rank() == 0:
                (self.out / METRICS_FILE).unlink(missing_ok=True)
                for name in ("tensorboard", "wandb", CHECKPOINTS_FOLDER):
                    shutil.rmtree(self.out / name, ignore_errors=True)
            raise

    def _validate(self) -> None:
        """Find out how good the model is; keep its weights, or stop, as the task judges."""
        begin = time.perf_counter()
        with precision(self.config):
            found = self.task.validate(self.stop.poll)
        if world.size() > 1:  # all judge by what process 0 finds
            found = summed({k: 0.0 if world.rank() else v for k, v in found.items()}, self.engine.device)
        self.log.validation(self.state, found)
        step = self.state.step
        self.state = replace(self.state, found=(*self.state.found, {"step": step} | found))
        if self.task.judge is not None:
            verdict = self.task.judge(self.state.found)
            self.stopped_by = verdict.stopped_by
            if verdict.keep:
                keep_weights(self.lm, step, self.out)
        self._outside(begin)

    def _take_kept(self) -> Results:
        """Go back to the weights that were kept last, where the task judges; what is known of them."""
        step, found = self.state.step, self.state.found
        about: Results = {}
        if self.task.judge is not None:
            kept = take_kept(self.lm, step, self.out)
            about = {
                "stopped_by": self.stopped_by,
                "stopped_at_step": step if self.stopped_by is not None else None,
                "kept_step": kept,
            }
            if kept != step:
                why = f"stopped by {self.stopped_by}" if self.stopped_by else "the budget is spent"
                line = f"{self.out}: {why} at step {step}; the model is that of step {kept}"
                console.print(line, style="yellow")
            step = kept
        last = next(row for row in reversed(found) if row["step"] == step)
        for when, row in (("initial", found[0]), ("final", last)):
            about |= {f"{when}_{name}": value for name, value in row.items() if name != "step"}
        return about

    def _checkpoint(self) -> None:
        begin = time.perf_counter()
        save_checkpoint(
            self.lm,
            self.optimizers,
            replace(self.state, window=[dict(r) for r in self.log.window()]),
            self.out,
        )
        self.last_checkpoint = time.perf_counter()
        self._outside(begin)

    def _outside(self, begin: float) -> None:
        """Count what was spent since `begin` outside the budget."""
        spent = self.state.overhead_seconds + time.perf_counter() - begin
        self.state = replace(self.state, overhead_seconds=spent)

    def _zero_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()


def _device_memory(device: torch.device) -> Results:
    """What the training held of the accelerator's memory at most; nothing on a CPU, where the run says it."""
    if device.type != "cuda":
        return {}
    return {"peak_device_memory_bytes": torch.cuda.max_memory_allocated(device)}
