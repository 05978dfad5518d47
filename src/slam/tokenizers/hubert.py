"""Speech → k-means units of a hidden layer of HuBERT, wav2vec 2.0, WavLM or data2vec-audio.

These are the units of GSLM, TWIST and Slam (mHuBERT, layer 11, 500 clusters, 25 Hz). Padding changes them:
HuBERT-base normalises over time, and what is appended is heard. So each recording goes through the model by
itself, unpadded, in fp32: its units are a function of the recording alone. The centroids come from a file, or
are fitted.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
import numpy as np

from slam.audio import Audio
from slam.errors import ConfigError, InputError, MismatchError
from slam.run import digest, read_json, replacing, write_json
from slam.tokenizers.centroids import Centroids, Watch, fit_centroids, read_centroids
from slam.tokenizers.speech_features import SpeechFeatures, open_features
from slam.units import Units, deduplicate

if TYPE_CHECKING:
    import torch

_KMEANS_FILE = "kmeans.safetensors"
_BATCH_SECONDS = 320.0  # of speech that are computed together: 4 GB of the base model's activations in fp32
# how far rounding moves a frame, as a share of its length: some ten times what was seen over all families
_ROUNDING = 2e-5


@dataclass(frozen=True, eq=False)
class Hubert:
    """Nearest of K centroids for each frame of a model's layer."""

    features: SpeechFeatures
    centroids: Centroids  # [K, width]
    origin: Mapping[str, str] = field(default_factory=dict)  # file and sha256 of centroids that were given

    name = "hubert"

    @property
    def num_units(self) -> int:
        """How many centroids there are."""
        return len(self.centroids)

    @property
    def sample_rate(self) -> int:
        """The model's, in Hz."""
        return self.features.sample_rate

    @property
    def frame_rate(self) -> float:
        """The model's, in Hz: 50 for the published ones, 25 for mHuBERT's fourth iteration."""
        return self.features.frame_rate

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights that are run, the layer, the waveform's preparation and the centroids."""
        made = self.features
        prepared = [made.sample_rate, made.normalize, *made.padding]
        centroids = hashlib.sha256(self.centroids.tobytes()).hexdigest()
        return digest([made.digest, made.layer, prepared, self.centroids.shape, centroids])

    @classmethod
    def fit(
        cls,
        audios: Iterable[Audio],
        *,
        num_units: int,
        seed: int,
        layer: int,
        model: Path | None = None,
        hub_model: str | None = None,
        normalize: bool | None = None,
        kmeans: Path | None = None,
        watch: Watch | None = None,
    ) -> Self:
        """Take centroids from `kmeans`, or fit them on a seeded sample of the frames of `audios`.

        Args:
            audios: recordings at any rate; not touched if `kmeans` is given.
            num_units: how many units to fit; `kmeans` has its own number.
            seed: decides the sample and the first centroids.
            layer: whose hidden state, 1 to the number of blocks (fairseq's counting).
            model: a folder with config.json and safetensors weights.
            hub_model: or `owner/name@commit` of the Hugging Face hub.
            normalize: whether recordings are normalised; None asks the model's preprocessor_config.json.
            kmeans: centroids in safetensors or npy, or a pickled KMeans of scikit-learn, which is read
                without running it.
            watch: hears the inertia a frame after each epoch, where centroids are fitted; changes nothing.

        Raises:
            InputError: the model or the centroids cannot be read, or there are too few frames.
            ConfigError: no model is named, or it has no such layer.
            MismatchError: the centroids are of another width than the layer.
        """
        if model is None and hub_model is None:
            raise ConfigError(
                "tokenizer 'hubert' needs a model: a folder (model), or owner/name@commit (hub_model)"
            )
        place = str(model if model is not None else hub_model)
        features = open_features(place, layer=layer, normalize=normalize)
        if kmeans is None:
            frames = _frames(features, audios)
            return cls(
                features,
                fit_centroids(frames, features.width, num_units=num_units, seed=seed, watch=watch),
            )
        centroids, origin = read_centroids(kmeans)
        return cls(features, _matching(centroids, features, kmeans), origin)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote, and the model that it names.

        Raises:
            InputError: a file is missing or damaged, or the model is not where it was.
            MismatchError: the model's weights are not those that the units were made with.
        """
        path = folder / "tokenizer.json"
        try:
            about = msgspec.convert(read_json(path), _About)
        except msgspec.ValidationError as error:
            raise InputError(f"{path}: no tokenizer of a speech model ({error})") from None
        try:
            features = open_features(
                about.model, layer=about.layer, normalize=about.normalize, padding=about.padding
            )
        except InputError as error:
            raise InputError(f'{error}; {path} names it, write there ("model") where it is now') from None
        if features.digest != about.model_digest:
            raise MismatchError(
                f"{features.place}: its weights have the digest {features.digest}, {path} was made with "
                f"{about.model_digest}; put that model back"
            )
        centroids, _ = read_centroids(folder / _KMEANS_FILE)
        return cls(features, _matching(centroids, features, folder / _KMEANS_FILE), about.kmeans)

    def save(self, folder: Path) -> None:
        """Write `kmeans.safetensors` and `tokenizer.json`, which names the model and its digest."""
        from safetensors.numpy import save_file

        with replacing(folder / _KMEANS_FILE) as partial:
            save_file({"centroids": self.centroids}, partial, metadata=dict(self.origin))
        write_json(
            folder / "tokenizer.json",
            {
                "name": self.name,
                "fingerprint": self.fingerprint,
                "num_units": self.num_units,
                "sample_rate": self.sample_rate,
                "frame_rate": self.frame_rate,
                "model": self.features.place,
                "model_digest": self.features.digest,
                "layer": self.features.layer,
                "normalize": self.features.normalize,
                "padding": self.features.padding,
                "kmeans": dict(self.origin),
            },
        )

    def encode(self, batch: Sequence[Audio]) -> list[Units]:
        """The units of each recording: those that it has alone; one too short for a frame has none.

        Recordings are computed together, padded, and none hears the padding. What is left of their company is
        rounding; where that could decide between two centroids, the recording is computed again alone.

        Raises:
            InputError: a recording holds samples that are not finite.
        """
        units: dict[int, Units] = {}
        for group in _groups([audio.seconds for audio in batch]):
            found = self._together([batch[index] for index in group])
            for index, one in zip(group, found, strict=True):
                units[index] = self._alone(batch[index]) if one is None else one
        return [units[index] for index in range(len(batch))]

    def at_precision(self, precision: str) -> "Hubert":
        """The same tokenizer, its products and convolutions computed in "fp32" or "bf16".

        In bf16 a few units differ from those in fp32, and company may change some
        (`benchmarks/encode_throughput.py` counts them); the fingerprint stays.
        """
        return replace(self, features=replace(self.features, precision=precision))

    def _alone(self, audio: Audio) -> Units:
        frames = self.features(audio)
        with self.features.exact():
            nearest = self._distances(frames).argmin(dim=1).cpu().numpy()
        return deduplicate(nearest, self.frame_rate)

    def _together(self, batch: Sequence[Audio]) -> list[Units | None]:
        """The units of recordings computed together; None for those that rounding could have changed."""
        import torch

        if len(batch) == 1:
            return [None]
        recordings = self.features.together(batch)
        frames = torch.cat(recordings)
        with self.features.exact():
            near, nearest = self._distances(frames).topk(2, dim=1, largest=False)
            apart = (self._placed[nearest[:, 0]] - self._placed[nearest[:, 1]]).norm(dim=1)
            # the frame may be moved, and each distance rounded
            moved = _ROUNDING * frames.norm(dim=1) * apart
            rounded = _ROUNDING / 10 * near.abs().amax(dim=1)
            doubtful = near[:, 1] - near[:, 0] <= moved + rounded
            if self.features.precision != "fp32":
                doubtful.zero_()  # there rounding is what was asked for
            labels, doubts = nearest[:, 0].cpu().numpy(), doubtful.cpu().numpy()
        ends = np.cumsum([len(recording) for recording in recordings])[:-1]
        return [
            None if doubt.any() else deduplicate(label, self.frame_rate)
            for label, doubt in zip(np.split(labels, ends), np.split(doubts, ends), strict=True)
        ]

    def _distances(self, frames: "torch.Tensor") -> "torch.Tensor":
        """Frames `[F, width]` → squared distances to the centroids `[F, K]`, less |x|².

        |x - c|² = |x|² - 2 x·c + |c|², and |x|² is the same for every c.
        """
        return self._placed.square().sum(dim=1) - 2.0 * (frames @ self._placed.T)

    @cached_property
    def _placed(self) -> "torch.Tensor":
        """The centroids where the model is."""
        import torch

        return torch.from_numpy(self.centroids).to(self.features.model.device)


def _groups(seconds: Sequence[float]) -> Iterator[list[int]]:
    """Indices of recordings of like length, at most `_BATCH_SECONDS` a group, padding counted."""
    group: list[int] = []
    for index in sorted(range(len(seconds)), key=lambda index: seconds[index], reverse=True):
        if group and (len(group) + 1) * seconds[group[0]] > _BATCH_SECONDS:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


class _About(msgspec.Struct):
    """What `load` needs of tokenizer.json."""

    model: str
    model_digest: str
    layer: int
    normalize: bool
    padding: tuple[int, int]
    kmeans: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published model, layer and k-means; made and read as `Hubert` is."""

    name: str
    hub_model: str
    layer: int
    num_units: int
    frame_rate: float  # Hz
    kmeans_from: str
    kmeans_sha256: str | None = None  # None where no source gives it
    normalize: bool = False
    padding: tuple[int, int] = (0, 0)

    def fit(
        self,
        audios: Iterable[Audio],  # noqa: ARG002 - the protocol's; all is given
        *,
        num_units: int,  # noqa: ARG002 - the preset's own number holds
        seed: int,  # noqa: ARG002 - nothing is drawn
        model: Path | None = None,
        kmeans: Path | None = None,
    ) -> Hubert:
        """Put the tokenizer together.

        Args:
            audios: not touched.
            num_units: not used.
            seed: not used.
            model: a folder that holds the preset's model, instead of the hub.
            kmeans: the published file, or the `kmeans.safetensors` that an earlier encode made of it.

        Raises:
            ConfigError: `kmeans` is not given.
            MismatchError: a file is not the one that the preset names.
            InputError: the model or the centroids cannot be read.
        """
        if kmeans is None:
            raise ConfigError(
                f"tokenizer {self.name!r} needs its centroids: get {self.kmeans_from}, give it as kmeans"
            )
        centroids, origin = read_centroids(kmeans)
        if self.kmeans_sha256 not in (None, origin["sha256"]):
            raise MismatchError(
                f"{kmeans}: its SHA-256 is {origin['sha256'][:8]}…, that of {self.kmeans_from} is "
                f"{str(self.kmeans_sha256)[:8]}…"
            )
        place = str(model) if model is not None else self.hub_model
        features = open_features(place, layer=self.layer, normalize=self.normalize, padding=self.padding)
        found = (features.frame_rate, len(centroids))
        if found != (self.frame_rate, self.num_units):
            raise MismatchError(
                f"tokenizer {self.name!r} has {self.num_units} units at {self.frame_rate:g} Hz; {kmeans} has "
                f"{len(centroids)}, {features.place} {features.frame_rate:g} Hz"
            )
        return Hubert(features, _matching(centroids, features, kmeans), origin)

    def load(self, folder: Path) -> Hubert:
        """Read what `Hubert.save` wrote."""
        return Hubert.load(folder)


# TWIST's and Slam's (section 4); padding and no normalisation as slamkit has them
MHUBERT_25HZ = Preset(
    name="mhubert-25hz",
    hub_model="slprl/mhubert-base-25hz@a319086e1d343190047d02b7f81133fb310c1b90",
    layer=11,
    num_units=500,
    frame_rate=25.0,
    kmeans_from="https://dl.fbaipublicfiles.com/textless_nlp/twist/speech_tokenizer/"
    "mhubert_base_25hz_cp_mls_cv_sp_fisher_L11_km500.bin",
    kmeans_sha256="03cc04a9c24fec4285e73e709c485756d8f116aa8e724eac555de6a7cf8d28ad",
    padding=(40, 40),
)
# textlesslib's; fairseq trained the base model on waveforms that are not normalised
HUBERT_BASE_L9 = Preset(
    name="hubert-base-l9",
    hub_model="facebook/hubert-base-ls960@dba3bb02fda4248b6e082697eee756de8fe8aa8a",
    layer=9,
    num_units=500,
    frame_rate=50.0,
    kmeans_from="https://dl.fbaipublicfiles.com/textless_nlp/hubert/hubert_base_ls960_L9_km500.bin",
)


def _frames(features: SpeechFeatures, audios: Iterable[Audio]) -> Iterator[Centroids]:
    """The frames of each recording that has any."""
    for audio in audios:
        try:
            yield features(audio).cpu().numpy()
        except InputError:
            continue  # it will be named and counted when its turn to be encoded comes


def _matching(centroids: Centroids, features: SpeechFeatures, path: Path) -> Centroids:
    if centroids.shape[1] != features.width:
        raise MismatchError(
            f"{path}: centroids {centroids.shape[1]} wide; layer {features.layer} of {features.place} is "
            f"{features.width} wide"
        )
    return centroids
