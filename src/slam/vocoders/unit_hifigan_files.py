"""A folder with a published unit HiFi-GAN, config and checkpoint → its settings and weights.

Config and names are those of fairseq, textlesslib and speech-resynthesis. The checkpoint is a PyTorch file,
which is read without running it, or safetensors.
"""

from collections.abc import Mapping
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from slam.errors import ConfigError, InputError
from slam.run import read_json
from slam.tensor_files import read_tensors

if TYPE_CHECKING:
    import torch

ENDS_KERNEL = 7  # of the first and the last convolution
_NUM_DILATIONS = {"1": 3, "2": 2}  # that a residual block of a type uses
_NORMS = (  # weight norm's length and direction, as torch named them before 2.0 and names them since
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)

_Size = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
_Sizes = Annotated[tuple[_Size, ...], msgspec.Meta(min_length=1, max_length=64)]
_Index = Annotated[int, msgspec.Meta(ge=0)]


class DurationSettings(msgspec.Struct, frozen=True):
    """Sizes of the duration predictor."""

    encoder_embed_dim: _Size
    var_pred_hidden_dim: _Size
    # the published code pads its second convolution for 3, whatever this says
    var_pred_kernel_size: Literal[3]


class Settings(msgspec.Struct, frozen=True):
    """What speaking needs of the published config; its other fields are about training."""

    num_embeddings: _Size  # units
    embedding_dim: _Size
    upsample_rates: _Sizes
    upsample_kernel_sizes: _Sizes
    upsample_initial_channel: _Size
    resblock_kernel_sizes: _Sizes
    resblock_dilation_sizes: Annotated[tuple[_Sizes, ...], msgspec.Meta(min_length=1)]
    resblock: Literal["1", "2"] = "1"
    model_in_dim: _Size | None = None  # what comes in altogether
    sampling_rate: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 16_000  # Hz; textlesslib's default
    dur_predictor_params: DurationSettings | None = None
    # published values are true, false, null or a word such as "from_input_file"
    multispkr: Any = None
    multistyle: Any = None
    num_speakers: _Size = 200
    num_styles: _Size = 100
    speaker: _Index = 0  # ours: which of them speaks
    style: _Index = 0
    f0: Any = None
    embedder_params: Any = None

    def __post_init__(self) -> None:
        rates, up_kernels = self.upsample_rates, self.upsample_kernel_sizes
        kernels, rows = self.resblock_kernel_sizes, self.resblock_dilation_sizes
        dilations, predictor = _NUM_DILATIONS[self.resblock], self.dur_predictor_params
        if len(rates) != len(up_kernels) or len(kernels) != len(rows):
            raise ValueError(
                "there must be as many kernels as upsample_rates, and as resblock_dilation_sizes"
            )
        if any(kernel < rate or (kernel - rate) % 2 for rate, kernel in zip(rates, up_kernels, strict=True)):
            # then a frame would not become exactly the product of the rates
            raise ValueError("each of upsample_kernel_sizes must be its rate or an even number more")
        if self.upsample_initial_channel >> len(rates) == 0:
            raise ValueError("upsample_initial_channel is halved at each of upsample_rates, down to nothing")
        if any(kernel % 2 == 0 for kernel in kernels):
            raise ValueError("resblock_kernel_sizes must be odd")
        if min(map(len, rows)) < dilations:
            raise ValueError(f"resblock {self.resblock} needs {dilations} in each of resblock_dilation_sizes")
        if self.model_in_dim not in (None, self.width):
            raise ValueError(f"model_in_dim must be {self.width}: the embeddings beside each other")
        if predictor is not None and predictor.encoder_embed_dim != self.embedding_dim:
            raise ValueError("encoder_embed_dim must be embedding_dim")
        if self.speaker >= self.num_speakers or self.style >= self.num_styles:
            raise ValueError("speaker and style must be less than num_speakers and num_styles")

    @property
    def width(self) -> int:
        """Of a frame that comes in: the embeddings of its unit, its speaker and its style."""
        return self.embedding_dim * (1 + bool(self.multispkr) + bool(self.multistyle))

    @property
    def samples_per_frame(self) -> int:
        """How many samples a frame becomes."""
        return prod(self.upsample_rates)

    @property
    def dilations(self) -> list[tuple[int, ...]]:
        """Of each residual block, those that its type uses."""
        return [row[: _NUM_DILATIONS[self.resblock]] for row in self.resblock_dilation_sizes]

    @property
    def context(self) -> int:
        """Frames on either side of a frame that its samples depend on, or a few more."""
        # how far the widest block of each stage sees, in its own samples; type 1 has a plain
        # convolution behind each dilated one
        plain = int(self.resblock == "1")
        blocks = max(
            kernel // 2 * sum(dilation + plain for dilation in row)
            for kernel, row in zip(self.resblock_kernel_sizes, self.dilations, strict=True)
        )
        seen, rate = float(ENDS_KERNEL // 2), 1
        for up, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            seen += kernel / up / rate
            rate *= up
            seen += blocks / rate
        return ceil(seen + (ENDS_KERNEL // 2) / rate)


def find_files(folder: Path) -> tuple[Path, Path]:
    """The config and the checkpoint in `folder`.

    Raises:
        InputError: there is no such folder, or not one of each in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of a vocoder")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    configs = [path for path in files if path.suffix == ".json"]
    checkpoints = [path for path in files if path.suffix in {".pt", ".safetensors"}]
    for what, found in (("config (.json)", configs), ("checkpoint (.pt, .safetensors)", checkpoints)):
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise InputError(f"{folder}: must hold one {what} of a vocoder, holds {names}")
    return configs[0], checkpoints[0]


def read_settings(path: Path) -> Settings:
    """Read a published config.

    Raises:
        InputError: it cannot be read, lacks a field, or its fields contradict each other.
        ConfigError: the vocoder needs more than units.
    """
    try:
        settings = msgspec.convert(read_json(path), Settings)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: no config of a unit HiFi-GAN ({error})") from None
    for needed, what in ((settings.f0, "f0"), (settings.embedder_params, "embedder_params")):
        if needed:
            raise ConfigError(f"{path}: asks for {what}, which units do not carry; give a vocoder without it")
    return settings


def load_weights(net: Any, path: Path) -> None:
    """Give torch's modules `net` the weights in the checkpoint at `path`, in fp32.

    Raises:
        InputError: the checkpoint cannot be read, or its weights are not those of the modules.
    """
    weights, expected = _folded(_read_weights(path), path), net.state_dict()
    advice = "give the config and the checkpoint that belong together"
    for problem, names in (
        ("lacks", expected.keys() - weights.keys()),
        ("holds, beyond what the config asks for,", weights.keys() - expected.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{path}: {problem} {min(names)}{more}; {advice}")
    for name, tensor in expected.items():
        found, asked = list(weights[name].shape), list(tensor.shape)
        if found != asked:
            raise InputError(f"{path}: {name} has the shape {found}, the config asks for {asked}; {advice}")
    net.load_state_dict(weights, assign=True)
    net.requires_grad_(requires_grad=False)


def _read_weights(path: Path) -> "dict[str, torch.Tensor]":
    """Name → tensor, in fp32."""
    found = read_tensors(path)
    if isinstance(found, dict) and isinstance(found.get("generator"), dict):
        found = found["generator"]
    if not isinstance(found, dict) or not all(map(_is_plain, found.values())):
        raise InputError(f"{path}: holds no weights of a generator (a table of names and tensors)")
    return {str(name): tensor.float() for name, tensor in found.items()}


def _is_plain(value: object) -> bool:
    """Whether it is an ordinary tensor of real numbers."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.is_floating_point()
    )


def _folded(found: "Mapping[str, torch.Tensor]", path: Path) -> "dict[str, torch.Tensor]":
    """Weight norm's pairs as the weights that they stand for: length · direction / |direction|.

    The norm is over all axes but the first, transposed convolutions included.
    """
    import torch

    weights = dict(found)
    for length, direction in _NORMS:
        for name in [name for name in found if name.endswith(f".{direction}")]:
            stem = name.removesuffix(direction)
            vectors = weights.pop(name)
            lengths = weights.pop(stem + length, None)
            if (
                lengths is None
                or lengths.shape[1:] != (1, 1)
                or vectors.ndim != lengths.ndim
                or len(vectors) != len(lengths)
            ):
                raise InputError(f"{path}: {name} and {stem}{length} are no weight norm of a convolution")
            norms = torch.linalg.vector_norm(vectors, dim=(1, 2), keepdim=True)
            weights[f"{stem}weight"] = vectors * (lengths / norms)
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{path}: {name} holds values that are not finite")
    return weights
