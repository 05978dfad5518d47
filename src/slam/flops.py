"""What a training step multiplies, and what a device could: the two halves of MFU.

MFU = model FLOP/s ÷ peak FLOP/s (Chowdhery et al., 2022, appendix B): the work the model needs, whatever the
implementation does beside it.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from slam.cards import card_of


def training_flops(lm: PreTrainedModel, lengths: Sequence[int]) -> float:
    """FLOP of one forward and backward pass over documents of these `lengths` in tokens.

    6 for every weight of a matrix product and token (the head counts, a table of embeddings does not), and
    6 · layers · width · length² for causal attention inside each document; width is heads times their width.
    """
    config = lm.config
    products = sum(
        module.weight.numel() for module in lm.modules() if isinstance(module, torch.nn.Linear | Conv1D)
    )
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_hidden_layers * config.num_attention_heads * head_width
    attended = sum(length * length for length in lengths)
    return float(6 * (products * sum(lengths) + width * attended))


def peak_flops(device: torch.device) -> float | None:
    """What `device` could multiply in bf16 at best, in FLOP/s, or None where that is not known."""
    if device.type != "cuda":
        return None
    card = card_of(torch.cuda.get_device_name(device))
    return card.peak_flops if card is not None else None
