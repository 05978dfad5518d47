"""Weights divided among processes (FSDP2) ↔ whole ones.

A module of its own: what it imports takes half a second that a training on one process need not spend.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from slam import world

_GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)
_WHOLE = StateDictOptions(full_state_dict=True, strict=False)


def divide(lm: PreTrainedModel, device: torch.device, *, bf16: bool) -> None:
    """Divide the weights of `lm` among the processes, block by block."""
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


def gathered_weights(lm: PreTrainedModel) -> dict[str, Tensor]:
    """The whole weights by name on process 0, nothing on the others. Every process must call."""
    weights: dict[str, Any] = get_model_state_dict(lm, options=_GATHERED)
    names = {name for name, _ in lm.named_parameters()}  # tied ones once
    return {name: weight for name, weight in weights.items() if name in names}


def set_weights(lm: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Divide whole weights among the processes."""
    for module in lm.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # after a validation the outermost holds its weights whole
    set_model_state_dict(lm, dict(weights), options=_WHOLE)


def gathered_moments(
    lm: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> Mapping[str, Mapping[str, Any]]:
    """Each parameter's whole state on process 0, nothing on the others. Every process must call."""
    if not optimizer.state:  # torch would make one by a step of its own, which AdamW would count
        return {}
    state: dict[str, Any] = get_optimizer_state_dict(lm, optimizer, options=_GATHERED)
    found: Mapping[str, Mapping[str, Any]] = state.get("state", {})
    return found


def set_moments(
    lm: PreTrainedModel, optimizer: torch.optim.Optimizer, entries: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Divide each parameter's whole state among the processes."""
    groups = get_optimizer_state_dict(lm, optimizer)["param_groups"]
    state: Any = {"state": entries, "param_groups": groups}
    set_optimizer_state_dict(lm, optimizer, state, options=_WHOLE)
