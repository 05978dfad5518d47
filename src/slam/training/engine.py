"""A stock model and settings → the model made ready for this machine: precision, kernel, graph, processes."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from slam import world
from slam.budget import TrainingConfig
from slam.devices import best_device
from slam.errors import ConfigError
from slam.flops import training_flops
from slam.packing import Fill, Packed, packed, token_log_likelihoods
from slam.progress import console
from slam.training.parallel import accumulating, join, replicate
from slam.training.signals import Stop
from slam.training.task import Task, X

_KERNEL_TOLERANCE = 0.05  # nats a token on average, in bf16


def in_bf16(config: TrainingConfig) -> bool:
    """Whether products are made in bf16 here."""
    return config.precision == "bf16" or (config.precision == "auto" and best_device().type == "cuda")


def products_in(*, bf16: bool, device: torch.device) -> Any:
    """Where products are made in bf16, if they are; weights stay fp32."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def precision(config: TrainingConfig) -> Any:
    """The precision in which a training with these settings computes: as a context."""
    return products_in(bf16=in_bf16(config), device=best_device())


class Scored(torch.nn.Module):
    """A row of documents → the log-likelihood of each next token: what is compiled, and what DDP wraps."""

    def __init__(self, lm: PreTrainedModel, *, bf16: bool) -> None:
        super().__init__()
        self.lm = lm
        self._bf16 = bf16

    def forward(  # noqa: PLR0917 - tensors alone, for the compiler's sake
        self,
        tokens: Tensor,
        positions: Tensor,
        targets: Tensor,
        starts: Tensor | None,
        longest: int,
        lengths: tuple[int, ...],
        shared: tuple[int, ...] = (),
    ) -> Tensor:
        """See `Packed`; `[M]` fp32 nats."""
        row = Packed(
            tokens=tokens,
            positions=positions,
            targets=targets,
            starts=starts,
            longest=longest,
            lengths=lengths,
            shared=shared,
        )
        with products_in(bf16=self._bf16, device=self.lm.device):
            return token_log_likelihoods(self.lm, row)


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
        num_tokens = 0
        for number, some in enumerate(micro_batches):
            if stop is not None:
                stop.poll()
            row, about = self.task.row(some, self.fill)
            lengths += row.lengths
            num_tokens += row.num_tokens
            with accumulating(self.module, self.lm, last=number == len(micro_batches) - 1):
                # a compiled graph must not see what differs from row to row, but for tensors
                seen = (row.lengths, row.shared) if row.starts is None else ((), ())
                values = self.module(row.tokens, row.positions, row.targets, row.starts, row.longest, *seen)
                loss, figures = self.task.loss(values, row, about)
                (loss * (world.size() / weight)).backward()  # type: ignore[no-untyped-call]
            for name, value in ({"loss": loss} | figures).items():
                totals[name] = totals.get(name, torch.zeros((), device=loss.device)) + value.detach() / weight
        return totals | {
            "model_flops": torch.tensor(training_flops(self.lm, lengths)),
            "num_tokens": torch.tensor(num_tokens),
        }


def ready(lm: PreTrainedModel, config: TrainingConfig, task: Task[X]) -> Engine[X]:
    """Choose precision, kernel and compilation for this machine, and join the other processes.

    Raises:
        ConfigError: what was asked for cannot be had here.
    """
    device = best_device()
    join(device)
    bf16 = in_bf16(config)
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
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
    else:
        worst = float((together[: len(alone)] - alone).abs().mean())
        if worst < _KERNEL_TOLERANCE:
            return True
        reason = f"it is {worst:.3f} nats off"
    console.print(f"no kernel of variable lengths ({reason}): each document by itself", style="yellow")
    return False
