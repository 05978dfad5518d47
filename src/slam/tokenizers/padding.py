"""A speech model and recordings of several lengths → a padded batch in which none hears the padding.

`transformers` masks the attention, and the published models were run without even that. Two things more look
across frames: the group norm behind the first convolution, whose statistics run over time, and the
positional convolutions. Here the norm counts real frames only, and every positional convolution finds zeros
behind a recording's end, as it does where the recording is alone.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class _Batch(threading.local):
    """The batch that a thread computes."""

    first_lengths: "torch.Tensor | None" = None  # [B] frames behind the first convolution
    lengths: "torch.Tensor | None" = None  # [B] frames behind the last one


class Padding:
    """What is real in the batch that a model computes; the model asks it."""

    def __init__(self, model: Any) -> None:
        import torch

        self._batch = _Batch()
        self._first = (model.config.conv_kernel[0], model.config.conv_stride[0])
        for module in model.feature_extractor.modules():
            if isinstance(module, torch.nn.GroupNorm):
                self._take_over(module)
        for module in model.encoder.pos_conv_embed.modules():
            if isinstance(module, torch.nn.Conv1d):
                module.register_forward_pre_hook(self._without_padding)

    @contextmanager
    def behind(self, num_samples: "torch.Tensor", num_frames: "torch.Tensor") -> Iterator[None]:
        """Compute a batch whose recordings have `num_samples` `[B]` samples and `num_frames` `[B]` frames."""
        kernel, stride = self._first
        self._batch.first_lengths = (num_samples - kernel) // stride + 1
        self._batch.lengths = num_frames
        try:
            yield
        finally:
            self._batch.first_lengths = self._batch.lengths = None

    def _take_over(self, norm: Any) -> None:
        usual = norm.forward

        def forward(frames: "torch.Tensor") -> "torch.Tensor":
            if self._batch.first_lengths is None:
                return usual(frames)  # type: ignore[no-any-return]
            return _group_norm(norm, frames, self._batch.first_lengths)

        norm.forward = forward

    def _without_padding(self, _: Any, inputs: tuple["torch.Tensor"]) -> "tuple[torch.Tensor] | None":
        """Frames `[B, C, F]` with zeros behind each recording's end."""
        if self._batch.lengths is None:
            return None
        (frames,) = inputs
        return (frames.where(_real(frames, self._batch.lengths), 0.0),)


def _real(frames: "torch.Tensor", lengths: "torch.Tensor") -> "torch.Tensor":
    """`[B, 1, F]`: which of the frames `[B, C, F]` are."""
    import torch

    return (torch.arange(frames.shape[2], device=frames.device) < lengths[:, None])[:, None]


def _group_norm(norm: Any, frames: "torch.Tensor", lengths: "torch.Tensor") -> "torch.Tensor":
    """`[B, C, F]`, each channel normalised over its real frames, in fp32."""
    import torch

    with torch.autocast(frames.device.type, enabled=False):
        exact = frames.float()
        real, count = _real(frames, lengths), lengths[:, None, None]
        mean = exact.where(real, 0.0).sum(dim=2, keepdim=True) / count
        centred = exact - mean
        variance = centred.where(real, 0.0).square().sum(dim=2, keepdim=True) / count
        scaled = centred * (variance + norm.eps).rsqrt()
        normalised: torch.Tensor = scaled * norm.weight[:, None] + norm.bias[:, None]
        return normalised.to(frames.dtype)
