"""A file of tensors from outside, PyTorch's or safetensors → what it holds; nothing in it is run."""

import struct
import warnings
from pathlib import Path
from pickle import UnpicklingError  # only the error's name: nothing is unpickled here
from typing import Any

from slam.errors import InputError

# what a reader of tensors trips over where a file is damaged
DAMAGES = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def read_tensors(path: Path) -> Any:
    """A tensor, or a table of them, on the CPU; one that ends in `.safetensors` is a table by name.

    Raises:
        InputError: the file cannot be read, or holds more than tensors and plain values.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about how the file was written
            if path.suffix == ".safetensors":
                return load_file(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise InputError(
            f"{path}: no PyTorch file, or one that holds more than tensors and could run anything; it was "
            "not run"
        ) from None
    except (*DAMAGES, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise InputError(f"{path}: cannot be read, it is damaged ({reason})") from None
