"""One training over several processes: torch's own DDP and FSDP2, and what the processes agree on."""

import atexit
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from slam import world


def join(device: torch.device) -> None:
    """Join the other processes, if there are any and it is not done yet."""
    if world.size() > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(torch.distributed.destroy_process_group)


def divided(lm: PreTrainedModel) -> bool:
    """Whether the weights are divided among the processes (FSDP2)."""
    return hasattr(lm, "set_requires_gradient_sync")  # what FSDP2 gives a module


def gathered_weights(lm: PreTrainedModel) -> dict[str, Tensor] | None:
    """The whole weights on process 0 where they are divided, else None. Every process must call."""
    if not divided(lm):
        return None
    from slam.training import sharded

    return sharded.gathered_weights(lm)


def replicate(module: torch.nn.Module) -> torch.nn.Module:
    """A module whose gradients are averaged over the processes (DDP); itself where there is one."""
    return DistributedDataParallel(module) if world.size() > 1 else module


@contextmanager
def accumulating(module: torch.nn.Module, lm: Any, *, last: bool) -> Iterator[None]:
    """Exchange gradients in the last micro-batch alone."""
    if divided(lm):
        lm.set_requires_gradient_sync(last)
        yield
    elif isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def summed(figures: Mapping[str, Tensor | float], device: torch.device) -> dict[str, float]:
    """Figures of all processes added up, read from the device at once."""
    exact = torch.float32 if device.type == "mps" else torch.float64
    values = torch.stack([torch.as_tensor(value, device=device, dtype=exact) for value in figures.values()])
    if world.size() > 1:
        torch.distributed.all_reduce(values)
    return dict(zip(figures, values.tolist(), strict=True))
