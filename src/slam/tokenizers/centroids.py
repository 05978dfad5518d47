"""A file of centroids, or frames to fit them on → centroids `[K, width]`, fp32, and where they came from.

Three kinds of file are read: safetensors (which is what we write), npy, and the field's pickles, which are
never run.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.errors import InputError
from slam.tokenizers.kmeans_pickle import checked_centroids, read_kmeans_pickle

Centroids = npt.NDArray[np.float32]

_MAX_UNITS = 65_000  # tokens are uint16
_FRAMES_PER_UNIT = 256  # as FAISS samples; more hardly move a centroid
_MIN_FRAMES = 20_000


def read_centroids(path: Path) -> tuple[Centroids, dict[str, str]]:
    """Centroids `[K, width]` of a safetensors, npy or pickle file, and their origin: `file`, `sha256`.

    A safetensors file that `Hubert.save` wrote keeps the origin of what it was converted from.

    Raises:
        InputError: the file cannot be read, or holds no centroids.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of centroids")
    origin = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    if path.suffix == ".safetensors":
        found, metadata = _tensor(path)
        centroids = checked_centroids(found, path)
        origin = metadata if metadata.keys() == origin.keys() else origin
    elif path.suffix == ".npy":
        try:
            centroids = checked_centroids(np.load(path, allow_pickle=False), path)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: no array of numbers ({str(error).split(chr(10))[0]})") from None
    else:
        centroids = read_kmeans_pickle(path)
    if len(centroids) > _MAX_UNITS:
        raise InputError(f"{path}: {len(centroids)} centroids; at most {_MAX_UNITS} fit the tokens")
    return centroids, origin


def _tensor(path: Path) -> tuple[npt.NDArray[Any], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return file.get_tensor("centroids"), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: holds no tensor called centroids ({error})") from None


def fit_centroids(
    recordings: Iterable[npt.NDArray[np.float32]], width: int, *, num_units: int, seed: int
) -> Centroids:
    """Mini-batch k-means with the settings of HuBERT's own clustering (fairseq, learn_kmeans.py).

    Args:
        recordings: frames `[F, width]` of each; they are drawn from as they come.
        width: of a frame.
        num_units: how many centroids.
        seed: decides the sample and the first centroids.

    Raises:
        InputError: there are fewer distinct frames than units are wanted.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    generator = np.random.default_rng(seed)
    frames = _sample(recordings, width, max(_MIN_FRAMES, num_units * _FRAMES_PER_UNIT), generator)
    if len(np.unique(frames, axis=0)) < num_units:
        raise InputError(
            f"{len(frames)} frames of speech are too few to fit {num_units} units; "
            "give more recordings or ask for fewer units"
        )
    model = MiniBatchKMeans(
        num_units,
        batch_size=10_000,
        max_iter=100,
        n_init=5,
        max_no_improvement=50,
        reassignment_ratio=0.0,
        random_state=seed,
    )
    with threadpool_limits(1):  # the order of summation is part of the result
        model.fit(frames)
    return np.ascontiguousarray(model.cluster_centers_, dtype=np.float32)


def _sample(
    recordings: Iterable[npt.NDArray[np.float32]], width: int, limit: int, generator: np.random.Generator
) -> Centroids:
    """At most `limit` frames, each as likely as any other, in memory for twice as many."""
    kept = [np.zeros((0, width), np.float32)]
    keys = [np.zeros(0)]
    for frames in recordings:
        kept.append(frames)
        keys.append(generator.random(len(frames)))
        if sum(map(len, keys)) > 2 * limit:
            kept, keys = _lowest(kept, keys, limit)
    (sample,), _ = _lowest(kept, keys, limit)
    return sample


def _lowest(
    kept: Sequence[Centroids], keys: Sequence[npt.NDArray[np.float64]], limit: int
) -> tuple[list[Centroids], list[npt.NDArray[np.float64]]]:
    """The `limit` frames with the lowest random keys, in their order."""
    frames, values = np.concatenate(kept), np.concatenate(keys)
    chosen = np.sort(values.argsort(kind="stable")[:limit])
    return [frames[chosen]], [values[chosen]]
