"""A speech LM of the Qwen2 or the Llama family → `model.gguf`, which llama.cpp runs.

The converter that llama.cpp publishes is a script of its repository, in no package, and refuses a tokenizer
that it does not know. So the file is written with `gguf`, llama.cpp's own library: its names of tensors, its
keys, its types. Units are user-defined tokens of an empty byte-pair encoding, the others control tokens.
"""

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slam.errors import InputError, MissingExtraError
from slam.exports import DtypeName, probe
from slam.exports.stock import check_tokenizer, logits
from slam.model import SpeechLM
from slam.unit_tokenizer import save_unit_tokenizer, token_names

MODEL_FILE = "model.gguf"
FAMILIES = {"qwen2": "QWEN2", "llama": "LLAMA"}
_TOLERANCE = 1e-4


def write(speech_lm: SpeechLM, out: Path, dtype: DtypeName) -> dict[str, Any]:
    """Write `model.gguf` and the tokenizer into `out`, and read it back twice: by `gguf`, and as a model.

    Raises:
        MissingExtraError: `gguf` is not installed.
        InputError: another family, or what was read back is not what was written.
    """
    from transformers import AutoModelForCausalLM

    lm, config = speech_lm.lm, speech_lm.lm.config
    if config.model_type not in FAMILIES:
        raise InputError(
            f"gguf: of a {config.model_type} no GGUF is written, only of {' and '.join(FAMILIES)}; "
            "export it to transformers instead"
        )
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        raise InputError("gguf: a llama with biases has no place for them in a GGUF file")
    if config.rope_parameters.get("rope_type", "default") != "default":
        raise InputError("gguf: scaled rotary positions are not written; export it to transformers instead")
    expected = _tensors(speech_lm, dtype)
    _write(speech_lm, expected, out / MODEL_FILE, dtype)
    save_unit_tokenizer(out, speech_lm.vocabulary)
    _check_tensors(out / MODEL_FILE, expected)
    with torch.no_grad():  # what rounding did is meant; the file must say no other model
        for weight in lm.parameters():
            weight.copy_(weight.to(_torch_type(weight, dtype)))
    with redirect_stderr(StringIO()):  # its bar asks nobody
        again = AutoModelForCausalLM.from_pretrained(
            out, gguf_file=MODEL_FILE, dtype=torch.float32, trust_remote_code=False
        )
    ids = probe(speech_lm.vocabulary)
    difference = float((logits(again, ids) - logits(lm, ids)).abs().max())
    if not difference <= _TOLERANCE:
        raise InputError(f"{out / MODEL_FILE}: its logits differ by {difference:.2g} from the model's")
    return {
        "weights_equal": len(expected),
        "tokens_spelled_back": check_tokenizer(out, speech_lm),
        "largest_logit_difference": difference,
    }


def _torch_type(weight: Tensor, dtype: DtypeName) -> torch.dtype:
    """Vectors stay fp32, as llama.cpp wants them."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.float32 if weight.ndim == 1 else kinds[dtype]


def _tensors(speech_lm: SpeechLM, dtype: DtypeName) -> dict[str, Tensor]:
    """GGUF's name → tensor, in the type that is written."""
    gguf = _gguf()
    lm, config = speech_lm.lm, speech_lm.lm.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[FAMILIES[config.model_type]], config.num_hidden_layers)
    tensors = {}
    for name, parameter in lm.named_parameters():  # a head that is tied is left out: llama.cpp ties it too
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise InputError(f"gguf: {name} has no name in a GGUF file of a {config.model_type}")
        weight = parameter.detach().cpu()
        if config.model_type == "llama":
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
            for part, count in heads.items():
                if f".{part}." in name:
                    weight = _interleaved(weight, count)
        tensors[found] = weight.to(_torch_type(weight, dtype)).contiguous()
        if not torch.isfinite(tensors[found]).all():
            raise InputError(f"gguf: {name} holds numbers that {dtype} cannot; export it in fp32 or bf16")
    return tensors


def _interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of each head in the order of llama.cpp's Llama: it turns neighbours, transformers turns halves."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _write(speech_lm: SpeechLM, tensors: dict[str, Tensor], path: Path, dtype: DtypeName) -> None:
    gguf = _gguf()
    config, vocabulary = speech_lm.lm.config, speech_lm.vocabulary
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_name("speech language model")
    writer.add_description(f"units of {speech_lm.tokenizer} {speech_lm.tokenizer_fingerprint}")
    kinds = {"fp32": "ALL_F32", "bf16": "MOSTLY_BF16", "fp16": "MOSTLY_F16"}
    writer.add_file_type(gguf.LlamaFileType[kinds[dtype]])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(vocabulary.size)
    names = token_names(vocabulary)
    control, defined = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_types([control if n < vocabulary.offset else defined for n in range(len(names))])
    writer.add_token_merges(["< u"])  # the key must be there; its pieces are no tokens, so it merges nothing
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_pad_token_id(vocabulary.pad)
    writer.add_add_bos_token(value=True)
    writer.add_add_eos_token(value=False)
    for name, weight in tensors.items():
        raw, kind = _raw(weight)
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _raw(weight: Tensor) -> tuple[npt.NDArray[Any], Any]:
    """A tensor as numpy holds it, and its type if numpy has none such."""
    if weight.dtype == torch.bfloat16:
        kind = _gguf().GGMLQuantizationType.BF16
        return weight.view(torch.int16).numpy().view(np.uint8), kind
    return weight.numpy(), None


def _check_tensors(path: Path, expected: dict[str, Tensor]) -> None:
    """Read the file back: every tensor must be there with its shape, and equal bit for bit."""
    gguf = _gguf()
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if found.keys() != expected.keys():
        raise InputError(f"{path}: holds other tensors than were written")
    for name, weight in expected.items():
        # a GGUF file says sizes from the innermost outwards
        shape = [int(size) for size in reversed(found[name].shape)]
        values = gguf.dequantize(found[name].data, found[name].tensor_type)
        if shape != list(weight.shape) or not np.array_equal(
            values.reshape(weight.shape), weight.float().numpy()
        ):
            raise InputError(f"{path}: {name} is not what was written")


def _gguf() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"gguf needs the package {error.name!r}; install it: pip install 'slam[gguf]'"
        ) from None
    return gguf
