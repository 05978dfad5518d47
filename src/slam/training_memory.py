"""A model's config and a row of tokens → the memory that a training takes, before it is tried.

What autograd keeps of a token is counted on the model itself, of one block and of two, so that no family's
formula is written down here. A compiled graph keeps less, so this is more than is used on a GPU.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from slam.bases import num_parameters, outline, with_vocabulary
from slam.packing import packed, token_log_likelihoods, use_packed

_DOCUMENT = 8  # tokens; where the scores of attention are kept, which grow with it, they hardly count
_ROWS = (4, 8)  # documents; two, so that what does not grow with them falls out
_PROCESS_BYTES = 500e6  # Python and its libraries, or CUDA's context
_COUNTED: dict[tuple[str, bool], float] = {}  # a recipe asks for one model in several steps
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes, by what they hold."""

    weights: float  # fp32 masters, gradients of the same size, and bf16 copies where products are made in it
    moments: float
    activations: float  # what the backward pass needs of a row

    @property
    def total(self) -> float:
        """All, the process included."""
        return self.weights + self.moments + self.activations + _PROCESS_BYTES


def training_memory(
    config: Any, vocabulary_size: int, *, row_tokens: int, muon: bool, bf16: bool
) -> TrainingMemory:
    """Estimate what training a model of `config` takes.

    Args:
        config: of a `transformers` causal LM.
        vocabulary_size: tokens that it is given.
        row_tokens: in a micro-batch.
        muon: Muon keeps one moment of the body's matrices, AdamW two of every weight.
        bf16: products and activations in bf16 over fp32 weights, as on CUDA.
    """
    lm = outline(config, vocabulary_size)
    count, matrices = num_parameters(lm), body_matrices(lm)
    per_token = activation_bytes(config, vocabulary_size, bf16=bf16)
    return TrainingMemory(
        weights=(8 + 2 * bf16) * count,
        moments=8 * count - (4 * matrices if muon else 0),
        activations=row_tokens * per_token,
    )


def body_matrices(lm: PreTrainedModel) -> int:
    """Weights that Muon would update."""
    head = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    return sum(
        module.weight.numel()
        for module in lm.modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    )


def activation_bytes(config: Any, vocabulary_size: int, *, bf16: bool) -> float:
    """What the backward pass needs of a token: of the ends of the model, and of each of its blocks."""
    one, two = (_kept(config, vocabulary_size, blocks=blocks, bf16=bf16) for blocks in (1, 2))
    blocks: int = config.num_hidden_layers
    return one + (two - one) * (blocks - 1)


def _kept(config: Any, vocabulary_size: int, *, blocks: int, bf16: bool) -> float:
    """Bytes a token that autograd keeps, in a model of so many blocks."""
    small = with_vocabulary(config, vocabulary_size, num_hidden_layers=blocks)
    key = (small.to_json_string(), bf16)
    if key not in _COUNTED:
        _COUNTED[key] = _counted(small, bf16=bf16)
    return _COUNTED[key]


def _counted(small: Any, *, bf16: bool) -> float:
    lm = AutoModelForCausalLM.from_config(small, dtype=torch.float32)  # type: ignore[no-untyped-call]
    lm.train(mode=False)  # training is without dropout
    use_packed(lm)
    few, many = (_saved(lm, count, bf16=bf16) for count in _ROWS)
    return (many - few) / (_DOCUMENT * (_ROWS[1] - _ROWS[0]))


def _saved(lm: PreTrainedModel, documents: int, *, bf16: bool) -> int:
    """Bytes that autograd keeps of a row of so many documents, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in lm.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    row = packed([np.arange(_DOCUMENT) % lm.config.vocab_size] * documents)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        token_log_likelihoods(lm, row).sum()
    return sum(storage.nbytes() for storage in kept.values())


def free_memory() -> float:
    """Bytes that this process may still take on the CPU; without end where nobody says."""
    if sys.platform == "linux" and _MEMINFO.is_file():
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return float("inf")
