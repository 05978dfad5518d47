"""A folder, or a commit of the hub → Kokoro's config, weights and voices, and the network made of them.

Weights are refused unless they are plain tensors and whole: the package would read what it can and leave
random numbers in the rest.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slam.errors import InputError, MissingExtraError, reason_of
from slam.run import read_json
from slam.tensor_files import DAMAGES, read_tensors

if TYPE_CHECKING:
    import torch

REPOSITORY = "hexgrad/Kokoro-82M"
COMMIT = "f3ff3571791e39611d31c381e3a41a3af07b4987"
_WEIGHTS_FILE = "kokoro-v1_0.pth"
_TAGGER = "en_core_web_sm"
_VOICES = "[ab][fm]_*.pt"  # a American, b British; f female, m male; other letters speak other languages
_PARTS = {"bert", "bert_encoder", "predictor", "text_encoder", "decoder"}
_STYLE_AXES = 3  # number of phonemes, 1, width


@dataclass(frozen=True)
class Files:
    """Where a model is."""

    config: Path
    weights: Path
    voices: Mapping[str, Path]  # name → style tensors


def import_kokoro() -> Any:
    """The package, once all that it needs is there: it would fetch the tagger by itself.

    Raises:
        MissingExtraError: it, spaCy or the tagger is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what spaCy imports
            import kokoro
            import spacy
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"the synthesizer 'kokoro' is not installed ({error.name} is missing): pip install 'slam[kokoro]'"
        ) from None
    if not spacy.util.is_package(_TAGGER):
        raise MissingExtraError(
            f"the synthesizer 'kokoro' reads English with spaCy's {_TAGGER}, which is not installed: "
            f"python -m spacy download {_TAGGER}"
        )
    return kokoro


def files_in(folder: Path) -> Files:
    """What is in a folder of published files.

    Raises:
        InputError: the config, the weights or every English voice is missing.
    """
    weights = sorted(folder.glob("*.pth"))
    config = folder / "config.json"
    if not config.is_file() or len(weights) != 1:
        found = ", ".join(path.name for path in weights) or "none"
        raise InputError(
            f"{folder}: must hold Kokoro's config.json and one file of weights (.pth; found {found})"
        )
    voices = {path.stem: path for path in sorted((folder / "voices").glob(_VOICES))}
    if not voices:
        raise InputError(f"{folder}: holds no English voice of Kokoro's (voices/af_heart.pt)")
    return Files(config, weights[0], voices)


def files_of_hub() -> Files:
    """The commit in the hub's cache; what is not there is fetched.

    Raises:
        InputError: the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = ["config.json", _WEIGHTS_FILE, f"voices/{_VOICES}"]
    try:
        try:  # first without asking the hub: a process that speaks needs no network
            return files_in(Path(snapshot_download(REPOSITORY, revision=COMMIT, local_files_only=True)))
        except (LocalEntryNotFoundError, InputError):
            return files_in(Path(snapshot_download(REPOSITORY, revision=COMMIT, allow_patterns=wanted)))
    except OSError as error:
        raise InputError(
            f"Kokoro's model {REPOSITORY}@{COMMIT} is not in the hub's cache and cannot be fetched "
            f"({reason_of(error)}); give the folder of its files (synthesizer_folder)"
        ) from None


def load_model(files: Files) -> Any:
    """The package's network, all its weights read.

    Raises:
        InputError: the config or the weights are damaged or do not belong together.
    """
    config, parts = read_json(files.config), read_tensors(files.weights)
    if not isinstance(parts, dict) or set(parts) != _PARTS or not all(map(_is_table, parts.values())):
        raise InputError(f"{files.weights}: holds no weights of Kokoro's ({', '.join(sorted(_PARTS))})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the package's way of weight norm is an old one
            warnings.simplefilter("ignore", UserWarning)  # it asks for dropout where there is one layer
            model = import_kokoro().KModel(repo_id=REPOSITORY, config=config, model=str(files.weights))
    except DAMAGES as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise InputError(f"{files.weights}: does not belong to {files.config} ({reason})") from None
    # the package passes over names that it does not know, and leaves random numbers where they should stand;
    # published files lack the gains of instance norm, which are then 1, and may lack the unused pooler
    for part, tensors in parts.items():
        given = {name.removeprefix("module.") for name in tensors}
        for name, weights in getattr(model, part).named_parameters():
            if weights.ndim > 1 and name not in given and not name.startswith("pooler."):
                raise InputError(f"{files.weights}: lacks weights, the first {part}.{name}")
    return model


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def load_style(path: Path) -> "torch.Tensor":
    """A voice's style for each number of phonemes, `[510, 1, 256]`.

    Raises:
        InputError: the file holds none.
    """
    import torch

    style = read_tensors(path)
    if not isinstance(style, torch.Tensor) or style.ndim != _STYLE_AXES or not style.is_floating_point():
        raise InputError(f"{path}: no voice of Kokoro's (a tensor of {_STYLE_AXES} dimensions)")
    return style.float()
