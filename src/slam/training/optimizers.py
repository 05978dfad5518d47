"""A model and settings → the optimizers that update it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from slam.budget import TrainingConfig
from slam.errors import ConfigError
from slam.training.parallel import divided


def make_optimizers(lm: PreTrainedModel, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Fused AdamW for all weights, or Muon (torch's own) for the body's matrices and AdamW for the rest.

    Muon's steps are scaled to the root mean square of AdamW's (Liu et al., 2025); weight decay is on
    matrices only. Each group knows its `peak` learning rate and whether it belongs to the `body`.

    Raises:
        ConfigError: Muon, which needs whole matrices, on a model whose weights are divided.
    """
    head = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    tables = {id(part.weight) for part in (lm.get_input_embeddings(), head)}
    weights = [weight for weight in lm.parameters() if weight.requires_grad]
    body = [weight for weight in weights if id(weight) not in tables]
    products = {
        id(module.weight) for module in lm.modules() if isinstance(module, torch.nn.Linear | Conv1D)
    }  # not a table of positions, which is looked up
    by_muon = [weight for weight in body if config.optimizer == "muon" and id(weight) in products]
    if by_muon and divided(lm):
        raise ConfigError('optimizer = "muon" needs whole matrices; use sharding = "replicate", or adamw')
    left = {id(weight) for weight in by_muon}
    rest = [weight for weight in body if id(weight) not in left]
    groups = (
        ([weight for weight in weights if id(weight) in tables], False, config.weight_decay),
        ([weight for weight in rest if weight.ndim > 1], True, config.weight_decay),
        ([weight for weight in rest if weight.ndim <= 1], True, 0.0),
    )
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": some, "weight_decay": decay, "peak": config.learning_rate, "body": of_body}
                for some, of_body, decay in groups
                if some
            ],
            betas=config.betas,
            fused=True,
        )
    ]
    if by_muon:
        optimizers.append(
            torch.optim.Muon(
                [{"params": by_muon, "peak": config.muon_learning_rate, "body": True}],
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def update(optimizers: Sequence[torch.optim.Optimizer], rate: float, *, body: bool) -> None:
    """Take a step at `rate`, a share of each group's peak; without `body` only the embeddings move."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["peak"] if body or not group["body"] else 0.0
        optimizer.step()


class Moved:
    """How many of a sample of weights an update moves: weights kept in bf16 would lose small ones."""

    _SAMPLE = 1024  # of each parameter

    def __init__(self, lm: PreTrainedModel) -> None:
        self._before = self._sample(lm)

    def share(self, lm: PreTrainedModel) -> float:
        """The share of the sampled weights that differ from what they were."""
        return float((self._sample(lm) != self._before).float().mean())

    def _sample(self, lm: PreTrainedModel) -> Tensor:
        local: Any = (
            w.to_local() if hasattr(w, "to_local") else w for w in lm.parameters() if w.requires_grad
        )
        return torch.cat([weight.detach().flatten()[: self._SAMPLE] for weight in local])
