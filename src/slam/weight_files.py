"""A checkpoint's folder → its weights by name, from one file or several; nothing in it is run.

Published checkpoints divide their weights among files that an index names.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from slam.errors import InputError
from slam.run import read_json
from slam.tensor_files import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"


def read_weights(folder: Path, *, pickles: bool) -> "dict[str, Tensor]":
    """The weights on the CPU, as they are kept.

    Args:
        folder: of the checkpoint.
        pickles: take `pytorch_model.bin` where there is no safetensors file; its tensors alone are read.

    Raises:
        InputError: there are none, a file is missing, cannot be read or lacks what its index names.
    """
    for name in (SAFETENSORS, PICKLE) if pickles else (SAFETENSORS,):
        if (folder / name).is_file():
            return _tensors(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _divided(folder, folder / f"{name}.index.json")
    if any(folder.glob("*.bin")):
        raise InputError(
            f"{folder}: holds its weights as pickles only, which could run anything; convert them to "
            "safetensors, or say read_pickles to read their tensors alone"
        )
    raise InputError(f"{folder}: holds no weights ({SAFETENSORS} is missing)")


def _divided(folder: Path, index: Path) -> "dict[str, Tensor]":
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{index}: names no files of weights")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise InputError(f"{index}: names {name!r}, which is no file of this folder")
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: is missing; {index.name} says that weights are in it")
        weights |= _tensors(folder / name)
    if lacking := sorted(places.keys() - weights):
        raise InputError(f"{folder}: lacks {len(lacking)} weights that {index.name} names, as {lacking[0]}")
    return weights


def _tensors(path: Path) -> "dict[str, Tensor]":
    import torch

    found = read_tensors(path)
    if not isinstance(found, dict) or not all(isinstance(one, torch.Tensor) for one in found.values()):
        raise InputError(f"{path}: is no table of tensors")
    return found
