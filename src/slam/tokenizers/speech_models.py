"""The name or folder of a pretrained speech model → its first blocks, and what they are known by."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from slam.errors import InputError, reason_of
from slam.hub import silence_retries

FAMILIES = ("hubert", "wav2vec2", "wavlm", "data2vec-audio")
PINNED = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})")
# what a model computes from its weights; the rest of its config concerns training or other heads
_SHAPING = (
    *("model_type", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "feat_extract_activation"),
    *("num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "conv_pos_kernel_size"),
    *("conv_pos_batch_norm", "do_stable_layer_norm", "feat_proj_layer_norm", "layer_norm_eps"),
    *("adapter_attn_dim", "num_buckets", "max_bucket_distance"),
)
_UNUSED = re.compile(r"masked_spec_embed$|^adapter\.")  # weights that no hidden state depends on


def speech_model_config(place: str, name: str, commit: str | None) -> Any:
    """The model's config.

    Raises:
        InputError: there is none, or it is of a family that is not known.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    silence_retries()
    try:
        config = AutoConfig.from_pretrained(name, revision=commit, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        hint = "; give it as a folder (model) where there is no network" if commit else ""
        raise InputError(f"{place}: no model that transformers can load ({reason_of(error)}){hint}") from None
    if config.model_type not in FAMILIES:
        raise InputError(f"{place}: is a {config.model_type} model; known are {', '.join(FAMILIES)}")
    return config


def preprocessor_config(name: str, commit: str | None) -> dict[str, Any]:
    """What the model's feature extractor says, or nothing."""
    from transformers import Wav2Vec2FeatureExtractor

    try:
        said, _ = Wav2Vec2FeatureExtractor.get_feature_extractor_dict(name, revision=commit)
    except OSError:
        return {}
    return dict(said)


def speech_model(place: str, name: str, commit: str | None, config: Any) -> Any:
    """The model in fp32, with as many blocks as `config` says and nothing behind them."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel

    try:
        with _quiet():
            loaded: Any = AutoModel.from_pretrained(
                name,
                revision=commit,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{place}: no safetensors weights that transformers can load ({reason_of(error)}); convert a "
            "pytorch_model.bin with AutoModel.from_pretrained(…).save_pretrained(FOLDER)"
        ) from None
    model, loading = loaded
    missing = sorted(key for key in loading["missing_keys"] if not _UNUSED.search(key))
    if missing:  # transformers fills them in with random numbers
        raise InputError(f"{place}: lacks {len(missing)} weights, the first {missing[0]}")
    if getattr(config, "do_stable_layer_norm", False):
        # this variant normalises behind its last block, which is not the last one any more
        model.encoder.layer_norm = torch.nn.Identity()
    if getattr(model, "adapter", None) is not None:
        model.adapter = None
    return model.eval().requires_grad_(False)  # noqa: FBT003 - torch's signature


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report that the blocks behind the layer were not used."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    before, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if had_bar:
            logging.enable_progress_bar()


def weights_digest(model: Any) -> str:
    """Of the weights and of what shapes the computation: the same from a folder, the hub or a whole model."""
    shaping = {key: getattr(model.config, key, None) for key in _SHAPING}
    content = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode())
    for key, weights in sorted(model.state_dict().items()):
        if not _UNUSED.search(key):
            content.update(f"{key} {tuple(weights.shape)} {weights.dtype}".encode())
            content.update(weights.cpu().contiguous().numpy().data)
    return content.hexdigest()[:16]
