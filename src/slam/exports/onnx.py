"""A speech LM → `model.onnx`: `input_ids` int64 `[batch, length]` → `logits` fp32 `[batch, length, V]`.

The whole document goes in at once, without a cache: made for scoring, and for continuations where nothing
else runs. Attention is causal, so padding on the right changes nothing before it, and no mask is needed.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from slam.errors import ConfigError, InputError, MissingExtraError, reason_of
from slam.exports import DtypeName, probe
from slam.exports.stock import check_tokenizer, logits
from slam.model import SpeechLM
from slam.unit_tokenizer import save_unit_tokenizer

MODEL_FILE = "model.onnx"
_TOLERANCE = 1e-4
_SHAPES = ((1, 1), (1, 2), (3, 31), (5, 60))  # none is the one that was exported from


class _Logits(torch.nn.Module):
    """What is exported: tokens to logits, nothing else."""

    def __init__(self, lm: torch.nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.lm(input_ids=input_ids, use_cache=False).logits
        return logits


def write(speech_lm: SpeechLM, out: Path, dtype: DtypeName) -> dict[str, Any]:
    """Write `model.onnx` and the tokenizer into `out`, and run it beside the model.

    Raises:
        ConfigError: another type than fp32 is asked for.
        MissingExtraError: what exports or runs it is not installed.
        InputError: the model cannot be exported, or its logits are others.
    """
    if dtype != "fp32":
        raise ConfigError(f"dtype = {dtype}: an ONNX file is written in fp32 only")
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"onnx needs the package {error.name!r}; install it: pip install 'slam[onnx]'"
        ) from None
    lm = speech_lm.lm.train(mode=False)
    lm.set_attn_implementation("sdpa")
    _export(lm, probe(speech_lm.vocabulary, (2, 7)), out)
    save_unit_tokenizer(out, speech_lm.vocabulary)
    session = onnxruntime.InferenceSession(out / MODEL_FILE, providers=["CPUExecutionProvider"])
    largest = 0.0
    context = getattr(lm.config, "max_position_embeddings", None) or _SHAPES[-1][1]
    for size, length in _SHAPES:
        ids = probe(speech_lm.vocabulary, (size, min(length, context)))
        found = torch.from_numpy(session.run(["logits"], {"input_ids": ids.numpy()})[0])
        largest = max(largest, float((found - logits(lm, ids)).abs().max()))
    if not largest <= _TOLERANCE:
        raise InputError(f"{out / MODEL_FILE}: its logits differ by {largest:.2g} from the model's")
    return {
        "shapes_run": len(_SHAPES),
        "tokens_spelled_back": check_tokenizer(out, speech_lm),
        "largest_logit_difference": largest,
    }


def _export(lm: torch.nn.Module, ids: torch.Tensor, out: Path) -> None:
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it names libraries of vision that are not there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own insides
            torch.onnx.export(
                _Logits(lm).eval(),
                (ids,),
                out / MODEL_FILE,
                dynamo=True,
                verbose=False,
                input_names=["input_ids"],
                output_names=["logits"],
                dynamic_shapes={"input_ids": free},
            )
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
        raise InputError(
            f"torch.onnx cannot export a {type(lm).__name__} ({reason_of(error)}); use another form"
        ) from None
    finally:
        logger.setLevel(level)
