"""A training under way ↔ a folder: weights, moments, random state and clock, whole or not at all.

Safetensors and JSON alone. The JSON holds the digest of every other file and of itself, so that a checkpoint
that was cut short or changed is known for what it is.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from slam import world
from slam.errors import InputError
from slam.progress import console
from slam.run import digest, read_json, write_json
from slam.training.parallel import divided, gathered_weights

CHECKPOINTS_FOLDER = "checkpoints"
_KEPT = 2
_STATE, _MODEL, _OPTIMIZER = "state.json", "model.safetensors", "optimizer.safetensors"


@dataclass(frozen=True)
class State:
    """How far a training is."""

    step: int = 0  # batches seen
    skipped: int = 0  # of them left out, for their loss was no number or jumped
    skipped_in_a_row: int = 0
    tokens: int = 0
    seconds: float = 0.0  # in training steps: the budget's clock
    overhead_seconds: float = 0.0  # in compilation, validation and checkpoints, outside the budget
    validations: int = 0
    window: Sequence[dict[str, float]] = ()  # figures of the steps since the log's last row
    recent_losses: Sequence[float] = ()  # against which a jump is told
    found: Sequence[dict[str, float]] = ()  # figures of the validations, and the step of each


def save_checkpoint(
    lm: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], state: State, out: Path
) -> None:
    """Write all as one folder, whole or not at all; keep two. Every process calls, process 0 writes."""
    folder = out / CHECKPOINTS_FOLDER
    partial, final = folder / ".partial", folder / f"{state.step:09d}"
    weights = trained_weights(lm)
    moments = _moments(lm, optimizers) | _random_state()
    if world.rank():
        return
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file(weights, partial / _MODEL)
        save_file(moments, partial / _OPTIMIZER)
        content = asdict(state) | {"files": _digests(partial)}
        write_json(partial / _STATE, content | {"digest": digest(content)})
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk leaves nothing half-written
    for old in sorted(path for path in folder.iterdir() if path.name.isdigit())[:-_KEPT]:
        shutil.rmtree(old)


def restore(lm: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], out: Path) -> State:
    """Load the newest checkpoint in `out` that is whole; a damaged one is named and passed over."""
    folder = out / CHECKPOINTS_FOLDER
    found = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
    for path in (path for path in found if path.name.isdigit()):
        try:
            state, weights, moments = _read(
                path, [name for name, w in lm.named_parameters() if w.requires_grad]
            )
        except (OSError, SafetensorError, InputError, TypeError, KeyError) as error:
            if world.rank() == 0:
                console.print(f"{path}: damaged checkpoint passed over ({error})", style="yellow")
            continue
        _set_random_state(moments)
        set_weights(lm, weights)
        _set_moments(lm, optimizers, moments)
        return state
    return State()


def discard_checkpoints(out: Path) -> None:
    """Free the disk once the finished model is saved."""
    if world.rank() == 0:
        shutil.rmtree(out / CHECKPOINTS_FOLDER, ignore_errors=True)


def _read(path: Path, names: Sequence[str]) -> tuple[State, dict[str, Tensor], dict[str, Tensor]]:
    """State, weights and moments, once every digest is found right."""
    content = read_json(path / _STATE)
    written = content.pop("digest", None) if isinstance(content, dict) else None
    if digest(content) != written:
        raise InputError(f"{_STATE} is not what was written")
    for name, expected in content.pop("files").items():
        if _digest(path / name) != expected:
            raise InputError(f"{name} is not what was written")
    weights, moments = load_file(path / _MODEL), load_file(path / _OPTIMIZER)
    return State(**content), {name: weights[name] for name in names}, moments


def _digests(folder: Path) -> dict[str, str]:
    """Name → digest of the files in `folder`, read side by side."""
    paths = sorted(folder.iterdir())
    with ThreadPoolExecutor() as pool:
        return dict(zip((path.name for path in paths), pool.map(_digest, paths), strict=True))


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def trained_weights(lm: PreTrainedModel) -> dict[str, Tensor]:
    """What training changes, by name; where it is divided, all on process 0. Every process must call."""
    if (gathered := gathered_weights(lm)) is not None:
        return gathered
    return {name: w.detach().contiguous() for name, w in lm.named_parameters() if w.requires_grad}


def set_weights(lm: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Put back what `trained_weights` gave. Every process must call."""
    if divided(lm):
        from slam.training import sharded

        sharded.set_weights(lm, weights)
        return
    own = dict(lm.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(weight)


def _moments(lm: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """`OPTIMIZER|PARAMETER|FIELD` → tensor: by name, for a parameter's number depends on the grouping."""
    moments: dict[str, Tensor] = {}
    names = {id(weight): name for name, weight in lm.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        state: Mapping[str, Mapping[str, Any]]
        if divided(lm):
            from slam.training import sharded

            state = sharded.gathered_moments(lm, optimizer)
        else:
            state = {names[id(weight)]: entry for weight, entry in optimizer.state.items()}
        for name, entry in state.items():
            moments |= {f"{number}|{name}|{field}": value for field, value in entry.items()}
    return moments


def _set_moments(
    lm: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], moments: Mapping[str, Tensor]
) -> None:
    weights = dict(lm.named_parameters())
    for number, optimizer in enumerate(optimizers):
        entries: dict[str, dict[str, Tensor]] = {}
        for key, value in moments.items():
            owner, name, field = key.split("|")
            if owner == str(number):
                entries.setdefault(name, {})[field] = value
        if not entries:
            continue
        if divided(lm):
            from slam.training import sharded

            sharded.set_moments(lm, optimizer, entries)
            continue
        indices = {
            id(weight): index
            for index, weight in enumerate(w for group in optimizer.param_groups for w in group["params"])
        }
        state = {indices[id(weights[name])]: entry for name, entry in entries.items()}
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _random_state() -> dict[str, Tensor]:
    """The state of the CPU's generator and of the accelerator's."""
    found = {"random|cpu|state": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["random|cuda|state"] = torch.cuda.get_rng_state()
    return found


def _set_random_state(moments: dict[str, Tensor]) -> None:
    """Take the generators' states out of `moments` and set them."""
    torch.set_rng_state(moments.pop("random|cpu|state"))
    cuda = moments.pop("random|cuda|state", None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
