"""A trained speech LM with the tokenizer that hears for it and the vocoder that speaks for it: audio → audio.

What a Python program needs: `slam.load`, and five verbs. Sounds come and go as `slam.Audio`; units and tokens
stay inside.
"""

import time
from collections import deque
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slam.audio import Audio, audio_seconds, read_audio
from slam.decoding import check_room, continue_units, stream_units, use_cached
from slam.errors import ConfigError, InputError
from slam.long_audio import LONGEST_SECONDS, stream_audio
from slam.model import SpeechLM, read_about
from slam.sampling import Sampling
from slam.streaming import Stream
from slam.tokenizers import ABOUT_FILE, SpeechTokenizer, load_tokenizer
from slam.units import TOKENIZER_FOLDER, Ids, Units, check_spoken
from slam.vocoders import Vocoder, load_vocoder

Sound = Audio | str | PathLike[str]


@dataclass(frozen=True)
class LogLikelihoods:
    """How likely a model holds each unit of a recording, given those before it."""

    ids: Ids  # [N] unit ids
    values: npt.NDArray[np.float32]  # [N] nats
    starts: npt.NDArray[np.float64]  # [N] seconds in the recording
    ends: npt.NDArray[np.float64]  # [N] seconds


@dataclass(frozen=True)
class SpokenLM:
    """A speech LM, its tokenizer and a vocoder of its units."""

    speech_lm: SpeechLM
    tokenizer: SpeechTokenizer
    vocoder: Vocoder

    def continue_speech(
        self,
        audio: Sound,
        *,
        max_new_units: int = 150,
        sampling: Sampling | None = None,
        seed: int = 0,
        last_seconds: float | None = None,
    ) -> Audio:
        """Say what follows a prompt.

        The same prompt, settings and seed give the same continuation.

        Args:
            audio: the prompt: `Audio` at any rate, or a sound file of any rate and channel count, at most
                60 s. Silence is speech without words, and is continued too.
            max_new_units: most units of the continuation; a unit lasts a frame (often 20 or 40 ms) or more.
            sampling: how units are drawn; None for the paper's way.
            seed: decides every draw.
            last_seconds: hear only the end of the prompt, so many seconds of it; None hears all.

        Returns:
            The continuation alone, `[T]` samples at the vocoder's rate, full scale ±1; no samples if the
            model ends at once.

        Raises:
            InputError: the prompt cannot be read, is shorter than a frame, longer than 60 s, or with its
                continuation longer than the model's context.
            ConfigError: a setting cannot be meant.

        Example:
            >>> continuation = slm.continue_speech(audio, max_new_units=20, seed=1)
            >>> continuation.sample_rate
            16000
        """
        prompt = self._prompt(audio, last_seconds, max_new_units)
        (found,) = continue_units(
            self.speech_lm, [prompt.ids], max_new_units=max_new_units, sampling=sampling, seeds=[seed]
        )
        return self.speak(Units(found.ids, None, prompt.frame_rate))

    def stream(
        self,
        audio: Sound,
        *,
        max_new_units: int = 150,
        sampling: Sampling | None = None,
        seed: int = 0,
        last_seconds: float | None = None,
    ) -> Stream:
        """Say what follows a prompt in chunks, each as soon as its units are drawn.

        The units, and the length of all chunks end to end, are those of `continue_speech`. The prompt is
        heard and checked before this returns.

        Args:
            audio: as in `continue_speech`.
            max_new_units: as in `continue_speech`.
            sampling: as in `continue_speech`.
            seed: as in `continue_speech`.
            last_seconds: as in `continue_speech`.

        Returns:
            An iterator over `Audio`, with the units so far, the seconds to the first sound and the
            real-time factor.

        Raises:
            InputError: as `continue_speech`.
            ConfigError: as `continue_speech`.

        Example:
            >>> stream = slm.stream(audio, max_new_units=40)
            >>> seconds = sum(chunk.seconds for chunk in stream)
            >>> seconds == slm.continue_speech(audio, max_new_units=40).seconds
            True
            >>> len(stream.units) <= 40
            True
        """
        begun = time.perf_counter()
        prompt = self._prompt(audio, last_seconds, max_new_units)
        drawn = stream_units(
            self.speech_lm, prompt.ids, max_new_units=max_new_units, sampling=sampling, seed=seed
        )
        return Stream(drawn, self.vocoder, prompt.frame_rate, begun=begun, most=max_new_units)

    def log_likelihoods(self, audio: Sound, *, last_seconds: float | None = None) -> LogLikelihoods:
        """How likely each unit of a recording is, given those before it, and when it is heard.

        Args:
            audio: as in `continue_speech`.
            last_seconds: as in `continue_speech`.

        Returns:
            For each unit its id, its log-likelihood in nats, and the seconds at which it begins and ends.

        Raises:
            InputError: as `continue_speech`.

        Example:
            >>> found = slm.log_likelihoods(audio)
            >>> found.values.shape == found.starts.shape == found.ids.shape
            True
            >>> bool((found.ends[:-1] == found.starts[1:]).all())
            True
        """
        units = self._prompt(audio, last_seconds, 0)
        values = unit_log_likelihoods(self.speech_lm, units.ids)
        ends = np.cumsum(units.known_durations) / units.frame_rate
        return LogLikelihoods(units.ids, values, np.concatenate(([0.0], ends[:-1])), ends)

    def log_likelihood(self, audio: Sound, *, mean: bool = False, last_seconds: float | None = None) -> float:
        """The log-likelihood of a recording's units under the model, in nats.

        Args:
            audio: as in `continue_speech`.
            mean: over units, instead of their sum; recordings of unlike length are compared by it.
            last_seconds: as in `continue_speech`.

        Raises:
            InputError: as `continue_speech`.

        Example:
            >>> slm.log_likelihood(audio) < slm.log_likelihood(audio, mean=True) < 0
            True
        """
        values = self.log_likelihoods(audio, last_seconds=last_seconds).values
        return float(values.mean(dtype=np.float64) if mean else values.sum(dtype=np.float64))

    def encode(self, audio: Sound, *, last_seconds: float | None = None) -> Units:
        """The units of a recording, `[N]`, with their durations in frames.

        Args:
            audio: as in `continue_speech`.
            last_seconds: as in `continue_speech`.

        Raises:
            InputError: the recording cannot be read, is shorter than a frame or longer than 60 s.

        Example:
            >>> units = slm.encode(audio)
            >>> units.num_frames == round(audio.seconds * units.frame_rate)
            True
        """
        heard = _heard(audio, self.tokenizer.sample_rate, last_seconds)
        frame_seconds = 1 / self.tokenizer.frame_rate
        if heard.seconds < frame_seconds:
            raise InputError(
                f"{_name(audio)}: lasts {heard.seconds:.3f} s, less than a frame of {frame_seconds:g} s"
            )
        (units,) = self.tokenizer.encode([heard])
        if not len(units):
            raise InputError(f"{_name(audio)}: holds no units, so there is nothing to go on from")
        return units

    def speak(self, units: Units) -> Audio:
        """The sound of units, `[T]` samples at the vocoder's rate.

        Args:
            units: of the tokenizer, `[N]`; without durations, they last as long as the vocoder holds likely.

        Raises:
            MismatchError: the units are not of the vocoder's tokenizer.

        Example:
            >>> slm.speak(slm.encode(audio)).seconds == slm.encode(audio).num_frames / 25
            True
        """
        return self.vocoder.decode([units])[0]

    def _prompt(self, audio: Sound, last_seconds: float | None, max_new_units: int) -> Units:
        """The units of a prompt that leaves room for more."""
        units = self.encode(audio, last_seconds=last_seconds)
        check_room(self.speech_lm.lm, len(units), max_new_units)
        return units


def load(
    model: str | PathLike[str],
    *,
    tokenizer: str | PathLike[str],
    vocoder: str = "griffin-lim",
    vocoder_from: str | PathLike[str] | None = None,
    tokenizer_name: str | None = None,
) -> SpokenLM:
    """Load a speech LM with its tokenizer and a vocoder, on the best device.

    Args:
        model: folder of the speech LM, as `slam pretrain` or `slam dpo` writes it.
        tokenizer: folder of its tokenizer, or a folder of units, which holds it.
        vocoder: who speaks: a built-in vocoder, or `package.module:Name`.
        vocoder_from: folder of the vocoder's weights, for one that has any.
        tokenizer_name: the tokenizer's name, needed only for one that is not built in
            (`package.module:Name`).

    Raises:
        InputError: a folder is missing or damaged.
        MismatchError: the model speaks the units of another tokenizer, or the vocoder does.
        ConfigError: there is no such vocoder, or it cannot speak these units.

    Example:
        >>> slm = slam.load(folder / "lm", tokenizer=folder / "units", vocoder="griffin-lim")
        >>> slm.tokenizer.name
        'logmel-kmeans'
    """
    heard_by = Path(tokenizer)
    if not (heard_by / ABOUT_FILE).is_file() and (heard_by / TOKENIZER_FOLDER).is_dir():
        heard_by /= TOKENIZER_FOLDER
    about = read_about(Path(model))  # before the weights, which take longer
    hears = load_tokenizer(heard_by, named=tokenizer_name)
    check_spoken((hears.name, hears.fingerprint), (about.tokenizer, about.tokenizer_fingerprint), heard_by)
    speaks = load_vocoder(vocoder, hears, None if vocoder_from is None else Path(vocoder_from))
    speech_lm = SpeechLM.load(Path(model))
    use_cached(speech_lm.lm)
    return SpokenLM(speech_lm, hears, speaks)


def unit_log_likelihoods(speech_lm: SpeechLM, ids: Ids) -> npt.NDArray[np.float32]:
    """The log-likelihood of each unit given those before it, `[N]` nats.

    Raises:
        InputError: they are longer than the model's context.
        MismatchError: some are not of the model's vocabulary.
    """
    import torch

    from slam.packing import packed, token_log_likelihoods

    use_cached(speech_lm.lm)
    document = speech_lm.vocabulary.document(ids)[:-1]
    with torch.inference_mode():
        batch = packed([document], speech_lm.lm.device)
        values = token_log_likelihoods(speech_lm.lm, batch)[: len(ids)].cpu().numpy()
    return np.asarray(values, np.float32)


def _heard(audio: Sound, sample_rate: int, last_seconds: float | None) -> Audio:
    """What is heard of a sound, mono at `sample_rate` Hz.

    Raises:
        InputError: it cannot be read, or is too long.
        ConfigError: `last_seconds` cannot be meant.
    """
    if last_seconds is not None and not 0 < last_seconds <= LONGEST_SECONDS:
        raise ConfigError(
            f"last_seconds = {last_seconds}: must be more than 0 and at most {LONGEST_SECONDS:g}"
        )
    if isinstance(audio, Audio):
        return _checked(audio, last_seconds).resample(sample_rate)
    path = Path(audio)
    seconds = audio_seconds(path)
    if last_seconds is None or seconds <= last_seconds:
        _check_seconds(path.name, seconds)
        return read_audio(path, sample_rate)
    return Audio(_end_of(path, sample_rate, round(last_seconds * sample_rate)), sample_rate)


def _end_of(path: Path, sample_rate: int, num_samples: int) -> npt.NDArray[np.float32]:
    """The last samples of a sound file, in memory that its length does not touch."""
    held: deque[npt.NDArray[np.float32]] = deque()
    count = 0
    for block in stream_audio(path, sample_rate):
        held.append(block)
        count += len(block)
        while count - len(held[0]) >= num_samples:
            count -= len(held.popleft())
    return np.concatenate(held)[-num_samples:]


def _checked(audio: Audio, last_seconds: float | None) -> Audio:
    """Samples in memory, cut to what is heard of them.

    Raises:
        InputError: they are not mono floats, hold what is not finite, or last too long.
    """
    samples = np.asarray(audio.samples)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise InputError(
            f"audio: samples are {samples.dtype} of shape {list(samples.shape)}; give mono floats [T], "
            "full scale ±1"
        )
    if last_seconds is not None:
        samples = samples[-round(last_seconds * audio.sample_rate) :]
    _check_seconds("audio", len(samples) / audio.sample_rate)
    if not np.isfinite(samples).all():
        raise InputError("audio: holds samples that are not finite")
    return Audio(samples.astype(np.float32), audio.sample_rate)


def _check_seconds(name: str, seconds: float) -> None:
    if seconds > LONGEST_SECONDS:
        raise InputError(
            f"{name}: lasts {seconds:.0f} s, more than the {LONGEST_SECONDS:g} s that are heard at once; "
            "cut it, or give last_seconds to hear only its end"
        )


def _name(audio: Sound) -> str:
    return "audio" if isinstance(audio, Audio) else Path(audio).name
