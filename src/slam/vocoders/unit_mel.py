"""Units → log-mel → sound, by networks that `slam fit-vocoder` fitted on the units' own recordings.

Nothing is asked of the units: whatever the tokenizer, the voice is learnt from its corpus. All is computed on
the CPU, an utterance at a time, so an utterance sounds the same whatever is spoken beside it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import msgspec
import numpy as np
import numpy.typing as npt

from slam.audio import Audio
from slam.errors import ConfigError, InputError, MismatchError, reason_of
from slam.run import read_json, replacing, write_json
from slam.tokenizers import SpeechTokenizer
from slam.units import Units

if TYPE_CHECKING:
    from slam.vocoders.mel_networks import Networks

SAMPLE_RATE = 16_000  # Hz
ABOUT_FILE = "vocoder.json"
WEIGHTS_FILE = "vocoder.safetensors"
_HOP = 160  # samples between spectra, or what is nearest and divides a frame
_HOPS = (80, 320)  # the shortest and the longest that the window of the spectra allows
_PEAK = 0.99  # full scale is 1
_FAR = 10  # frames: farther from either end of its unit, all places are alike


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What `vocoder.json` says."""

    name: str
    tokenizer: str  # name
    tokenizer_fingerprint: str
    num_units: int
    sample_rate: int  # Hz
    frame_rate: float  # Hz of the units
    width: Annotated[int, msgspec.Meta(ge=8, le=4096)]  # channels
    weights: str = ""  # SHA-256 of the weights' file

    @property
    def samples_per_frame(self) -> int:
        """Samples in a unit's frame."""
        return round(SAMPLE_RATE / self.frame_rate)

    @property
    def hop(self) -> int:
        """Samples between spectra."""
        return hop_of(self.frame_rate)


def hop_of(frame_rate: float) -> int:
    """Samples between spectra: about 10 ms, dividing a unit's frame.

    Raises:
        ConfigError: no such length divides it.
    """
    frame = round(SAMPLE_RATE / frame_rate) if frame_rate > 0 else 0
    if frame and abs(frame * frame_rate - SAMPLE_RATE) < 1e-6 * SAMPLE_RATE:
        whole = [hop for hop in range(_HOPS[0], _HOPS[1] + 1) if frame % hop == 0]
        if whole:
            return min(whole, key=lambda hop: abs(hop - _HOP))
    raise ConfigError(
        f"unit-mel cannot speak units at {frame_rate:g} Hz: at 16 kHz a frame must hold a whole number of "
        f"hops of {_HOPS[0]} to {_HOPS[1]} samples"
    )


def about(tokenizer: SpeechTokenizer, width: int) -> About:
    """What describes a vocoder of this tokenizer's units.

    Raises:
        ConfigError: it cannot speak at their frame rate.
    """
    hop_of(tokenizer.frame_rate)
    return About(
        name=UnitMel.name,
        tokenizer=tokenizer.name,
        tokenizer_fingerprint=tokenizer.fingerprint,
        num_units=tokenizer.num_units,
        sample_rate=SAMPLE_RATE,
        frame_rate=tokenizer.frame_rate,
        width=width,
    )


def new_networks(description: About) -> "Networks":
    """Networks of these sizes, their weights drawn at random."""
    from slam.vocoders.mel_networks import Networks

    return Networks(
        num_units=description.num_units,
        per_frame=description.samples_per_frame // description.hop,
        hop=description.hop,
        width=description.width,
    )


def places(durations: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Durations `[N]` → for each frame how far it is from its unit's start and end, and how long that is.

    Returns:
        `[F, 3]`, each about as large as 1.
    """
    lengths = np.asarray(durations, dtype=np.int64)
    ends = np.repeat(np.cumsum(lengths), lengths)
    length = np.repeat(lengths, lengths)
    left = ends - np.arange(len(ends)) - 1
    into = length - 1 - left
    near = (np.minimum(distance, _FAR) * (2 / _FAR) for distance in (into, left))
    return np.stack([*near, np.log(length)], axis=1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class UnitMel:
    """A fitted vocoder: of one tokenizer's units, in the voice of its recordings."""

    networks: Any  # slam.vocoders.mel_networks.Networks
    about: About

    name = "unit-mel"
    sample_rate = SAMPLE_RATE

    @classmethod
    def for_tokenizer(cls, tokenizer: SpeechTokenizer, *, folder: Path | None = None) -> Self:
        """Read what `slam fit-vocoder` wrote into `folder`.

        Raises:
            ConfigError: no folder is given.
            MismatchError: it was fitted to other units.
            InputError: the folder's files are missing or damaged.
        """
        if folder is None:
            raise ConfigError("unit-mel needs vocoder_from: a folder that `slam fit-vocoder` wrote")
        path = folder / ABOUT_FILE
        if not path.is_file():
            raise InputError(f"{folder}: holds no vocoder ({ABOUT_FILE} is missing); fit one")
        try:
            found = msgspec.convert(read_json(path), About)
        except msgspec.ValidationError as error:
            raise InputError(f"{path}: describes no unit-mel vocoder ({error}); fit it again") from None
        if (found.name, found.sample_rate) != (cls.name, SAMPLE_RATE):
            raise InputError(f"{path}: describes another vocoder, {found.name} at {found.sample_rate} Hz")
        if (found.num_units, found.frame_rate) != (tokenizer.num_units, tokenizer.frame_rate):
            raise MismatchError(
                f"{folder}: speaks {found.num_units} units at {found.frame_rate:g} Hz, the tokenizer "
                f"{tokenizer.name!r} has {tokenizer.num_units} at {tokenizer.frame_rate:g} Hz; "
                "fit a vocoder on these"
            )
        if found.tokenizer_fingerprint != tokenizer.fingerprint:
            raise MismatchError(
                f"{folder}: speaks units of {found.tokenizer} {found.tokenizer_fingerprint}, these are of "
                f"{tokenizer.name} {tokenizer.fingerprint}; fit a vocoder on these"
            )
        networks = new_networks(found)
        _load(networks, folder / WEIGHTS_FILE, found.weights)
        return cls(networks.eval(), found)

    def save(self, folder: Path) -> None:
        """Write `vocoder.safetensors`, and `vocoder.json`, which vouches for it."""
        from safetensors.torch import save_file

        weights = folder / WEIGHTS_FILE
        with replacing(weights) as partial:
            save_file({name: value.cpu() for name, value in self.networks.state_dict().items()}, partial)
        description = msgspec.structs.replace(self.about, weights=_digest(weights))
        write_json(folder / ABOUT_FILE, msgspec.to_builtins(description))

    def decode(self, batch: Sequence[Units]) -> list[Audio]:
        """Each `Units` → 16 kHz divided by their frame rate samples a frame; missing durations are foretold.

        Raises:
            MismatchError: the units are not of the vocoder's tokenizer.
        """
        import torch

        with torch.inference_mode():
            return [Audio(self._speak(units), SAMPLE_RATE) for units in batch]

    def copy(self, recording: Audio) -> Audio:
        """A recording at 16 kHz by way of its own spectra: the best that `decode` could do."""
        import torch

        from slam.vocoders.mel_networks import log_mel

        samples = torch.from_numpy(recording.samples)
        with torch.inference_mode():
            spectra = self.networks.normalised(log_mel(samples, self.about.hop))
            return Audio(within_full_scale(self.networks.to_sound(spectra[None])[0].numpy()), SAMPLE_RATE)

    def durations(self, units: Units) -> npt.NDArray[np.int64]:
        """Frames of each unit, `[N]`, as the network foretells them."""
        import torch

        if not len(units):
            return np.zeros(0, np.int64)
        with torch.inference_mode():
            ids = torch.from_numpy(self._checked(units).ids.astype(np.int64))
            means = 1.0 + self.networks.durations(ids[None])[0].double().exp().numpy()
        # the fractions are carried on, so that a long utterance keeps its length
        ends: npt.NDArray[np.int64] = np.floor(np.cumsum(means) + 0.5).astype(np.int64)
        return np.asarray(np.diff(ends, prepend=0), dtype=np.int64)

    def _speak(self, units: Units) -> npt.NDArray[np.float32]:
        """Samples of one utterance, at most full scale."""
        import torch

        self._checked(units)
        durations = units.durations if units.durations is not None else self.durations(units)
        if not durations.sum():
            return np.zeros(0, np.float32)
        ids = torch.from_numpy(np.repeat(units.ids, durations).astype(np.int64))
        spectra = self.networks.to_mel(ids[None], torch.from_numpy(places(durations))[None])
        return within_full_scale(self.networks.to_sound(spectra)[0].numpy())

    def _checked(self, units: Units) -> Units:
        highest = int(units.ids.max()) if len(units) else 0
        if highest >= self.about.num_units or units.frame_rate != self.about.frame_rate:
            raise MismatchError(
                f"a unit {highest} at {units.frame_rate:g} Hz, but this vocoder speaks "
                f"{self.about.num_units} units at {self.about.frame_rate:g} Hz; "
                f"encode with {self.about.tokenizer}"
            )
        return units


def within_full_scale(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The same sound, made softer if it would clip."""
    peak = float(np.abs(samples).max(initial=0.0))
    return np.asarray(samples * (_PEAK / peak) if peak > _PEAK else samples, dtype=np.float32)


def _load(networks: "Networks", path: Path, expected: str) -> None:
    """Fill the networks from a file that is what was written.

    Raises:
        InputError: it is not.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if _digest(path) != expected:
            raise InputError(f"{path}: is not what was written; fit the vocoder again")
        weights = load_file(path)
        networks.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{path}: no weights of a unit-mel vocoder ({reason_of(error)}); fit it again"
        ) from None
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise InputError(f"{path}: holds weights that are not finite; fit the vocoder again")


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
