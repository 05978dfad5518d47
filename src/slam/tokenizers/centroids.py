"""A file of centroids, or frames to fit them on → centroids `[K, width]`, fp32, and where they came from.

Three kinds of file are read: safetensors (which is what we write), npy, and the field's pickles, which are
never run.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.errors import InputError, reason_of
from slam.tokenizers.kmeans_pickle import checked_centroids, read_kmeans_pickle

Centroids = npt.NDArray[np.float32]
# hears after some iterations of k-means: how many there were, and the inertia a frame
Watch = Callable[[int, float], None]

_MAX_UNITS = 65_000  # tokens are uint16
_FRAMES_PER_UNIT = 256  # as FAISS samples; more hardly move a centroid
_MIN_FRAMES = 20_000
_BATCH_FRAMES = 10_000
_MAX_EPOCHS = 100
_LEAST_GAIN = 1e-3  # share of the inertia; an epoch that takes less away than this has gained nothing
_PATIENCE = 3  # epochs without gain, one behind the other, that end the fit


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
            raise InputError(f"{path}: no array of numbers ({reason_of(error)})") from None
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
    recordings: Iterable[npt.NDArray[np.float32]],
    width: int,
    *,
    num_units: int,
    seed: int,
    watch: Watch | None = None,
) -> Centroids:
    """Mini-batch k-means with the settings of HuBERT's own clustering (fairseq, learn_kmeans.py).

    Epochs over a sample of the frames, until the inertia falls no more: `_PATIENCE` epochs that each took
    less than `_LEAST_GAIN` of it away, or `_MAX_EPOCHS`. The centroids of the best epoch are kept.

    Args:
        recordings: frames `[F, width]` of each; they are drawn from as they come.
        width: of a frame.
        num_units: how many centroids.
        seed: decides the sample, the first centroids and the batches.
        watch: hears the inertia of the sample after each epoch; changes nothing.

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
        batch_size=_BATCH_FRAMES,
        max_iter=1,  # the first epoch, from the best of five starts; the rest go on from it
        n_init=5,
        max_no_improvement=None,
        reassignment_ratio=0.0,
        random_state=seed,
    )
    least, idle = np.inf, 0
    with threadpool_limits(1):  # the order of summation is part of the result
        model.fit(frames)
        kept = model.cluster_centers_
        model.set_params(compute_labels=False)  # nobody asks for those of a batch
        for epoch in range(1, _MAX_EPOCHS + 1):
            if epoch > 1:
                order = generator.permutation(len(frames))
                for start in range(0, len(frames), _BATCH_FRAMES):
                    model.partial_fit(frames[order[start : start + _BATCH_FRAMES]])
            inertia = float(-model.score(frames)) / len(frames)
            if watch is not None:
                watch(epoch, inertia)
            idle = idle + 1 if inertia > least * (1 - _LEAST_GAIN) else 0
            if inertia < least:
                least, kept = inertia, model.cluster_centers_.copy()
            if idle == _PATIENCE:
                break
    return np.ascontiguousarray(kept, dtype=np.float32)


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
