"""Weights of a validation that a training may end with ↔ a file beside its checkpoints.

A file belongs to a validation that the state knows of: one that a killed training made after its last
checkpoint is made anew, so that the training resumed ends as the one never killed.
"""

from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from slam import world
from slam.errors import InputError
from slam.run import replacing
from slam.training.checkpoints import CHECKPOINTS_FOLDER, set_weights, trained_weights

_PREFIX = "kept-"


def keep_weights(lm: PreTrainedModel, step: int, out: Path) -> None:
    """Write the weights of now, and drop those that neither they nor a checkpoint need any more."""
    weights = trained_weights(lm)
    if world.rank():
        return
    with replacing(_path(out, step)) as partial:
        save_file(weights, partial)
    folder = out / CHECKPOINTS_FOLDER
    steps = _steps(out)
    needed = {step}
    for checkpoint in (int(path.name) for path in folder.iterdir() if path.name.isdigit()):
        needed |= {max((kept for kept in steps if kept <= checkpoint), default=step)}
    discard_kept(out, known=needed)


def discard_kept(out: Path, *, known: Collection[int]) -> None:
    """Remove weights of other steps than those known."""
    if world.rank() == 0:
        for step in _steps(out):
            if step not in known:
                _path(out, step).unlink()


def take_kept(lm: PreTrainedModel, now: int, out: Path) -> int:
    """Give `lm` the weights that were kept last, unless they are those of step `now`; gives their step.

    Raises:
        InputError: their file is damaged.
    """
    step = max(_steps(out))
    if step == now:
        return step
    path = _path(out, step)
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: damaged ({error}); delete {out} and train again") from None
    set_weights(lm, weights)
    return step


def _path(out: Path, step: int) -> Path:
    return out / CHECKPOINTS_FOLDER / f"{_PREFIX}{step:09d}.safetensors"


def _steps(out: Path) -> list[int]:
    return [int(path.stem.removeprefix(_PREFIX)) for path in (out / CHECKPOINTS_FOLDER).glob(f"{_PREFIX}*")]
