"""A causal LM → the same with low-rank adapters (LoRA, Hu et al., 2021), which alone are trained, and back.

The adapters are peft's. They stand inside the very model that was given, so that whatever holds it goes on
holding it, and in the end they are added into its matrices: what is saved is a stock checkpoint.
"""

from typing import TYPE_CHECKING

from slam.errors import MissingExtraError

if TYPE_CHECKING:
    from peft import LoraModel
    from transformers import PreTrainedModel

_NAME = "default"  # peft's own, of the one adapter that each layer has


def add_adapters(lm: "PreTrainedModel", *, rank: int, alpha: int, seed: int) -> "LoraModel":
    """Give every linear layer of `lm` but its head an adapter, in place, and freeze all else.

    An adapter adds `alpha / rank` times the product of two matrices, the second of which is 0 at first: the
    model says what it said.

    Args:
        lm: a stock model.
        rank: of the two matrices.
        alpha: how much they count.
        seed: decides the first matrix.

    Returns:
        What can add the adapters into the matrices again: see `merge`.

    Raises:
        MissingExtraError: peft is not installed.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    try:
        import peft
    except ModuleNotFoundError:
        raise MissingExtraError(
            "peft is not installed: pip install 'slam[lora]', or leave lora_rank out"
        ) from None
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in lm.modules()),
    )
    return peft.LoraModel(lm, {_NAME: config}, _NAME)


def merge(adapted: "LoraModel") -> None:
    """Add the adapters into the matrices of the model that was given to `add_adapters`, and take them out."""
    adapted.merge_and_unload()
