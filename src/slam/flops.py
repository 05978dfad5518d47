"""What a training step multiplies, and what a device could: the two halves of MFU.

MFU = model FLOP/s ÷ peak FLOP/s (Chowdhery et al., 2022, appendix B): the work the model needs, whatever the
implementation does beside it.
"""

import re
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

# Dense bf16 products in FLOP/s with fp32 sums, from the makers' data sheets. The longest name that a device's
# own name holds counts.
PEAK_FLOPS = {
    "A10": 125e12,
    "A100": 312e12,
    "RTX A5000": 111e12,
    "RTX A6000": 155e12,
    "L4": 121e12,
    "L40S": 362e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165e12,
    "RTX 5090": 209e12,
    "RTX 6000 Ada": 364e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
}


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
    name = torch.cuda.get_device_name(device)
    known = [model for model in PEAK_FLOPS if re.search(rf"\b{model}\b", name)]  # an L40 is no L4
    return PEAK_FLOPS[max(known, key=len)] if known else None
