"""A prompt and a loaded speech LM → what a listener is shown: sound in chunks, units, figures, a plot.

Nothing here knows the page's library, so that what is said of bad sound is tested without a browser.
"""

import base64
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slam.audio import Audio, audio_seconds, read_audio, read_blocks, write_audio
from slam.decoding import stream_units
from slam.errors import InputError
from slam.recordings import find_recordings
from slam.sampling import Sampling
from slam.spoken_lm import SpokenLM, unit_log_likelihoods
from slam.streaming import Stream
from slam.units import UNITS_FILE, Units, check_spoken, read_units

_SILENT = 1e-3  # peak of what holds no speech: 60 dB below full scale


@dataclass(frozen=True)
class Limits:
    """How much sound a prompt may be."""

    seconds: float
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.seconds:g} seconds and {self.num_bytes / 1e6:g} MB"


@dataclass(frozen=True)
class Examples:
    """Prompts to pick from."""

    sounds: Mapping[str, Path] = field(default_factory=dict)  # name → a file that a browser can play
    units: Mapping[str, Units] = field(default_factory=dict)  # digest of a file → what it was before
    left_out: Sequence[str] = ()  # a line for each that cannot be heard


@dataclass(frozen=True)
class Heard:
    """A prompt, and what was made of its continuation so far."""

    prompt: Units
    ids: npt.NDArray[np.uint16]  # [N] units drawn
    chunks: Sequence[Audio]  # spoken, end to end
    seconds_to_first_sound: float | None
    real_time_factor: float | None
    ended: bool | None  # by the model itself; None while it goes on
    seed: int
    room: int | None  # most units that the model's context leaves, where fewer than were asked for

    @property
    def sound(self) -> Audio:
        """All that was spoken."""
        return Audio(np.concatenate([one.samples for one in self.chunks]), self.chunks[0].sample_rate)


def check_prompt(path: Path | None, limits: Limits) -> float:
    """How many seconds of sound a file holds, if it can be a prompt.

    Raises:
        InputError: there is none, it is too large or long, cannot be read, or is silent. The line names the
            file as the listener knows it, without its folder.
    """
    if path is None:
        raise InputError("no prompt yet; record or upload some speech, or pick an example")
    try:
        if path.is_file() and path.stat().st_size > limits.num_bytes:
            raise InputError(f"{path}: is larger than {limits.num_bytes / 1e6:g} MB; cut it shorter")
        seconds = audio_seconds(path)
        if seconds > limits.seconds:
            raise InputError(
                f"{path}: lasts {seconds:,.0f} s, more than the {limits.seconds:g} s that a prompt may last; "
                "cut it shorter"
            )
        if float(np.abs(read_audio(path).samples).max()) < _SILENT:
            raise InputError(
                f"{path}: is silent; look whether the microphone is on, or pick another recording"
            )
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from None
    return seconds


def continue_prompt(
    slm: SpokenLM,
    path: Path | None,
    *,
    limits: Limits,
    examples: Examples,
    max_new_units: int,
    sampling: Sampling,
    seed: int,
) -> Iterator[Heard]:
    """Continue a sound file, telling of it at the start, after each chunk and at the end.

    Args:
        slm: the model.
        path: of the prompt; None if the listener gave none.
        limits: of the prompt.
        examples: those whose units are known are not encoded again.
        max_new_units: most units of the continuation; fewer if the model's context leaves less room.
        sampling: how units are drawn.
        seed: decides every draw.

    Raises:
        InputError: as `check_prompt`; or the prompt is shorter than a frame, or fills the model's context.
    """
    begun = time.perf_counter()
    check_prompt(path, limits)
    assert path is not None  # noqa: S101 - as was checked
    prompt = examples.units.get(digest(path)) or slm.encode(path)
    room = _room(slm, prompt)
    most = max_new_units if room is None else min(room, max_new_units)
    drawn = stream_units(slm.speech_lm, prompt.ids, max_new_units=most, sampling=sampling, seed=seed)
    stream = Stream(drawn, slm.vocoder, prompt.frame_rate, begun=begun, most=most)
    chunks: list[Audio] = []

    def heard() -> Heard:
        return Heard(
            prompt=prompt,
            ids=np.array(stream.units, np.uint16),
            chunks=tuple(chunks),
            seconds_to_first_sound=stream.seconds_to_first_sound,
            real_time_factor=stream.real_time_factor,
            ended=stream.ended,
            seed=seed,
            room=most if most < max_new_units else None,
        )

    yield heard()
    for chunk in stream:
        chunks.append(chunk)
        yield heard()
    yield heard()


def _room(slm: SpokenLM, prompt: Units) -> int | None:
    """How many units may follow a prompt; None where the model sets no limit."""
    context = getattr(slm.speech_lm.lm.config, "max_position_embeddings", None)
    if context is None:
        return None
    room = int(context) - 1 - len(prompt)
    if room < 1:
        raise InputError(
            f"the prompt is {len(prompt)} units long and leaves no room in the model's context of {context} "
            "tokens; cut it shorter"
        )
    return room


def warm_up(slm: SpokenLM) -> None:
    """Continue a second of noise, so that what is loaded on first use is loaded."""
    rate = slm.tokenizer.sample_rate
    noise = np.random.default_rng(0).normal(0, 0.1, rate).astype(np.float32)
    for _ in slm.stream(Audio(noise, rate), max_new_units=8):
        pass
    unit_log_likelihoods(slm.speech_lm, np.zeros(1, np.uint16))


def spoken_examples(folder: Path, slm: SpokenLM, out: Path, *, limits: Limits, most: int) -> Examples:
    """Examples of a folder of recordings or units, as sound files that a browser can play.

    Args:
        folder: of recordings, or of units, which the vocoder speaks.
        slm: the model that will hear them.
        out: folder for the sound files.
        limits: a longer recording is cut.
        most: how many are taken, spread evenly over the folder.

    Raises:
        InputError: the folder is missing, or holds no example that can be heard.
        MismatchError: its units are of another tokenizer.
    """
    known: dict[str, Units] = {}
    found: dict[str, Path] = {}
    left_out: list[str] = []
    for number, (name, example) in enumerate(_spread(folder, slm, most)):
        path = out / f"example-{number}.wav"
        try:
            if isinstance(example, Units):
                write_audio(path, slm.speak(example))
            else:
                write_audio(path, next(read_blocks(example, limits.seconds)))  # its beginning
            check_prompt(path, limits)
        except InputError as error:
            left_out.append(f"{name}: {error}")
            continue
        found[name] = path
        if isinstance(example, Units):
            known[digest(path)] = example
    if not found:
        raise InputError(
            f"{folder}: holds no example that can be heard" + "".join(f"; {one}" for one in left_out[:1])
        )
    return Examples(found, known, left_out)


def _spread(folder: Path, slm: SpokenLM, most: int) -> list[tuple[str, Path | Units]]:
    """Names and recordings, or units, at even distances."""
    examples: list[tuple[str, Path | Units]]
    if (folder / UNITS_FILE).is_file():
        units = read_units(folder)
        about = slm.speech_lm
        check_spoken(
            (units.tokenizer, units.tokenizer_fingerprint),
            (about.tokenizer, about.tokenizer_fingerprint),
            folder,
        )
        examples = [(name, units[index]) for index, name in enumerate(units.names)]
    else:
        examples = [(one.id, one.path) for one in find_recordings(folder)]
    chosen = np.unique(np.linspace(0, len(examples) - 1, min(most, len(examples))).round().astype(int))
    return [examples[index] for index in chosen]


def digest(path: Path) -> str:
    """What tells a file's content from every other's."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pcm(audio: Audio) -> str:
    """16-bit little-endian samples in base64, for a page to play."""
    return base64.b64encode((audio.samples.clip(-1, 1) * 32767).astype("<i2").tobytes()).decode()
