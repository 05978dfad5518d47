"""Small models of the real architectures with random weights, saved as published ones are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from transformers import (
    AutoModel,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

LAYERS = 4
WIDTH = 24
_SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.5,  # which must not drop anything here
}
_POSITIONS = {"num_conv_pos_embeddings": 16}
_LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_25_HZ = {
    "conv_dim": (16,) * 8,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2, 2),
}

FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "hubert-base": lambda: HubertModel(HubertConfig(**_SIZES | _POSITIONS)),
    "hubert-large": lambda: HubertModel(HubertConfig(**_SIZES | _POSITIONS | _LARGE)),
    "mhubert-25hz": lambda: HubertModel(HubertConfig(**_SIZES | _POSITIONS | _25_HZ)),
    "mhubert-batch-norm": lambda: HubertModel(
        HubertConfig(**_SIZES | _POSITIONS, conv_pos_batch_norm=True, feat_proj_layer_norm=False)
    ),
    "wav2vec2-base": lambda: Wav2Vec2Model(Wav2Vec2Config(**_SIZES | _POSITIONS)),
    "wav2vec2-large-adapter": lambda: Wav2Vec2Model(
        Wav2Vec2Config(**_SIZES | _POSITIONS | _LARGE, add_adapter=True, adapter_attn_dim=4)
    ),
    "wavlm-base": lambda: WavLMModel(WavLMConfig(**_SIZES | _POSITIONS)),
    "wavlm-large": lambda: WavLMModel(WavLMConfig(**_SIZES | _POSITIONS | _LARGE)),
    "data2vec-audio": lambda: Data2VecAudioModel(
        Data2VecAudioConfig(**_SIZES, num_conv_pos_embeddings=2, conv_pos_kernel_size=5)
    ),
}


def save_model(
    folder: Path, family: str = "hubert-base", *, normalize: bool | None = False, seed: int = 0
) -> Path:
    """Save a model, with the feature extractor beside it unless `normalize` is None."""
    torch.manual_seed(seed)
    model = FAMILIES[family]()
    with torch.no_grad():  # random norms and biases, for those of a fresh model do nothing
        for name, weights in model.named_parameters():
            if weights.ndim == 1 and "masked" not in name:
                weights.add_(0.2 * torch.randn_like(weights))
    model.save_pretrained(folder)
    if normalize is not None:
        Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
    return folder


def save_as_published(folder: Path, *, layers: int = 11, family: str = "mhubert-25hz") -> tuple[Path, Path]:
    """A model with as many layers as a preset asks for, and 500 centroids pickled as published ones are."""
    torch.manual_seed(0)
    small = FAMILIES[family]().config
    model = AutoModel.from_config(type(small).from_dict(small.to_dict() | {"num_hidden_layers": layers}))
    model.save_pretrained(folder / family)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder / family)  # the preset knows better
    kmeans = MiniBatchKMeans(500)
    kmeans.cluster_centers_ = np.random.default_rng(0).normal(size=(500, WIDTH)).astype(np.float32)
    joblib.dump(kmeans, folder / "km500.bin")
    return folder / family, folder / "km500.bin"
