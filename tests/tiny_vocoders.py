"""Small unit HiFi-GANs with random weights, saved as published ones are."""

import json
from pathlib import Path
from typing import Any

import torch

Weights = dict[str, torch.Tensor]

CONFIG: dict[str, Any] = {
    "resblock": "1",
    "upsample_rates": [5, 4, 2],
    "upsample_kernel_sizes": [11, 8, 4],
    "upsample_initial_channel": 32,
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 2, 4]],
    "num_embeddings": 12,
    "embedding_dim": 6,
    "model_in_dim": 6,
    "code_hop_size": 40,
    "f0": False,
    "dur_prediction_weight": 1.0,
    "dur_predictor_params": {
        "encoder_embed_dim": 6,
        "var_pred_hidden_dim": 8,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
    "sampling_rate": 1000,
    "dist_config": {"dist_backend": "nccl"},
}
TYPE_2 = {"resblock": "2", "resblock_dilation_sizes": [[1, 2], [2, 6]]}
MANY_VOICES = {"multispkr": "from_input_file", "num_speakers": 3, "model_in_dim": 12}
MANY_STYLES = MANY_VOICES | {"multistyle": "from_input_file", "num_styles": 4, "model_in_dim": 18}
NO_DURATIONS = {"dur_predictor_params": None}
SPEAKS_25_HZ = {"upsample_rates": [5, 8, 16], "upsample_kernel_sizes": [11, 16, 32], "sampling_rate": 16_000}


class _Drawn:
    """Random tensors, by name."""

    def __init__(self, seed: int) -> None:
        self.made: Weights = {}
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, name: str, *shape: int, scale: float = 1.0, mean: float = 0.0) -> None:
        self.made[name] = mean + scale * torch.randn(shape, generator=self._generator)

    def conv(self, name: str, *shape: int, biases: int) -> None:
        """Weight norm in its two halves, as published."""
        self.draw(f"{name}.weight_v", *shape)
        self.draw(f"{name}.weight_g", shape[0], 1, 1)
        self.made[f"{name}.weight_g"] = 0.5 + 0.4 * self.made[f"{name}.weight_g"].abs()
        self.draw(f"{name}.bias", biases, scale=0.3)


def random_weights(config: dict[str, Any], seed: int = 0) -> Weights:
    """Weights of the published names and shapes."""
    drawn = _Drawn(seed)
    wide, width = config["upsample_initial_channel"], config["embedding_dim"]
    drawn.draw("dict.weight", config["num_embeddings"], width)
    drawn.conv("conv_pre", wide, config["model_in_dim"], 7, biases=wide)
    groups = ("convs1", "convs2") if config["resblock"] == "1" else ("convs",)
    num_blocks = len(config["resblock_kernel_sizes"])
    for stage, kernel in enumerate(config["upsample_kernel_sizes"]):
        drawn.conv(f"ups.{stage}", wide, wide // 2, kernel, biases=wide // 2)
        drawn.made[f"ups.{stage}.weight_g"] *= kernel**0.5 / 2  # so that a long row of stages stays audible
        wide //= 2
        for block, size in enumerate(config["resblock_kernel_sizes"]):
            for number in range(len(config["resblock_dilation_sizes"][block])):
                for group in groups:
                    name = f"resblocks.{stage * num_blocks + block}.{group}.{number}"
                    drawn.conv(name, wide, wide, size, biases=wide)
    drawn.conv("conv_post", 1, wide, 7, biases=1)
    for part, asked, count in (("spkr", "multispkr", "num_speakers"), ("style", "multistyle", "num_styles")):
        if config.get(asked):
            drawn.draw(f"{part}.weight", config[count], width)
    if config["dur_predictor_params"]:
        _draw_durations(drawn, width, config["dur_predictor_params"]["var_pred_hidden_dim"])
    return drawn.made


def _draw_durations(drawn: _Drawn, width: int, hidden: int) -> None:
    """From less than a frame to several."""
    for number, size in ((1, width), (2, hidden)):
        drawn.draw(f"dur_predictor.conv{number}.0.weight", hidden, size, 3)
        drawn.draw(f"dur_predictor.conv{number}.0.bias", hidden)
        drawn.draw(f"dur_predictor.ln{number}.weight", hidden, scale=0.2, mean=1.0)
        drawn.draw(f"dur_predictor.ln{number}.bias", hidden, scale=0.2)
    drawn.draw("dur_predictor.proj.weight", 1, hidden, scale=0.4)
    drawn.draw("dur_predictor.proj.bias", 1, scale=0.0, mean=1.0)


def save_vocoder(folder: Path, changes: dict[str, Any] | None = None, *, seed: int = 0) -> Path:
    """A config and a checkpoint under published names and in the published layout."""
    config = CONFIG | (changes or {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hifigan_config.json").write_text(json.dumps(config))
    torch.save({"generator": random_weights(config, seed)}, folder / "hifigan.pt")
    return folder
