"""A pickled k-means of scikit-learn → its centroids, without running the pickle.

The field's k-means models are joblib pickles from the net, and to unpickle is to run whatever the file says.
Here the opcodes are walked through as data: a name that a pickle asks for is checked against a list and
stays a name, and nothing is ever imported, made or called. Known are pickle's protocols 2 to 5, numpy's
arrays, and joblib's array wrapper, whose bytes follow its opcodes; the whole may be zlib- or
gzip-compressed.
"""

import io
import math
import pickletools
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.errors import InputError, reason_of

_MAX_BYTES = 1 << 30  # the published files hold a few million
_MAX_DIMENSIONS = 8
_KMEANS = frozenset({"KMeans", "MiniBatchKMeans"})
# scikit-learn moved its module twice; numpy's `core` is folded into `_core` before a name is looked for here
_ALLOWED = frozenset(
    {
        *((f"sklearn.cluster.{m}", name) for m in ("_kmeans", "_k_means", "k_means_") for name in _KMEANS),
        ("joblib.numpy_pickle", "NumpyArrayWrapper"),
        ("sklearn.externals.joblib.numpy_pickle", "NumpyArrayWrapper"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("_codecs", "encode"),
        # the generator that it was fitted with, passed over
        ("numpy.random", "__RandomState_ctor"),
        ("numpy.random._pickle", "__randomstate_ctor"),
        ("numpy.random._pickle", "__bit_generator_ctor"),
        ("numpy.random._mt19937", "MT19937"),
    }
)
_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_MARK = object()


@dataclass(frozen=True)
class _Name:
    """What a pickle calls by `module.name`; it is never looked up."""

    module: str
    name: str


@dataclass
class _Thing:
    """What a pickle would have made by calling `maker`; nothing was called."""

    maker: _Name
    arguments: tuple[Any, ...]
    state: Any = None
    value: Any = None  # for an array, a dtype or bytes: the same, made here


def read_kmeans_pickle(path: Path) -> npt.NDArray[np.float32]:
    """The `cluster_centers_` of a pickled KMeans or MiniBatchKMeans, or a pickled array of that shape.

    Returns:
        Centroids `[K, width]`.

    Raises:
        InputError: the file is cut short, is no such pickle, or asks for a name that k-means has no need of
            (which was not run).
    """
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path}: over {_MAX_BYTES >> 30} GiB, too large for a k-means")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about backslashes in a spoilt name
            found = _Reader(_decompressed(path.read_bytes())).read()
    except _RefusedError as error:
        raise InputError(f"{path}: refused, and nothing of it was run: {error}") from None
    except (*_MALFORMED, zlib.error) as error:
        raise InputError(f"{path}: no pickled k-means, or cut short ({reason_of(error)})") from None
    return _centroids(found, path)


class _RefusedError(Exception):
    """The pickle asks for something that this reader does not give."""


# what a malformed stream of opcodes may run into
_MALFORMED = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, struct.error)


def _decompressed(content: bytes) -> bytes:
    if content[:1] == b"\x80":  # opcode PROTO, with which protocol 2 and later begin
        return content
    if content[:1] != b"\x78" and content[:2] != b"\x1f\x8b":
        raise ValueError("it begins as no pickle and no zlib or gzip file does")
    stream = zlib.decompressobj(wbits=47)  # either header
    plain = stream.decompress(content, _MAX_BYTES)
    if not stream.eof:
        raise ValueError("its compressed content is cut short or too large")
    return plain


class _Reader:
    """Walks through the opcodes of one pickle.

    A pickle may hold a tuple that holds another twice, and so on: nothing here hashes, compares or prints
    what it has not found to be text or a number.
    """

    def __init__(self, content: bytes) -> None:
        self._size = len(content)
        self._stream = io.BytesIO(content)
        self._stack: list[Any] = []
        self._memo: dict[Any, Any] = {}
        stack, memo = self._stack, self._memo
        self._steps: dict[str, Callable[[Any], object]] = {
            **dict.fromkeys(("PROTO", "FRAME"), lambda _: None),
            **dict.fromkeys(_LITERALS, stack.append),
            "NONE": lambda _: stack.append(None),
            "NEWTRUE": lambda _: stack.append(True),
            "NEWFALSE": lambda _: stack.append(False),
            "EMPTY_TUPLE": lambda _: stack.append(()),
            "EMPTY_LIST": lambda _: stack.append([]),
            "EMPTY_DICT": lambda _: stack.append({}),
            "MARK": lambda _: stack.append(_MARK),
            "TUPLE": lambda _: stack.append(tuple(self._from_mark())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "APPEND": lambda _: self._append([stack.pop()]),
            "APPENDS": lambda _: self._append(self._from_mark()),
            "SETITEM": lambda _: self._set_items([stack.pop(-2), stack.pop()]),
            "SETITEMS": lambda _: self._set_items(self._from_mark()),
            "MEMOIZE": lambda _: memo.update({len(memo): stack[-1]}),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda index: memo.update({index: stack[-1]})),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda index: stack.append(memo[index])),
            "GLOBAL": lambda names: stack.append(_allowed(*names.split(" ", 1))),
            "STACK_GLOBAL": lambda _: stack.append(_allowed(stack.pop(-2), stack.pop())),
            **dict.fromkeys(("NEWOBJ", "REDUCE"), lambda _: stack.append(_made(stack.pop(-2), stack.pop()))),
            "BUILD": lambda _: self._build(stack.pop()),
        }

    def read(self) -> Any:
        """What stands on the stack at the end: an array, a literal or a `_Thing`."""
        # genops reads opcode by opcode, so that an array's bytes can be taken out of the stream in between
        for opcode, argument, _ in pickletools.genops(self._stream):
            if opcode.name == "STOP":
                break
            if opcode.name not in self._steps:
                raise _RefusedError(f"it holds the opcode {opcode.name}, which no k-means needs")
            self._steps[opcode.name](argument)
        return _value(self._stack.pop())

    def _from_mark(self) -> list[Any]:
        after = next((i for i, item in enumerate(reversed(self._stack)) if item is _MARK), None)
        if after is None:
            raise ValueError("items without a beginning")
        start = len(self._stack) - 1 - after
        items = self._stack[start + 1 :]
        del self._stack[start:]
        return items

    def _tuple(self, size: int) -> None:
        if len(self._stack) < size:
            raise ValueError("a stack too short")
        items = tuple(self._stack[-size:])
        del self._stack[-size:]
        self._stack.append(items)

    def _append(self, items: Sequence[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise ValueError("items for no list")
        self._stack[-1].extend(items)

    def _set_items(self, items: Sequence[Any]) -> None:
        if type(self._stack[-1]) is not dict:
            raise ValueError("items for no dict")
        for key, item in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):  # to hash nested tuples may take for ever
                raise _RefusedError(f"it holds a dict with a key of type {type(key).__name__}")
            self._stack[-1][key] = item

    def _build(self, state: Any) -> None:
        thing = self._stack[-1]
        if not isinstance(thing, _Thing):
            raise _RefusedError(f"it sets the state of a {type(thing).__name__}")
        thing.state = state
        if thing.maker.name == "NumpyArrayWrapper":
            thing.value = self._wrapped_array(state)
        elif thing.maker.name == "_reconstruct":
            _, shape, dtype, fortran, content = state
            thing.value = _array(_bytes(content), _dtype(dtype), shape, "F" if fortran else "C")

    def _wrapped_array(self, state: dict[str, Any]) -> npt.NDArray[Any]:
        """The array whose bytes follow here (joblib's `NumpyArrayWrapper.read_array`)."""
        dtype, shape = _dtype(state["dtype"]), state["shape"]
        if state.get("numpy_array_alignment_bytes") is not None:
            self._stream.read(self._stream.read(1)[0])
        count = _num_bytes(shape, dtype)
        if count > self._size - self._stream.tell():
            raise ValueError(f"an array of {count} bytes, more than follow")
        return _array(self._stream.read(count), dtype, shape, state["order"])


def _allowed(module: Any, name: Any) -> _Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise _RefusedError("it asks for something by a name that is no text")
    folded = re.sub(r"^numpy\.core\b", "numpy._core", module)
    if (folded, name) not in _ALLOWED:
        raise _RefusedError(f"it asks for {module}.{name}, which no k-means needs".replace("\n", " ")[:300])
    return _Name(folded, name)


def _made(maker: Any, arguments: Any) -> _Thing:
    if not isinstance(maker, _Name) or not isinstance(arguments, tuple):
        raise _RefusedError(f"it calls a {type(maker).__name__}")
    thing = _Thing(maker, arguments)
    if maker.name == "encode":
        text, encoding = arguments
        if encoding not in ("latin1", "latin-1"):
            raise ValueError("bytes in an unknown encoding")
        thing.value = _bytes(text)
    elif maker.name == "_frombuffer":
        content, dtype, shape, order = arguments
        thing.value = _array(_bytes(content), _dtype(dtype), shape, order)
    return thing


def _value(thing: Any) -> Any:
    return thing.value if isinstance(thing, _Thing) and thing.value is not None else thing


def _bytes(content: Any) -> bytes:
    content = _value(content)
    # protocol 2 writes bytes as text of the same code points
    return content.encode("latin1") if isinstance(content, str) else bytes(memoryview(content))


def _dtype(thing: Any) -> np.dtype[Any]:
    """A dtype of plain numbers; `dtype("f4", …)` with the state `(3, "<", …)`."""
    if not isinstance(thing, _Thing) or thing.maker.name != "dtype":
        raise _RefusedError("it holds an array whose dtype is none")
    code, order = thing.arguments[0], thing.state[1] if thing.state else "="
    named = isinstance(code, str) and isinstance(order, str)
    if not named or not re.fullmatch(r"[<>=|][fiub][1248]", order + code):
        raise _RefusedError("it holds an array of something other than plain numbers")
    dtype: np.dtype[Any] = np.dtype(order + code)
    return dtype


def _num_bytes(shape: Any, dtype: np.dtype[Any]) -> int:
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError("an array of no shape")
    if not all(type(size) is int and 0 <= size <= _MAX_BYTES for size in shape):
        raise ValueError("an array of no possible shape")
    return math.prod(shape) * dtype.itemsize


def _array(content: bytes, dtype: np.dtype[Any], shape: Any, order: Any) -> npt.NDArray[Any]:
    if _num_bytes(shape, dtype) != len(content) or order not in ("C", "F"):
        raise ValueError(f"an array of {len(content)} bytes, which do not fill its shape")
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _centroids(found: Any, path: Path) -> npt.NDArray[np.float32]:
    """The centroids in what the pickle held, checked."""
    held = found
    if isinstance(found, _Thing):
        if found.maker.name not in _KMEANS or not isinstance(found.state, dict):
            raise InputError(f"{path}: holds a pickled {found.maker.name}, not a k-means of scikit-learn")
        if "cluster_centers_" not in found.state:
            raise InputError(f"{path}: holds a k-means that was never fitted (no cluster_centers_)")
        held = _value(found.state["cluster_centers_"])
    if not isinstance(held, np.ndarray):
        raise InputError(f"{path}: holds a pickled {type(held).__name__}, not a k-means of scikit-learn")
    return checked_centroids(held, path)


def checked_centroids(found: npt.NDArray[Any], path: Path) -> npt.NDArray[np.float32]:
    """`found` in fp32 if it can be centroids: `[K, width]`, K ≥ 2, floating, finite.

    Raises:
        InputError: it cannot.
    """
    if found.ndim != 2 or found.shape[0] < 2 or not found.size or found.dtype.kind != "f":  # noqa: PLR2004
        raise InputError(
            f"{path}: an array of shape {found.shape} and type {found.dtype}; "
            "centroids are floating-point numbers of shape [K, width]"
        )
    with np.errstate(over="ignore"):  # float64 may hold what float32 does not
        centroids = np.array(found, dtype=np.float32, order="C")  # its own: a pickle's cannot be written
    if not np.isfinite(centroids).all():
        raise InputError(f"{path}: holds centroids that are not finite")
    return centroids
