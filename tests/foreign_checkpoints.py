"""Speech LMs as other toolkits keep them: tiny, of random weights, written here in their layouts."""

import json

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tiny_families import GROUPED, SIZES

NUM_UNITS = 20
ROPE_THETA = 7_000.0  # no family's default
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}


def stock(family, vocab_size=NUM_UNITS + 2, seed=0, **changes):
    """A model built by transformers itself: what an imported one must equal."""
    import transformers

    rotated = {"rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA}}
    sizes = GROUPED | {"vocab_size": vocab_size} | _SPECIAL
    opt = {"ffn_dim": 64, "word_embed_proj_dim": 32, "vocab_size": vocab_size}
    configs = {
        "qwen2": lambda: transformers.Qwen2Config(**sizes | rotated | changes),
        "qwen2-tied": lambda: transformers.Qwen2Config(
            **sizes | rotated | {"tie_word_embeddings": True} | changes
        ),
        "llama": lambda: transformers.LlamaConfig(**sizes | rotated | changes),
        "opt": lambda: transformers.OPTConfig(
            **{k: v for k, v in SIZES.items() if k != "intermediate_size"} | opt | _SPECIAL | changes
        ),
    }
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_config(configs[family]()).eval()
    with torch.no_grad():
        for weight in lm.parameters():
            weight.mul_(5 if weight.ndim > 1 else 1)
    return lm


def weights_of(lm, prefix=""):
    """As they are saved: tied ones once."""
    tied = lm.config.tie_word_embeddings
    return {
        prefix + name: weight.contiguous()
        for name, weight in lm.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def config_of(lm, version):
    """The config as transformers 4.48 or 5 writes it."""
    written = json.loads(json.dumps(lm.config.to_dict(), default=str))
    written["architectures"] = [type(lm).__name__]
    if version == 5:
        return written | {"dtype": "float32"}
    rope = written.pop("rope_parameters", None)
    for name in ("dtype", "layer_types"):
        written.pop(name, None)
    if rope is not None:
        written |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    return written | {"torch_dtype": "bfloat16", "transformers_version": "4.48.3"}


def write_slamkit(folder, lm, version=4, *, shards=1, dtype=torch.float32, **changes):
    """slamkit's layout: a config around the stock one, weights' names begin with `lm.`."""
    folder.mkdir(parents=True, exist_ok=True)
    outer = {
        "architectures": ["UnitLM"],
        "model_type": "speech_language_model",
        "base_model_name": "Qwen/Qwen2.5-0.5B",
        "base_config": config_of(lm, version) | {"vocab_size": 151_936},  # of the base that was resized
        "vocab_size": lm.config.vocab_size,
        "twist_init": True,
        "tie_word_embeddings": lm.config.tie_word_embeddings,
        "torch_dtype": "bfloat16",
        "trust_remote_code": None,
    }
    (folder / "config.json").write_text(json.dumps(outer | changes))
    weights = {name: weight.to(dtype) for name, weight in weights_of(lm, "lm.").items()}
    if shards == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder
    names = sorted(weights)
    places = {name: f"model-{n % shards + 1:05d}-of-{shards:05d}.safetensors" for n, name in enumerate(names)}
    for place in set(places.values()):
        save_file({name: weights[name] for name in names if places[name] == place}, folder / place)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_stock(folder, lm, version=4, **changes):
    """A stock checkpoint, as TWIST's are: `offset` in the config is the token of unit 0."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(lm, version) | changes))
    save_file(weights_of(lm), folder / "model.safetensors", {"format": "pt"})
    return folder
