"""The name or folder of a text LM, or sizes → its config, and the model's outline without weights.

What a training will take can be told before a base is here: the sizes of those that the field uses are kept
in `known_bases.toml`, and an outline on torch's meta device has every shape and no memory.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from slam.architecture import Architecture
from slam.errors import InputError
from slam.model import small_qwen2

_FILE = Path(__file__).with_name("known_bases.toml")


@cache
def known_bases() -> Mapping[str, Mapping[str, Any]]:
    """Hub name → `config`, and `parameters` with a vocabulary of 502."""
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))


def base_config(base: str | Architecture) -> Any:
    """The config of a base: sizes of ours, a folder, a known name, or another that the hub's cache holds.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(base, Architecture):
        return small_qwen2(base, context=1024)
    if not Path(base).exists() and base in known_bases():
        sizes = dict(known_bases()[base]["config"])
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError):
        raise InputError(
            f"{base}: no folder of a causal LM, not in the hub's cache, and no base whose sizes are known: "
            f"{', '.join(known_bases())}"
        ) from None


def with_vocabulary(config: Any, size: int, **changes: Any) -> Any:
    """A copy of `config` for a vocabulary of `size` tokens."""
    settings = config.to_dict() | {
        "vocab_size": size,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    if changes:
        settings |= {"layer_types": None} | changes
    return type(config).from_dict({key: value for key, value in settings.items() if value is not None})


def outline(config: Any, vocabulary_size: int) -> PreTrainedModel:
    """The model on the meta device: shapes without weights."""
    with torch.device("meta"):
        lm: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            with_vocabulary(config, vocabulary_size)
        )
    return lm


def num_parameters(lm: PreTrainedModel) -> int:
    """Weights, tied ones once."""
    return sum(weight.numel() for weight in lm.parameters())
