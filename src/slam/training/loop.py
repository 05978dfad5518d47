"""The loop: rows → gradients → an update, until the budget is spent."""

import math
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Generic

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from slam import world
from slam.budget import Budget, TrainingConfig
from slam.devices import best_device
from slam.errors import ConfigError, InputError
from slam.flops import peak_flops, training_flops
from slam.packing import Fill, Packed, packed, token_log_likelihoods
from slam.progress import bar, console
from slam.run import Results
from slam.training.checkpoints import CHECKPOINTS_FOLDER, restore, save_checkpoint
from slam.training.log import METRICS_FILE, Log
from slam.training.optimizers import Moved, make_optimizers, update
from slam.training.parallel import accumulating, join, replicate, summed
from slam.training.signals import Stop, StopRequested, signals
from slam.training.task import Task, X

_REMEMBERED = 100  # losses against which a jump is told
_LEAST_REMEMBERED = 20
_MOST_SKIPPED = 10  # batches in a row: then it is not the data
_KERNEL_TOLERANCE = 0.05  # nats a token on average, in bf16
_SAMPLED_EVERY = 10  # steps between looks at how many weights move


class Scored(torch.nn.Module):
    """A row of documents → the log-likelihood of each next token: what is compiled, and what DDP wraps."""

    def __init__(self, lm: PreTrainedModel, *, bf16: bool) -> None:
        super().__init__()
        self.lm = lm
        self._bf16 = bf16
        if bf16:  # else the residual stream would be fp32 all the way
            lm.get_input_embeddings().register_forward_hook(_in_bf16)

    def forward(  # noqa: PLR0917 - tensors alone, for the compiler's sake
        self,
        tokens: Tensor,
        positions: Tensor,
        targets: Tensor,
        starts: Tensor | None,
        longest: int,
        lengths: tuple[int, ...],
    ) -> Tensor:
        """See `Packed`; `[M]` fp32 nats."""
        row = Packed(
            tokens=tokens,
            positions=positions,
            targets=targets,
            starts=starts,
            longest=longest,
            lengths=lengths,
        )
        with self.precision():
            return token_log_likelihoods(self.lm, row)

    def precision(self) -> Any:
        """Where products are made in bf16, if they are; weights stay fp32."""
        return torch.autocast(self.lm.device.type, torch.bfloat16) if self._bf16 else nullcontext()


def _in_bf16(_: torch.nn.Module, __: object, found: Tensor) -> Tensor:
    return found.to(torch.bfloat16) if torch.is_autocast_enabled(found.device.type) else found


@dataclass(frozen=True)
class Engine(Generic[X]):
    """A model made ready for this machine: how rows are shaped, scored and learnt from."""

    lm: PreTrainedModel
    scored: Scored
    module: torch.nn.Module  # `scored`, exchanging gradients where there are several processes
    task: Task[X]
    fill: Fill | None
    micro_batch_tokens: int

    @property
    def device(self) -> torch.device:
        """Where rows go."""
        return next(self.lm.parameters()).device

    def micro_batches(self, items: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """The items of each of this process's rows of an update."""
        bins = self.task.share_out(items, self.micro_batch_tokens, self.fill, world.size())
        return bins[world.rank() :: world.size()]

    def gradients(
        self, micro_batches: Sequence[npt.NDArray[np.int64]], weight: int, stop: Stop | None = None
    ) -> dict[str, Tensor]:
        """Forward and backward, row by row: gradients of the mean over all `weight` terms of the update.

        A row is laid out while the device still works on the one before.

        Returns:
            The mean loss and the task's figures, this process's part of them, still on the device; and how
            many tokens and FLOP they took.

        Raises:
            StopRequested: a signal came, and `stop` allows to give up.
        """
        totals: dict[str, Tensor] = {}
        lengths: list[int] = []
        for number, some in enumerate(micro_batches):
            if stop is not None:
                stop.poll()
            row, about = self.task.row(some, self.fill)
            lengths += row.lengths
            with accumulating(self.module, self.lm, last=number == len(micro_batches) - 1):
                # a compiled graph must not see lengths: each row would be another graph
                seen = row.lengths if row.starts is None else ()
                values = self.module(row.tokens, row.positions, row.targets, row.starts, row.longest, seen)
                loss, figures = self.task.loss(values, row, about)
                (loss * (world.size() / weight)).backward()  # type: ignore[no-untyped-call]
            for name, value in ({"loss": loss} | figures).items():
                totals[name] = totals.get(name, torch.zeros((), device=loss.device)) + value.detach() / weight
        return totals | {
            "model_flops": torch.tensor(training_flops(self.lm, lengths)),
            "num_tokens": torch.tensor(sum(lengths)),
        }


def ready(lm: PreTrainedModel, config: TrainingConfig, task: Task[X]) -> Engine[X]:
    """Choose precision, kernel and compilation for this machine, and join the other processes.

    Raises:
        ConfigError: what was asked for cannot be had here.
    """
    device = best_device()
    join(device)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    shard = config.sharding == "shard" and world.size() > 1
    scored = Scored(lm, bf16=bf16)
    varlen = bf16 and device.type == "cuda" and one_kernel_works(scored)
    compiled = config.compile == "on" or (config.compile == "auto" and varlen and not shard)
    if compiled and not varlen:
        raise ConfigError('compile = "on" needs a CUDA device and bf16; leave compile at auto')
    if compiled and shard:
        raise ConfigError('compile = "on" does not go with sharding = "shard"; leave one of them out')
    fill = task.fill(config.micro_batch_tokens) if varlen else None
    if fill is not None and task.longest * task.documents > fill.num_tokens:
        raise ConfigError(
            f"micro_batch_tokens = {config.micro_batch_tokens}: less than the longest document; "
            f"set at least {task.longest * task.documents}"
        )
    if shard:
        from slam.training.sharded import divide

        divide(lm, device, bf16=bf16)
    if compiled:
        scored.compile(fullgraph=True, dynamic=False)
    module = scored if shard else replicate(scored)
    return Engine(lm, scored, module, task, fill, config.micro_batch_tokens)


def one_kernel_works(scored: Scored) -> bool:
    """Try the kernel of variable lengths: it must run here, and score as document by document does."""
    lm = scored.lm
    documents = [np.arange(length) * 7 % lm.config.vocab_size for length in (5, 30, 17)]
    fill = Fill(num_tokens=128, num_documents=8, longest=64)
    rows = (packed(documents, lm.device), packed(documents, lm.device, fill))
    try:
        with torch.no_grad():
            alone, together = (
                scored(r.tokens, r.positions, r.targets, r.starts, r.longest, r.lengths) for r in rows
            )
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
    else:
        worst = float((together[: len(alone)] - alone).abs().mean())
        if worst < _KERNEL_TOLERANCE:
            return True
        reason = f"it is {worst:.3f} nats off"
    console.print(f"no kernel of variable lengths ({reason}): each document by itself", style="yellow")
    return False


def train(lm: PreTrainedModel, config: TrainingConfig, task: Task[Any], out: Path) -> Results:
    """Train `lm` in place until the budget is spent; go on from the last checkpoint in `out` if there is one.

    Raises:
        InputError: the loss is not a number, or jumps, or keeps doing so.
        ConfigError: the budget buys fewer than 10 updates, or the machine cannot do what is asked for.
        KeyboardInterrupt: Ctrl-C came; a checkpoint was written first.
        SystemExit: SIGTERM came; a checkpoint was written first.
    """
    Budget.parse(config.budget).check(step_tokens=task.step_tokens)
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
        self.skipped_in_a_row = 0
        self.last_checkpoint = time.perf_counter()

    def run(self) -> Results:
        """Train to the budget's end."""
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
                    progress.reach(share, self.update(next(batches), share))
                self.log.flush(self.state)
                # before the last validation, whose row a resumed run writes itself
                self._checkpoint()
                found = self._validate()
                self.stop.leave()
            except StopRequested:
                self._zero_gradients()
                self._checkpoint()
                self.stop.leave()
                raise
            except torch.OutOfMemoryError:
                raise ConfigError(
                    f"micro_batch_tokens = {self.config.micro_batch_tokens}: a row does not fit the memory of "
                    f"{self.engine.device}; lower it, and the same command goes on"
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
        } | {f"final_{name}": value for name, value in found.items()}

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
        if due or self.stop.requested is not None:
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
            tokens=state.tokens + num_tokens,
            seconds=state.seconds + spent,
            recent_losses=(*state.recent_losses, figures["loss"])[-_REMEMBERED:]
            if good
            else state.recent_losses,
        )
        if self.state.step == 2 and self.budget.seconds < math.inf:  # noqa: PLR2004 - the first is slower
            self._check_clock(spent)
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
            self.skipped_in_a_row = 0
            return True
        self.skipped_in_a_row += 1
        skip = self.config.on_spike == "skip"
        if skip and self.skipped_in_a_row <= _MOST_SKIPPED:
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
                shutil.rmtree(self.out / "tensorboard", ignore_errors=True)
                shutil.rmtree(self.out / CHECKPOINTS_FOLDER, ignore_errors=True)
            raise

    def _validate(self) -> dict[str, float]:
        begin = time.perf_counter()
        with self.engine.scored.precision():
            found = self.task.validate(self.stop.poll)
        self.log.validation(self.state, found)
        self._outside(begin)
        return found

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
