"""Text → speech by Kokoro-82M, a small neural synthesizer with the voices that SpokenSwag was spoken in.

The network, the reading of English (misaki) and the way from one to the other are those of the package
`kokoro`. Added here: weights from a folder or from one commit of the hub; the times of words, from the
durations that the network predicts; and samples that are a function of the sentence. The noise that the
network draws is seeded by what is said, and on a CPU one thread computes, as the order of sums would
otherwise depend on the machine. Processes (`num_workers`) make up for it.
"""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slam.errors import ConfigError, InputError
from slam.run import digest
from slam.synthesizers import Speech, Utterance
from slam.synthesizers.kokoro_files import (
    REPOSITORY,
    files_in,
    files_of_hub,
    import_kokoro,
    load_model,
    load_style,
)
from slam.synthesizers.sentences import Spoken, check_readable, shown, speak_sentences, words_of

if TYPE_CHECKING:
    import torch

_SAMPLE_RATE = 24_000  # Hz
_FRAME = 600  # samples; durations are counted in frames of 25 ms
_LEAD = 7  # most frames of silence before a sentence; speech begins up to three before the first phoneme
_OWN_RATE = 180  # words a minute that stand for the voice's own speed


class Kokoro:
    """Kokoro's English voices: `af_heart`, `am_fenrir`, `bf_emma`, `bm_george` and others."""

    name = "kokoro"

    def __init__(self, folder: Path | None = None) -> None:
        """Find the model; it is loaded when it first speaks.

        Args:
            folder: of config.json, the weights (.pth) and voices/; None takes a fixed commit of the hub, from
                its cache where it is there already.

        Raises:
            MissingExtraError: the package or the tagger that it reads English with is not installed.
            InputError: a file is missing, or the hub cannot be reached.
        """
        import_kokoro()
        self._files = files_in(folder) if folder is not None else files_of_hub()
        self._readers: dict[str, Any] = {}  # kind of English → the package's pipeline
        self._styles: dict[str, torch.Tensor] = {}

    @cached_property
    def version(self) -> str:
        """Of the packages, and the sum of the weights."""
        with self._files.weights.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        return f"kokoro {version('kokoro')}, misaki {version('misaki')}, weights {weights}"

    def check_voice(self, voice: str) -> None:
        """Look `voice` up.

        Raises:
            ConfigError: there is no such voice, or it speaks another language than English.
        """
        if voice not in self._files.voices:
            known = ", ".join(sorted(self._files.voices))
            raise ConfigError(f"Kokoro has no voice {voice!r} of English; it has {known}")

    def synthesize(self, utterances: Sequence[Utterance], sample_rate: int) -> list[Speech]:
        """Speak each utterance; a rate of 180 words a minute is the voice's own speed.

        Raises:
            ConfigError: a voice does not exist.
            InputError: a text holds nothing that can be spoken, or the model's files are damaged.
        """
        with _exact(self._device):
            return [self._speak(utterance, sample_rate) for utterance in utterances]

    def _speak(self, utterance: Utterance, sample_rate: int) -> Speech:
        self.check_voice(utterance.voice)
        check_readable(utterance.text, f"Kokoro's voice {utterance.voice!r}", "en")
        return speak_sentences(
            utterance.text,
            lambda sentence: self._speak_sentence(sentence, utterance.voice, utterance.rate),
            _SAMPLE_RATE,
            sample_rate,
        )

    def _speak_sentence(self, sentence: str, voice: str, rate: int) -> Spoken:
        """Speak by the package's pipeline, which cuts a sentence of more than 510 phonemes into pieces."""
        import torch

        # "[word](/phonemes/)" is a command to the package, here it is text
        plain = sentence.translate({ord("["): "(", ord("]"): ")"})
        # loading draws random numbers, so it comes before the seed
        reader, style = self._reader(voice), self._style(voice)
        devices = [self._device] if self._device.type != "cpu" else []
        with torch.random.fork_rng(devices, device_type=self._device.type):
            torch.manual_seed(int(digest([sentence, voice, rate]), 16) % 2**63)
            results = list(reader(plain, voice=style, speed=rate / _OWN_RATE, split_pattern=None))
        samples, words, length, position = [], [], 0, 0
        for result in results:
            silence = max(0, int(result.pred_dur[0]) - _LEAD)
            for text, frame in _token_frames(result, self._model.vocab, sentence):
                place = plain.find(text, position)
                if place >= 0:
                    words.append((place, length / _SAMPLE_RATE + (frame - silence) * _FRAME / _SAMPLE_RATE))
                    position = place + len(text)
            samples.append(result.audio.cpu().numpy().astype(np.float32)[silence * _FRAME :])
            length += len(samples[-1])
        if not words:
            raise InputError(f"Kokoro could not speak {shown(sentence)}")
        return Spoken(np.concatenate(samples), _times(sentence, words))

    @cached_property
    def _device(self) -> "torch.device":
        from slam.devices import best_device

        return best_device()

    @cached_property
    def _model(self) -> Any:
        return load_model(self._files).to(self._device).eval()

    def _reader(self, voice: str) -> Any:
        """The package's pipeline of the voice's kind of English."""
        kind = voice[0]
        if kind not in self._readers:
            kokoro = import_kokoro()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # misaki's, of importlib.resources
                reader = kokoro.KPipeline(lang_code=kind, repo_id=REPOSITORY, model=self._model)
            if reader.g2p.fallback is None:  # the package would leave out words that its lexicon lacks
                raise InputError("Kokoro's eSpeak, which reads rare words, does not start; install it anew")
            self._readers[kind] = reader
        return self._readers[kind]

    def _style(self, voice: str) -> "torch.Tensor":
        """Loaded once."""
        if voice not in self._styles:
            self._styles[voice] = load_style(self._files.voices[voice])
        return self._styles[voice]


def _token_frames(result: Any, vocabulary: Mapping[str, int], sentence: str) -> Iterator[tuple[str, int]]:
    """Text and first frame of each token with a sound; phonemes that the network does not know have none."""
    durations = result.pred_dur.tolist()
    ends = list(accumulate(durations))  # the first is the silence before
    index = 1
    for token in result.tokens:
        phonemes = [phoneme for phoneme in token.phonemes or "" if phoneme in vocabulary]
        if any(phoneme.isalnum() for phoneme in phonemes) and index < len(ends):
            yield token.text, ends[index - 1]
        index += len(phonemes)
        if token.whitespace and index > 1 and " " in vocabulary:
            index += 1
    # behind the last token there is a space that was not spoken, and the silence after
    if index not in (len(ends) - 1, len(ends)):
        raise InputError(f"Kokoro could not speak all of {shown(sentence)}; it has too long a word")


def _times(sentence: str, tokens: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """The time of each word of which a token is spoken: that of the first one."""
    found = []
    for start, word in words_of(sentence):
        inside = (seconds for place, seconds in tokens if start <= place < start + len(word))
        seconds = next(inside, None)
        if seconds is not None:
            found.append((start, seconds))
    return tuple(found)


@contextmanager
def _exact(device: "torch.device") -> Iterator[None]:
    """One thread on a CPU; no TF32 and no choice of algorithm by the clock on an accelerator."""
    import torch

    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_num_threads(threads)
