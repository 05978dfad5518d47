"""One training over several processes: torch's own DDP and FSDP2, and what the processes agree on."""

import atexit
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from slam import world


def join(device: torch.device) -> None:
    """Join the other processes, if there are any and it is not done yet."""
    if world.size() > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(torch.distributed.destroy_process_group)


def divide(lm: PreTrainedModel, device: torch.device, *, bf16: bool) -> None:
    """Divide the weights of `lm` among the processes, block by block (FSDP2)."""
    mesh = init_device_mesh(device.type, (world.size(),))
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if bf16
        else MixedPrecisionPolicy()
    )
    blocks = max((m for m in lm.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(lm, mesh=mesh, mp_policy=policy)


def gathered_weights(lm: PreTrainedModel) -> dict[str, Tensor] | None:
    """The whole weights on process 0 where they are divided, else None. Every process must call."""
    if not isinstance(lm, FSDPModule):
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(lm, options=options)
    names = {name for name, _ in lm.named_parameters()}  # tied ones once
    return {name: weight for name, weight in weights.items() if name in names}


def replicate(module: torch.nn.Module) -> torch.nn.Module:
    """A module whose gradients are averaged over the processes (DDP); itself where there is one."""
    return DistributedDataParallel(module) if world.size() > 1 else module


@contextmanager
def accumulating(module: torch.nn.Module, lm: PreTrainedModel, *, last: bool) -> Iterator[None]:
    """Exchange gradients in the last micro-batch alone."""
    if isinstance(lm, FSDPModule):
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
