"""A pretrained speech model and one of its layers → that layer's hidden state, a frame a row.

HuBERT, mHuBERT, wav2vec 2.0, WavLM and data2vec-audio, as `transformers` implements them. Layers are counted
as fairseq counts them: layer L is the output of the L-th transformer block, before any norm that stands
behind the last one; this is `transformers`' `hidden_states[L]`. Only L blocks are loaded and run, and only
their last output is kept.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slam.audio import Audio
from slam.errors import ConfigError, InputError

if TYPE_CHECKING:
    import torch

FAMILIES = ("hubert", "wav2vec2", "wavlm", "data2vec-audio")
PINNED = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})")
_SAMPLE_RATE = 16_000  # Hz, of all published models of these families
# what a model computes from its weights; the rest of its config concerns training or other heads
_SHAPING = (
    *("model_type", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "feat_extract_activation"),
    *("num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "conv_pos_kernel_size"),
    *("conv_pos_batch_norm", "do_stable_layer_norm", "feat_proj_layer_norm", "layer_norm_eps"),
    *("adapter_attn_dim", "num_buckets", "max_bucket_distance"),
)
_UNUSED = re.compile(r"masked_spec_embed$|^adapter\.")  # weights that no hidden state depends on


class _OneThread:
    """Lets torch compute on one thread wherever this is held, in as many threads as hold it.

    The numbers of OpenMP and of MKL are a thread's own (torch 2.10 to 2.13), so each holder sets them for
    itself. `torch.set_num_threads` also says what threads that have not met torch yet begin with.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_holders = 0
        self._of_new_threads = 1  # their number before the first holder came
        self._own = threading.local()

    @contextmanager
    def held(self) -> Iterator[None]:
        """One thread here until the end, and then as many as before."""
        import torch

        with self._lock:
            before = torch.get_num_threads()
            if not self._num_holders:
                self._of_new_threads = before
            elif before == 1 and not hasattr(self._own, "met"):
                before = self._of_new_threads  # this 1 is another holder's
            self._own.met = True
            torch.set_num_threads(1)
            self._num_holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_holders -= 1
                torch.set_num_threads(before)


_ONE_THREAD = _OneThread()


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
        if not num_samples:
            return 0
        length = num_samples + sum(self.padding)
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

        samples = np.asarray(audio.resample(self.sample_rate).samples, dtype=np.float32)
        device = self.model.device
        if not self.num_frames(len(samples)):
            return torch.empty((0, self.width), device=device)
        if self.normalize:  # as Wav2Vec2FeatureExtractor does
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
                samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        padded = torch.from_numpy(np.pad(samples, self.padding))[None].to(device)
        with self.exact():
            output = self.model(padded, output_hidden_states=False, return_dict=True)
            frames: torch.Tensor = output.last_hidden_state[0]
        if not bool(frames.isfinite().all()):
            raise InputError(f"{audio.seconds:.2f} s of sound: samples or features of it are not finite")
        return frames

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Compute in true fp32 in one order of summation, whoever else computes.

        On a CPU the number of threads decides the last bits of a product, so it is one, and recordings are
        encoded beside each other instead. On an accelerator TF32 is off, and recordings take turns.
        """
        import torch

        if self.model.device.type == "cpu":
            with torch.inference_mode(), _ONE_THREAD.held():
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
    config = _config(place, name, commit)
    if not 1 <= layer <= config.num_hidden_layers:
        raise ConfigError(f"layer = {layer}: {place} has layers 1 to {config.num_hidden_layers}")
    said = _preprocessor(name, commit)
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
    model = _model(place, name, commit, config)
    return SpeechFeatures(
        model=model.to(best_device()),
        place=place,
        digest=_digest(model),
        layer=layer,
        sample_rate=sample_rate,
        normalize=normalize,
        padding=padding,
    )


def _config(place: str, name: str, commit: str | None) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, revision=commit, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        hint = "; give it as a folder (model) where there is no network" if commit else ""
        reason = _first_line(error)
        raise InputError(f"{place}: no model that transformers can load ({reason}){hint}") from None
    if config.model_type not in FAMILIES:
        raise InputError(f"{place}: is a {config.model_type} model; known are {', '.join(FAMILIES)}")
    return config


def _preprocessor(name: str, commit: str | None) -> dict[str, Any]:
    """What the model's feature extractor says, or nothing."""
    from transformers import Wav2Vec2FeatureExtractor

    try:
        said, _ = Wav2Vec2FeatureExtractor.get_feature_extractor_dict(name, revision=commit)
    except OSError:
        return {}
    return dict(said)


def _model(place: str, name: str, commit: str | None, config: Any) -> Any:
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
            f"{place}: no safetensors weights that transformers can load ({_first_line(error)}); convert a "
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


def _digest(model: Any) -> str:
    """Of the weights and of what shapes the computation: the same from a folder, the hub or a whole model."""
    shaping = {key: getattr(model.config, key, None) for key in _SHAPING}
    content = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode())
    for key, weights in sorted(model.state_dict().items()):
        if not _UNUSED.search(key):
            content.update(f"{key} {tuple(weights.shape)} {weights.dtype}".encode())
            content.update(weights.cpu().contiguous().numpy().data)
    return content.hexdigest()[:16]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n", 1)[0] or type(error).__name__)[:300]
