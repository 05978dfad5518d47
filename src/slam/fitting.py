"""Settings and recordings → a speech tokenizer, fitted once and kept in a folder."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam.errors import ConfigError
from slam.recordings import Recording, sample_recordings
from slam.run import source
from slam.tokenizers import (
    ABOUT_FILE,
    BUILT_IN,
    SpeechTokenizer,
    check_settings,
    load_tokenizer,
    tokenizer_class,
)
from slam.tokenizers.centroids import Watch
from slam.tokenizers.speech_models import PINNED

_NUM_UNITS = 100


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Which tokenizer to fit, and on how much: what `slam encode` and `slam fit-units` share."""

    audio: Path = source(required=True)
    """Folder of recordings, searched through, or a folder that `slam synthesize` wrote."""
    tokenizer: str = "logmel-kmeans"
    """Which tokenizer to fit: a built-in one, or package.module:Name."""
    model: Path | None = source()
    """Folder of a pretrained speech model, for `hubert`; for a preset, where its model is."""
    hub_model: str | None = None
    """Or a model of the Hugging Face hub, its revision pinned: owner/name@commit."""
    layer: int | None = None
    """Whose hidden state becomes units, counted from 1."""
    normalize: bool | None = None
    """Whether each waveform is normalised; the model's own preprocessor_config.json if not given."""
    kmeans: Path | None = source()
    """File of centroids to use instead of fitting: safetensors, npy, or a pickled KMeans (never run)."""
    num_units: int | None = None
    """How many units to fit: 100 if not given; `kmeans` has its own number."""
    fit_seconds: float = 3600.0
    """Seconds of speech, drawn at random, to fit on."""
    seed: int = 0
    """Decides the fitting sample and the first centroids."""

    def __post_init__(self) -> None:
        if not 2 <= self.units_to_fit <= 65_000:  # noqa: PLR2004 - tokens are uint16
            raise ConfigError(f"num_units = {self.num_units}: must lie between 2 and 65,000")
        if self.fit_seconds <= 0:
            raise ConfigError("fit_seconds must be more than 0")
        if self.model is not None and self.hub_model is not None:
            raise ConfigError("give model (a folder) or hub_model (a name), not both")
        if self.hub_model is not None and not PINNED.fullmatch(self.hub_model):
            raise ConfigError(
                f"hub_model = {self.hub_model!r}: write owner/name@commit, all 40 digits of the commit"
            )
        if self.kmeans is not None and self.num_units is not None:
            raise ConfigError("kmeans has its own number of units; leave out num_units")

    def check_settings(self) -> None:
        """Hold the settings against what a built-in tokenizer takes; a stranger's is not imported yet."""
        if ":" not in self.tokenizer:
            check_settings(self.tokenizer, self.model_settings)

    @property
    def units_to_fit(self) -> int:
        """`num_units`, or its default."""
        return _NUM_UNITS if self.num_units is None else self.num_units

    @property
    def model_settings(self) -> dict[str, Any]:
        """The settings that only some tokenizers have, those that were given."""
        names = ("model", "hub_model", "layer", "normalize", "kmeans")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def named(self) -> str | None:
        """The name of a tokenizer that is not built in."""
        return None if self.tokenizer in BUILT_IN else self.tokenizer


def fit_tokenizer(
    config: FitConfig, recordings: Sequence[Recording], watch: Watch | None = None
) -> SpeechTokenizer:
    """Fit the tokenizer that `config` asks for; `watch` hears its inertia, where its `fit` can tell."""
    check_settings(config.tokenizer, config.model_settings)
    fit = tokenizer_class(config.tokenizer).fit
    watching = {"watch": watch} if watch and "watch" in inspect.signature(fit).parameters else {}
    return fit(
        sample_recordings(recordings, seconds=config.fit_seconds, seed=config.seed),
        num_units=config.units_to_fit,
        seed=config.seed,
        **config.model_settings,
        **watching,
    )


def fitted_tokenizer(config: FitConfig, recordings: Sequence[Recording], folder: Path) -> SpeechTokenizer:
    """The tokenizer that an earlier sitting fitted into `folder`, or one fitted and saved there now."""
    if not (folder / ABOUT_FILE).is_file():
        fit_tokenizer(config, recordings).save(folder)
    return load_tokenizer(folder, named=config.named)
