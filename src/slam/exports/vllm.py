"""A speech LM → a folder that vLLM loads: token ids in, token ids out.

vLLM builds the model that `config.json` names from classes of its own and reads safetensors by name; it is
not run here. So every file that it reads is held against what it expects.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from slam.errors import InputError
from slam.exports import TORCH_NAMES, DtypeName, stock
from slam.model import SpeechLM
from slam.run import read_json
from slam.units import Vocabulary

# of vLLM's list of supported text models, those that can be trained or imported here
ARCHITECTURES = (
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "OPTForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
_NOT_READ = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.py")


def write(speech_lm: SpeechLM, out: Path, dtype: DtypeName) -> dict[str, Any]:
    """Write `speech_lm` into `out`, and check what vLLM will read."""
    architecture = type(speech_lm.lm).__name__
    if architecture not in ARCHITECTURES:
        raise InputError(f"vLLM is not known to have {architecture}; export it to transformers instead")
    found = stock.write(speech_lm, out, dtype)
    return found | check(out, speech_lm.vocabulary, dtype)


def check(out: Path, vocabulary: Vocabulary, dtype: DtypeName) -> dict[str, Any]:
    """Hold every file that vLLM reads against the others.

    Raises:
        InputError: one of them is not as vLLM needs it.
    """
    config = read_json(out / "config.json")
    if config.get("architectures") is None or config["architectures"][0] not in ARCHITECTURES:
        raise InputError(f"{out / 'config.json'}: architectures names no model that vLLM is known to have")
    if strange := [one.name for pattern in _NOT_READ for one in out.glob(pattern)]:
        raise InputError(f"{out / strange[0]}: holds code or pickles, which are not to be handed on")
    if asked := [key for key in ("auto_map", "quantization_config") if key in config]:
        raise InputError(f"{out / 'config.json'}: asks for {asked[0]}, which vLLM would follow")
    if (config["vocab_size"], config["dtype"]) != (vocabulary.size, TORCH_NAMES[dtype]):
        raise InputError(f"{out / 'config.json'}: says another vocabulary or type than the weights have")
    if "rope_parameters" in config and config["rope_parameters"]["rope_theta"] != config.get("rope_theta"):
        raise InputError(f"{out / 'config.json'}: says two rotary bases")
    generation = GenerationConfig.from_pretrained(out)
    said = (generation.pad_token_id, generation.bos_token_id, generation.eos_token_id)
    if said != (vocabulary.pad, vocabulary.bos, vocabulary.eos):
        raise InputError(f"{out / 'generation_config.json'}: does not end where the model does")
    return {
        "architecture": config["architectures"][0],
        "weights_of_the_shapes_in_config": _check_shapes(out),
        "max_model_len": config.get("max_position_embeddings"),
    }


def _check_shapes(out: Path) -> int:
    """Hold the weights in the file, names and shapes, against those that `config.json` calls for."""
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out))  # type: ignore[no-untyped-call]
    expected = {name: list(weight.shape) for name, weight in built.named_parameters()}
    with safe_open(out / "model.safetensors", framework="pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no dict
    if wrong := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        raise InputError(f"{out / 'model.safetensors'}: {wrong[0]} is not as config.json calls for it")
    return len(found)
