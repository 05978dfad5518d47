"""Speech → text by Whisper (Radford et al., 2022), as stock `transformers` has it.

Greedy decoding, the language found by the model itself, no timestamps: what the reference toolkit's pipeline
does. Half precision on an accelerator, as there; fp32 on a CPU. Every window is padded to the 30 s that the
model always hears, so its company changes nothing but rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from slam.audio import Audio
from slam.errors import InputError, reason_of
from slam.hub import silence_retries


@dataclass(frozen=True, eq=False)
class Whisper:
    """A Whisper model of any size, multilingual or English alone."""

    model: Any
    features: Any  # transformers' feature extractor
    tokenizer: Any

    name = "whisper"

    @property
    def sample_rate(self) -> int:
        """The model's, in Hz."""
        return int(self.features.sampling_rate)

    @classmethod
    def load(cls, source: str) -> Self:
        """Read a folder, or a name on the hub; safetensors only, and no code of its own runs.

        Raises:
            InputError: there is no Whisper that `transformers` can load.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration
        from transformers.utils import logging as untyped

        from slam.devices import best_device

        logging: Any = untyped  # it warns of attention masks, which a Whisper's window has no need of
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        silence_retries()
        device = best_device()
        try:
            loaded: Any = WhisperForConditionalGeneration.from_pretrained(
                source,
                dtype=torch.float32 if device.type == "cpu" else torch.float16,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            features = WhisperFeatureExtractor.from_pretrained(source)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise InputError(
                f"{source}: no Whisper that transformers can load ({reason_of(error)}); where there is no "
                "network, give a folder"
            ) from None
        model, loading = loaded
        if missing := sorted(loading["missing_keys"]):  # transformers fills them in with random numbers
            raise InputError(f"{source}: lacks {len(missing)} weights of a Whisper, the first {missing[0]}")
        return cls(model.to(device).eval().requires_grad_(False), features, tokenizer)  # noqa: FBT003 - torch's

    def transcribe(self, batch: Sequence[Audio]) -> list[str]:
        """One line of text for each recording; one without sound has none.

        What is longer than 30 s is heard in windows of 30 s, each by itself, and their texts joined.
        """
        size = int(self.features.n_samples)
        windows: list[npt.NDArray[np.float32]] = []
        owners: list[int] = []
        for number, audio in enumerate(batch):
            samples = audio.resample(self.sample_rate).samples
            for begin in range(0, len(samples), size):
                windows.append(samples[begin : begin + size])
                owners.append(number)
        said: list[list[str]] = [[] for _ in batch]
        for number, text in zip(owners, self._texts(windows), strict=True):
            said[number] += text.split()
        return [" ".join(words) for words in said]

    def _texts(self, windows: list[npt.NDArray[np.float32]]) -> list[str]:
        """What is said in each of some windows of at most 30 s."""
        import torch

        if not windows:
            return []
        heard = self.features(windows, sampling_rate=self.sample_rate, return_tensors="pt").input_features
        with torch.inference_mode():
            tokens = self.model.generate(heard.to(self.model.device, self.model.dtype))
        texts: list[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts
