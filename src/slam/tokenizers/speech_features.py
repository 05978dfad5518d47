"""A pretrained speech model and one of its layers → that layer's hidden state, a frame a row.

HuBERT, mHuBERT, wav2vec 2.0, WavLM and data2vec-audio, as `transformers` implements them. Layers are counted
as fairseq counts them: layer L is the output of the L-th transformer block, before any norm that stands
behind the last one; this is `transformers`' `hidden_states[L]`. Only L blocks are loaded and run, and only
their last output is kept.
"""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slam.audio import Audio
from slam.errors import ConfigError, InputError
from slam.threads import one_thread
from slam.tokenizers.padding import Padding
from slam.tokenizers.speech_models import (
    PINNED,
    preprocessor_config,
    speech_model,
    speech_model_config,
    weights_digest,
)

if TYPE_CHECKING:
    import torch

_SAMPLE_RATE = 16_000  # Hz, of all published models of these families


@dataclass(frozen=True, eq=False)
class SpeechFeatures:
    """The layer of a model, ready to run on the best device."""

    model: Any  # the transformers model, cut behind the layer
    place: str  # absolute folder, or owner/name@commit of the hub
    digest: str  # of the weights that are run and of what is computed from them
    layer: int
    sample_rate: int  # Hz
    normalize: bool  # to zero mean and unit variance over the recording
    padding: tuple[int, int]  # zeros before and after the recording, in samples
    padded: Padding  # of the model
    precision: str = "fp32"  # or "bf16", in which only matrix products and convolutions are
    _lock = threading.RLock()

    @property
    def width(self) -> int:
        """Size of a frame."""
        return int(self.model.config.hidden_size)

    @property
    def frame_rate(self) -> float:
        """Frames a second: the sample rate over the product of the convolutions' strides."""
        return float(self.sample_rate / prod(self.model.config.conv_stride))

    def num_frames(self, num_samples: int) -> int:
        """How many frames a recording of `num_samples` at `sample_rate` has; 0 if it is too short."""
        return self._num_frames(num_samples + sum(self.padding)) if num_samples else 0

    def _num_frames(self, length: int) -> int:
        """The same, of samples that are padded already."""
        for kernel, stride in zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True):
            length = (length - kernel) // stride + 1
            if length < 1:
                return 0
        return length

    def __call__(self, audio: Audio) -> "torch.Tensor":
        """A recording at any rate → its frames `[F, width]`, fp32, on the model's device.

        Raises:
            InputError: its samples, or what the model makes of them, are not finite.
        """
        import torch

        samples = self._prepared(audio)
        if samples is None:
            return torch.empty((0, self.width), device=self.model.device)
        with self.exact():
            frames = self._run(torch.from_numpy(samples)[None].to(self.model.device))[0]
        return _finite(frames, audio)

    def together(self, batch: Sequence[Audio]) -> "list[torch.Tensor]":
        """Recordings in one padded batch → the frames of each; equal to those alone up to rounding.

        Raises:
            InputError: the samples of one of them, or what the model makes of them, are not finite.
        """
        import torch

        device = self.model.device
        prepared = [self._prepared(audio) for audio in batch]
        lengths = [len(samples) for samples in prepared if samples is not None]
        if not lengths:
            return [torch.empty((0, self.width), device=device) for _ in batch]
        stacked = torch.zeros((len(lengths), max(lengths)))
        for row, samples in zip(stacked, (found for found in prepared if found is not None), strict=True):
            row[: len(samples)] = torch.from_numpy(samples)
        counts = [self._num_frames(length) for length in lengths]
        with self.exact():
            if len(set(lengths)) == 1:
                frames = self._run(stacked.to(device))
            else:
                ends = torch.tensor(lengths, device=device)
                real = torch.arange(stacked.shape[1], device=device) < ends[:, None]
                with self.padded.behind(ends, torch.tensor(counts, device=device)), warnings.catch_warnings():
                    # transformers gives torch WavLM's masks in two types
                    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
                    frames = self._run(stacked.to(device), attention_mask=real.long())
        found = (each[:count] for each, count in zip(frames, counts, strict=True))
        return [
            torch.empty((0, self.width), device=device) if samples is None else _finite(next(found), audio)
            for audio, samples in zip(batch, prepared, strict=True)
        ]

    def _prepared(self, audio: Audio) -> "np.ndarray[Any, np.dtype[np.float32]] | None":
        """Samples `[T]` as the model wants them, or None where they are too few for a frame."""
        samples = np.asarray(audio.resample(self.sample_rate).samples, dtype=np.float32)
        if not self.num_frames(len(samples)):
            return None
        if self.normalize:  # as Wav2Vec2FeatureExtractor does
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
                samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        return np.pad(samples, self.padding)

    def _run(self, samples: "torch.Tensor", **masks: "torch.Tensor") -> "torch.Tensor":
        """Samples `[B, T]` → frames `[B, F, width]`, fp32."""
        import torch

        half = self.precision == "bf16"
        with torch.autocast(samples.device.type, dtype=torch.bfloat16, enabled=half):
            output = self.model(samples, output_hidden_states=False, return_dict=True, **masks)
        frames: torch.Tensor = output.last_hidden_state
        return frames.float()

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Compute in true fp32 in one order of summation, whoever else computes.

        On a CPU the number of threads decides the last bits of a product, so it is one, and recordings are
        encoded beside each other instead. On an accelerator TF32 is off, and recordings take turns.
        """
        import torch

        if self.model.device.type == "cpu":
            with torch.inference_mode(), one_thread():
                yield
            return
        with self._lock, torch.inference_mode():
            precision = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                    yield
            finally:
                torch.set_float32_matmul_precision(precision)


def open_features(
    place: str, *, layer: int, normalize: bool | None = None, padding: tuple[int, int] = (0, 0)
) -> SpeechFeatures:
    """Load the first `layer` blocks of a model.

    Args:
        place: a folder, or `owner/name@commit` of the Hugging Face hub.
        layer: 1 to the number of blocks.
        normalize: whether recordings are normalised; None asks the model's preprocessor_config.json.
        padding: zeros before and after a recording, in samples.

    Raises:
        InputError: there is no such model, it is of another family, or weights are missing.
        ConfigError: it has no such layer, or does not say whether recordings are normalised.
    """
    from slam.devices import best_device

    found = PINNED.fullmatch(place)
    if not found:
        place = str(Path(place).absolute())
        if not Path(place).is_dir():
            raise InputError(f"{place}: no such folder of a model")
    name, commit = (found["name"], found["commit"]) if found else (place, None)
    config = speech_model_config(place, name, commit)
    if not 1 <= layer <= config.num_hidden_layers:
        raise ConfigError(f"layer = {layer}: {place} has layers 1 to {config.num_hidden_layers}")
    said = preprocessor_config(name, commit)
    if normalize is None:
        normalize = said.get("do_normalize")
    if not isinstance(normalize, bool):
        raise ConfigError(
            f"{place}: no preprocessor_config.json says whether recordings are normalised; give normalize"
        )
    sample_rate = said.get("sampling_rate", _SAMPLE_RATE)
    if type(sample_rate) is not int or sample_rate < 1:
        raise InputError(f"{place}: its preprocessor_config.json gives a sampling_rate of {sample_rate!r}")
    config.num_hidden_layers = layer
    model = speech_model(place, name, commit, config)
    return SpeechFeatures(
        model=model.to(best_device()),
        place=place,
        digest=weights_digest(model),
        layer=layer,
        sample_rate=sample_rate,
        normalize=normalize,
        padding=padding,
        padded=Padding(model),
    )


def _finite(frames: "torch.Tensor", audio: Audio) -> "torch.Tensor":
    if not bool(frames.isfinite().all()):
        raise InputError(f"{audio.seconds:.2f} s of sound: samples or features of it are not finite")
    return frames
