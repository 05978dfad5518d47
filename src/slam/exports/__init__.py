"""The forms in which a speech LM is handed on: functions that write a folder and check what they wrote.

`write(speech_lm, out, dtype) -> {what was checked: what was found}`; the LM comes in fp32 on the CPU. What a
check refuses is an InputError, and the folder is no finished run.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from slam.model import SpeechLM
    from slam.units import Vocabulary

    Write = Callable[[SpeechLM, Path, "DtypeName"], dict[str, Any]]

DtypeName = Literal["fp32", "bf16", "fp16"]
TORCH_NAMES: Mapping[DtypeName, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
BUILT_IN: Mapping[str, str] = {
    "transformers": "slam.exports.stock:write",
    "vllm": "slam.exports.vllm:write",
    "gguf": "slam.exports.gguf:write",
    "onnx": "slam.exports.onnx:write",
}


def probe(vocabulary: "Vocabulary", shape: tuple[int, int] = (4, 24)) -> "Tensor":
    """Documents `[B, N]` of random units, always the same: on them two forms of a model are compared."""
    import torch

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary.offset, vocabulary.size, shape, generator=generator)
    tokens[:, 0] = vocabulary.bos
    return tokens
