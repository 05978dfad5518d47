"""Published unit HiFi-GANs (fairseq's and textlesslib's CodeHiFiGAN): units → sound in the voice they learnt.

Each unit has an embedding; a HiFi-GAN generator (Kong et al., 2020; section 2.2) makes the frames' embeddings
into samples (Polyak et al., 2021). Durations that units lack are predicted (Lee et al., 2021). Utterances are
spoken one at a time: the generator's biases would make padding heard, and so a sound never depends on its
batch.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from slam.audio import Audio
from slam.errors import ConfigError, MismatchError
from slam.tokenizers import SpeechTokenizer
from slam.units import Units
from slam.vocoders.unit_hifigan_files import (
    ENDS_KERNEL,
    DurationSettings,
    Settings,
    find_files,
    load_weights,
    read_settings,
)

if TYPE_CHECKING:
    import torch

_SLOPE = 0.1  # of the leaky ReLUs, but for the last one, which has torch's default of 0.01
_CHUNK_SAMPLES = 320_000  # spoken at a time; 20 s at 16 kHz
_MAX_DURATION = np.iinfo(np.uint16).max  # as in `Units`


@dataclass(frozen=True, eq=False)
class UnitHiFiGAN:
    """A generator on the best device, and the durations it learnt, if any."""

    folder: Path
    settings: Settings
    net: Any  # torch's modules under their published names, weight norm folded in

    name = "unit-hifigan"

    @property
    def sample_rate(self) -> int:
        """The config's, in Hz."""
        return self.settings.sampling_rate

    @classmethod
    def for_tokenizer(cls, tokenizer: SpeechTokenizer, *, folder: Path | None = None) -> Self:
        """Load the vocoder in `folder`, which must have been made for the tokenizer's units.

        The files tell how many units there are and how long a frame is, not which tokenizer made them.

        Raises:
            ConfigError: no folder is given, or the vocoder needs more than units.
            MismatchError: it speaks another number of units, or frames of another length.
            InputError: the folder does not hold one config and one checkpoint that belong together.
        """
        import torch

        from slam.devices import best_device

        if folder is None:
            raise ConfigError(
                "unit-hifigan needs its weights: give the folder of its config and checkpoint as vocoder_from"
            )
        config, checkpoint = find_files(folder)
        settings = read_settings(config)
        if settings.num_embeddings != tokenizer.num_units:
            raise MismatchError(
                f"{config}: speaks {settings.num_embeddings} units, the tokenizer {tokenizer.name!r} has "
                f"{tokenizer.num_units}; give the vocoder that was made for its units"
            )
        frame_rate = settings.sampling_rate / settings.samples_per_frame
        if not isclose(frame_rate, tokenizer.frame_rate):
            raise MismatchError(
                f"{config}: speaks {frame_rate:g} frames a second, the tokenizer {tokenizer.name!r} makes "
                f"{tokenizer.frame_rate:g}; give the vocoder that was made for its units"
            )
        with torch.device("meta"):  # no random numbers are drawn for what is replaced at once
            net = _modules(settings)
        load_weights(net, checkpoint)
        return cls(folder, settings, net.to(best_device()))

    def decode(self, batch: Sequence[Units]) -> list[Audio]:
        """Each `Units` → its frames' samples; without durations, each unit lasts as long as predicted.

        Raises:
            ConfigError: units carry no durations and the vocoder predicts none.
            MismatchError: units are not those of the tokenizer.
        """
        import torch

        with torch.inference_mode(), _exact():
            return [Audio(self._speak(self._frames(units)), self.sample_rate) for units in batch]

    def _frames(self, units: Units) -> "torch.Tensor":
        """One unit id a frame, `[F]`, on the device."""
        import torch

        ids = self._checked(units)
        lasting = self.durations(units) if units.durations is None else units.durations.astype(np.int64)
        return ids.repeat_interleave(torch.from_numpy(lasting).to(ids.device))

    def durations(self, units: Units) -> npt.NDArray[np.int64]:
        """Frames of each unit, `[N]`, as the predictor has learnt.

        Raises:
            ConfigError: the vocoder predicts none.
            MismatchError: units are not those of the tokenizer.
        """
        import torch

        ids = self._checked(units)
        if not len(units):
            return np.zeros(0, np.int64)
        if "dur_predictor" not in self.net:
            raise ConfigError(
                f"the vocoder in {self.folder} predicts no durations, and units that a model wrote carry "
                "none; give one whose config has dur_predictor_params"
            )
        with torch.inference_mode(), _exact():
            found = _durations(self.net["dur_predictor"], self.net["dict"](ids).T[None])
        return np.asarray(found.cpu().numpy(), np.int64)

    def _checked(self, units: Units) -> "torch.Tensor":
        """Unit ids `[N]` on the device."""
        import torch

        if not isclose(units.frame_rate * self.settings.samples_per_frame, self.sample_rate):
            raise MismatchError(
                f"units of {units.frame_rate:g} frames a second; the vocoder in {self.folder} speaks "
                f"{self.sample_rate / self.settings.samples_per_frame:g}"
            )
        if len(units) and int(units.ids.max()) >= self.settings.num_embeddings:
            raise MismatchError(
                f"unit {units.ids.max()}: the vocoder in {self.folder} speaks units 0 to "
                f"{self.settings.num_embeddings - 1}"
            )
        return torch.from_numpy(units.ids.astype(np.int64)).to(self.net["dict"].weight.device)

    def _speak(self, frames: "torch.Tensor") -> npt.NDArray[np.float32]:
        """Unit ids `[F]` → samples `[samples_per_frame · F]`.

        In chunks, so that memory does not grow with the utterance. Each sees all frames that its samples
        depend on; only the order of sums, so the last bits, may differ from speaking the whole at once.
        """
        scale, context = self.settings.samples_per_frame, self.settings.context
        step = max(1, _CHUNK_SAMPLES // scale)
        samples = np.zeros(len(frames) * scale, np.float32)
        for start in range(0, len(frames), step):
            first, end = max(0, start - context), min(len(frames), start + step)
            sound = _generate(self.settings, self.net, frames[first : end + context])
            samples[start * scale : end * scale] = (
                sound[(start - first) * scale : (end - first) * scale].cpu().numpy()
            )
        return samples


def _exact() -> AbstractContextManager[Any]:
    """TF32 keeps 10 bits of each weight and sample, 16-bit sound has more."""
    import torch

    flags: AbstractContextManager[Any] = torch.backends.cudnn.flags(
        enabled=True, deterministic=True, allow_tf32=False
    )
    return flags


def _modules(settings: Settings) -> Any:
    """Torch's modules under the published names, without memory or values."""
    from torch import nn

    def block(channels: int, kernel: int, dilations: tuple[int, ...]) -> nn.ModuleDict:
        def convs(row: tuple[int, ...]) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Conv1d(channels, channels, kernel, dilation=each, padding=kernel // 2 * each)
                for each in row
            )

        if settings.resblock == "2":
            return nn.ModuleDict({"convs": convs(dilations)})
        return nn.ModuleDict({"convs1": convs(dilations), "convs2": convs((1,) * len(dilations))})

    widths = [settings.upsample_initial_channel >> stage for stage in range(len(settings.upsample_rates) + 1)]
    net = nn.ModuleDict(
        {
            "dict": nn.Embedding(settings.num_embeddings, settings.embedding_dim),
            "conv_pre": nn.Conv1d(settings.width, widths[0], ENDS_KERNEL, padding=ENDS_KERNEL // 2),
            "ups": nn.ModuleList(
                nn.ConvTranspose1d(wide, narrow, kernel, rate, padding=(kernel - rate) // 2)
                for wide, narrow, kernel, rate in zip(
                    widths, widths[1:], settings.upsample_kernel_sizes, settings.upsample_rates, strict=False
                )
            ),
            "resblocks": nn.ModuleList(
                block(channels, kernel, dilations)
                for channels in widths[1:]
                for kernel, dilations in zip(settings.resblock_kernel_sizes, settings.dilations, strict=True)
            ),
            "conv_post": nn.Conv1d(widths[-1], 1, ENDS_KERNEL, padding=ENDS_KERNEL // 2),
        }
    )
    if settings.multispkr:
        net["spkr"] = nn.Embedding(settings.num_speakers, settings.embedding_dim)
    if settings.multistyle:
        net["style"] = nn.Embedding(settings.num_styles, settings.embedding_dim)
    if settings.dur_predictor_params:
        net["dur_predictor"] = _duration_predictor(settings.dur_predictor_params)
    return net


def _duration_predictor(settings: DurationSettings) -> Any:
    """Two convolutions, each with a layer norm, and a projection; dropout is for training."""
    from torch import nn

    hidden, kernel = settings.var_pred_hidden_dim, settings.var_pred_kernel_size

    def conv(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(width, hidden, kernel, padding=kernel // 2), nn.ReLU())

    return nn.ModuleDict(
        {
            "conv1": conv(settings.encoder_embed_dim),
            "ln1": nn.LayerNorm(hidden),
            "conv2": conv(hidden),
            "ln2": nn.LayerNorm(hidden),
            "proj": nn.Linear(hidden, 1),
        }
    )


def _generate(settings: Settings, net: Any, frames: "torch.Tensor") -> "torch.Tensor":
    """Unit ids `[F]` → samples `[samples_per_frame · F]`, in -1 to 1."""
    import torch
    from torch.nn.functional import leaky_relu

    parts = [net["dict"](frames)]
    for part, chosen in (("spkr", settings.speaker), ("style", settings.style)):
        if part in net:
            parts.append(net[part].weight[chosen].expand_as(parts[0]))
    sound = net["conv_pre"](torch.cat(parts, dim=1).T[None])  # [1, channels, F]
    per_stage = len(settings.resblock_kernel_sizes)
    for stage, up in enumerate(net["ups"]):
        sound = up(leaky_relu(sound, _SLOPE))
        blocks = net["resblocks"][stage * per_stage : (stage + 1) * per_stage]
        total = _residual(blocks[0], sound)
        for block in blocks[1:]:
            total += _residual(block, sound)
        sound = total / per_stage
    return torch.tanh(net["conv_post"](leaky_relu(sound)))[0, 0]


def _residual(block: Any, sound: "torch.Tensor") -> "torch.Tensor":
    """`[1, channels, T]` → the same, what the block's convolutions find added."""
    from torch.nn.functional import leaky_relu

    if "convs" in block:  # type 2
        for conv in block["convs"]:
            sound = conv(leaky_relu(sound, _SLOPE)) + sound
        return sound
    for dilated, plain in zip(block["convs1"], block["convs2"], strict=True):
        found = plain(leaky_relu(dilated(leaky_relu(sound, _SLOPE)), _SLOPE))
        sound = found + sound
    return sound


def _durations(predictor: Any, embedded: "torch.Tensor") -> "torch.Tensor":
    """Embeddings of units `[1, width, N]` → the frames that each lasts, `[N]`."""
    hidden = predictor["ln1"](predictor["conv1"](embedded).transpose(1, 2)).transpose(1, 2)
    hidden = predictor["ln2"](predictor["conv2"](hidden).transpose(1, 2))
    logarithms = predictor["proj"](hidden)[0, :, 0]  # of the duration plus one
    frames: torch.Tensor = (logarithms.exp() - 1).round().clamp(1, _MAX_DURATION).long()
    return frames
