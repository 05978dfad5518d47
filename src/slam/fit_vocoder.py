"""Units and the recordings that they came from → a vocoder of these units, in the voice of these recordings.

Three small networks are fitted side by side: units → durations, units → log-mel, log-mel → sound. Some
recordings are held out, and the vocoder is judged by how near to them it comes.
"""

import math
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from slam.audio import Audio, read_audio, write_audio
from slam.budget import LEAST_STEPS, Budget, learning_rate_share
from slam.errors import ConfigError, InputError, MismatchError
from slam.progress import bar, console
from slam.recordings import find_recordings
from slam.run import Results, effort, source, stage
from slam.tokenizers import BUILT_IN, SpeechTokenizer, load_tokenizer
from slam.units import Units, UnitsFolder, read_units

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from slam.vocoders import Vocoder
    from slam.vocoders.mel_networks import Networks
    from slam.vocoders.speech_stream import SpeechStream
    from slam.vocoders.unit_mel import UnitMel

SAMPLES_FOLDER = "samples"
_LEAST_RECORDINGS = 4
_MOST_HELD_OUT = 64  # recordings
_NUM_SAMPLES = 2  # held-out recordings to listen to
_NAMED = 20  # recordings without units that the results name
_STRAY_FRAMES = 3  # that a recording may last longer or shorter than its units
_WARMUP = 0.03  # share of the budget
_CLIP = 1.0  # largest norm of each network's gradient
_BETAS = (0.9, 0.98)
_WEIGHT_DECAY = 0.01


@dataclass(frozen=True, kw_only=True)
class FitVocoderConfig:
    """Settings of `slam fit-vocoder`."""

    units: Path = source(required=True)
    """A folder of units that `slam encode` wrote."""
    audio: Path = source(required=True)
    """The recordings that they came from; matched by their ids."""
    budget: str = "5 min"
    """What may be spent on fitting: 5 min, 1h, 700 steps, or the first of several."""
    held_out: float = 0.1
    """Share of the recordings that are kept for judging, at most 64 of them."""
    fit_seconds: float = 3600.0
    """Seconds of speech, drawn at random, to fit on; they are held in memory."""
    width: int = 192
    """Channels of the networks."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    batch_seconds: float = 20.0
    """Seconds of speech in an update."""
    tokenizer: str | None = None
    """The tokenizer's name, needed only for one that is not built in."""
    seed: int = 0
    """Decides the held-out recordings, the first weights and the order of the data."""
    checkpoint_seconds: float = effort(60.0)
    """Seconds between checkpoints."""

    def __post_init__(self) -> None:
        budget = Budget.parse(self.budget)
        budget.check()
        if budget.tokens < math.inf:
            raise ConfigError(f"budget {self.budget!r}: a vocoder counts no tokens; give time or steps")
        for name in ("fit_seconds", "learning_rate", "batch_seconds", "checkpoint_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be more than 0")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out = {self.held_out}: must be a share, more than 0 and below 1")
        if not 8 <= self.width <= 4096:  # noqa: PLR2004 - what a vocoder's folder may say
            raise ConfigError(f"width = {self.width}: must lie between 8 and 4096")


@dataclass(frozen=True)
class Spoken:
    """A recording and its units, equally long."""

    id: str
    units: Units
    audio: Audio  # 16 kHz


@stage
def fit_vocoder(config: FitVocoderConfig, out: Path) -> Results:
    """Fit a vocoder into the folder `out`, and judge it on recordings that it has not seen.

    Raises:
        InputError: units or recordings cannot be read, too few belong together, or the loss is no number.
        MismatchError: the recordings are not those that the units came from.
        ConfigError: the units have a frame rate that cannot be spoken, or the budget buys no training.
    """
    import torch

    from slam.training import discard_checkpoints
    from slam.vocoders.speech_stream import SpeechStream
    from slam.vocoders.unit_mel import UnitMel, about, new_networks

    units = read_units(config.units)
    named = config.tokenizer if config.tokenizer not in BUILT_IN else None
    tokenizer = load_tokenizer(units.tokenizer_folder, named=named)
    if tokenizer.fingerprint != units.tokenizer_fingerprint:
        raise MismatchError(f"{config.units}: its units and its tokenizer do not agree; encode again")
    description = about(tokenizer, config.width)
    training, held_out, unmatched = _matched(config, units)
    torch.manual_seed(config.seed)
    networks = new_networks(description)
    stream = SpeechStream.of([(one.units, one.audio) for one in training], hop=description.hop)
    results = Fitting(networks, stream, config, out).run()
    vocoder = UnitMel(networks.cpu().eval(), description)
    found = _judged(vocoder, tokenizer, held_out, out)
    vocoder.save(out)
    discard_checkpoints(out)
    return {
        "num_recordings": len(training),
        "num_held_out": len(held_out),
        "held_out": [one.id for one in held_out],
        "num_unmatched": len(unmatched),
        "unmatched": unmatched[:_NAMED],
        "seconds_of_speech": round(sum(one.audio.seconds for one in training), 2),
        **results,
        **found,
    }


def _matched(config: FitVocoderConfig, units: UnitsFolder) -> tuple[list[Spoken], list[Spoken], list[str]]:
    """Recordings to fit on, recordings held out, and ids that stand on one side alone.

    Raises:
        InputError: too few have units, or a recording cannot be read.
        MismatchError: a recording is not as long as its units.
    """
    recordings = {recording.id: recording.path for recording in find_recordings(config.audio)}
    known = units.by_name()
    order = sorted(name for name in recordings.keys() & known.keys() if len(known[name]))
    unmatched = sorted((recordings.keys() | known.keys()).difference(order))
    if len(order) < _LEAST_RECORDINGS:
        raise InputError(
            f"{config.audio}: {len(order)} of its {len(recordings)} recordings have units in {config.units}; "
            f"at least {_LEAST_RECORDINGS} are needed: give the folder that was encoded"
        )
    random.Random(config.seed).shuffle(order)  # noqa: S311 - reproducible, not secret
    num_held_out = min(_MOST_HELD_OUT, max(1, round(config.held_out * len(order))), len(order) - 1)
    held_out, training, total = [], [], 0.0
    with bar("reading recordings", len(order)) as progress:
        for number, name in enumerate(order):
            one = _spoken(name, recordings[name], known[name])
            progress.advance()
            if number < num_held_out:
                held_out.append(one)
                continue
            training.append(one)
            total += one.audio.seconds
            if total >= config.fit_seconds:
                break
    if unmatched:
        console.print(f"{len(unmatched)} recordings or units have no other side", style="yellow")
    return training, held_out, unmatched


def _spoken(name: str, path: Path, units: Units) -> Spoken:
    """Read a recording and cut it, or fill it up with silence, to the length of its units."""
    import numpy as np

    from slam.vocoders.unit_mel import SAMPLE_RATE

    audio = read_audio(path, SAMPLE_RATE)
    frame = round(SAMPLE_RATE / units.frame_rate)
    length = units.num_frames * frame
    if abs(len(audio.samples) - length) > _STRAY_FRAMES * frame:
        raise MismatchError(
            f"{path}: lasts {audio.seconds:.2f} s, its units {length / SAMPLE_RATE:.2f} s; "
            "give the recordings that were encoded"
        )
    samples = np.pad(audio.samples, (0, max(0, length - len(audio.samples))))[:length]
    return Spoken(name, units, Audio(samples, SAMPLE_RATE))


class Fitting:
    """Networks being fitted to a stream of speech."""

    def __init__(
        self, networks: "Networks", stream: "SpeechStream", config: FitVocoderConfig, out: Path
    ) -> None:
        import torch

        from slam.devices import best_device
        from slam.training.checkpoints import restore

        self.config, self.stream, self.out = config, stream, out
        self.budget = Budget.parse(config.budget)
        self.device = best_device()
        networks.mean.copy_(stream.mean)
        networks.scale.copy_(stream.scale)
        self.networks = networks.to(self.device)
        self.parts = list(networks.children())
        self.optimizer = torch.optim.AdamW(
            networks.parameters(), lr=config.learning_rate, betas=_BETAS, weight_decay=_WEIGHT_DECAY
        )
        # checkpoints ask for no more than a module's named parameters
        self._lm = cast("PreTrainedModel", networks)
        self.state = restore(self._lm, [self.optimizer], out)

    def run(self) -> Results:
        """Fit until the budget is spent; a signal is answered with a checkpoint."""
        from slam.training.signals import signals

        self.networks.train()
        last, updates = time.perf_counter(), 0
        with signals() as stop, bar("fitting a vocoder", 1.0) as progress:
            while (share := self._share()) < 1.0:
                due = time.perf_counter() - last > self.config.checkpoint_seconds
                if due or stop.requested is not None:
                    self._checkpoint()
                    stop.leave()
                    last = time.perf_counter()
                spent, losses = self._update(share)
                updates += 1
                if updates == self.state.step == 2:  # noqa: PLR2004 - the first update is slower
                    self._check_clock(spent)
                progress.reach(share, ", ".join(f"{name} {loss:.2f}" for name, loss in losses.items()))
            if self.state.step < LEAST_STEPS:
                self._check_clock(self.state.seconds / self.state.step)
            self._checkpoint()
            stop.leave()
        return {
            "steps": self.state.step,
            "fitting_seconds": round(self.state.seconds, 2),
            "num_parameters": sum(weight.numel() for weight in self.networks.parameters()),
        }

    def _check_clock(self, step_seconds: float) -> None:
        """Refuse a clock that buys no training."""
        if self.budget.seconds < math.inf:
            self.budget.check(step_seconds=step_seconds)

    def _share(self) -> float:
        return self.budget.share(seconds=self.state.seconds, tokens=0, steps=self.state.step)

    def _checkpoint(self) -> None:
        from slam.training.checkpoints import save_checkpoint

        save_checkpoint(self._lm, [self.optimizer], self.state, self.out)

    def _update(self, share: float) -> tuple[float, dict[str, float]]:
        """Learn from one batch; gives the seconds and the losses.

        Raises:
            InputError: a loss is no number.
        """
        import torch

        begin = time.perf_counter()
        step = self.state.step
        losses = self.stream.losses(
            self.networks, seconds=self.config.batch_seconds, seed=(self.config.seed, step)
        )
        found = {name: float(loss.detach()) for name, loss in losses.items()}
        if not all(map(math.isfinite, found.values())):
            raise InputError(f"{self.out}: the loss is {found} at step {step}; lower learning_rate")
        self.optimizer.zero_grad()
        sum(losses.values(), torch.zeros((), device=self.device)).backward()  # type: ignore[no-untyped-call]
        for part in self.parts:  # no network's gradient shortens another's
            torch.nn.utils.clip_grad_norm_(part.parameters(), _CLIP)
        rate = learning_rate_share("linear", share, warmup=_WARMUP, floor=0.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.config.learning_rate
        self.optimizer.step()
        spent = time.perf_counter() - begin
        self.state = replace(self.state, step=step + 1, seconds=self.state.seconds + spent)
        return spent, found


def _judged(vocoder: "UnitMel", tokenizer: SpeechTokenizer, held_out: Sequence[Spoken], out: Path) -> Results:
    """The measures on what was held out, side by side, and some of it to listen to."""
    from slam.metrics.resynthesis import log_mel_distance, unit_errors
    from slam.vocoders.griffin_lim import GriffinLim

    speakers: dict[str, Vocoder] = {vocoder.name: vocoder}
    with suppress(ConfigError):  # it speaks spectra alone
        speakers["griffin-lim"] = GriffinLim.for_tokenizer(tokenizer)
    distances: dict[str, float] = dict.fromkeys([*speakers, "copy-synthesis"], 0.0)
    errors = dict.fromkeys(distances, 0)
    with bar("judging", len(held_out)) as progress:
        for number, one in enumerate(held_out):
            sounds = {name: speaker.decode([one.units])[0] for name, speaker in speakers.items()}
            sounds["copy-synthesis"] = vocoder.copy(one.audio)
            for name, audio in sounds.items():
                distances[name] += log_mel_distance(audio, one.audio) / len(held_out)
                errors[name] += unit_errors(tokenizer, audio, one.units)
            if number < _NUM_SAMPLES:
                for name, audio in (sounds | {"recording": one.audio}).items():
                    write_audio(out / SAMPLES_FOLDER / f"{number:03d}-{name}.wav", audio)
            progress.advance()
    num_units = sum(len(one.units) for one in held_out)
    foretold = sum(int(vocoder.durations(one.units).sum()) for one in held_out)
    return {
        "log_mel_distance": {name: round(value, 3) for name, value in distances.items()},
        "unit_error_rate": {name: round(count / num_units, 4) for name, count in errors.items()},
        "length_ratio": round(foretold / sum(one.units.num_frames for one in held_out), 3),
    }
