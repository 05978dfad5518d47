import builtins
import bz2
import gzip
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans, MiniBatchKMeans

from slam.errors import InputError
from slam.tokenizers.kmeans_pickle import read_kmeans_pickle

FRAMES = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
RAN = []  # what a payload would have left behind


def fitted(kind: type = MiniBatchKMeans, dtype: str = "f4", seed: object = 0) -> MiniBatchKMeans:
    model = kind(5, n_init=1, random_state=seed).fit(FRAMES.astype(dtype))
    # scikit-learn before 0.24 kept the generator too
    model.random_state_ = np.random.RandomState(3)
    return model


def stored(path: Path, model: object, how: str) -> Path:
    kind, _, option = how.partition(" ")
    if kind == "joblib":
        joblib.dump(model, path, protocol=int(option or 4))
    elif kind == "compressed":
        joblib.dump(model, path, compress=(option, 3))
    else:
        path.write_bytes(pickle.dumps(model, protocol=int(option)))
    return path


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("kind", [KMeans, MiniBatchKMeans])
@pytest.mark.parametrize(
    "how",
    ["joblib", "joblib 2", "joblib 3", "joblib 5", "compressed zlib", "compressed gzip"]
    + [f"pickle {protocol}" for protocol in (2, 3, 4, 5)],
)
def test_centroids_are_read_as_unpickling_would_give_them(
    how: str, kind: type, dtype: str, tmp_path: Path
) -> None:
    model = fitted(kind, dtype, np.random.RandomState(1))
    model.cluster_centers_ = np.asfortranarray(model.cluster_centers_)
    centroids = read_kmeans_pickle(stored(tmp_path / "km.bin", model, how))
    assert centroids.dtype == np.float32
    assert centroids.flags.c_contiguous
    np.testing.assert_array_equal(centroids, model.cluster_centers_.astype(np.float32))


@pytest.mark.parametrize(
    "renamed",
    [
        {b"numpy._core.": b"numpy.core."},
        {b"sklearn.cluster._kmeans": b"sklearn.cluster.k_means_"},
        {b"sklearn.cluster._kmeans": b"sklearn.cluster._k_means"},
        {b"joblib.numpy_pickle": b"sklearn.externals.joblib.numpy_pickle"},
    ],
)
@pytest.mark.parametrize("how", ["joblib 2", "pickle 2"])
def test_older_names_of_the_modules_are_known(how: str, renamed: dict[bytes, bytes], tmp_path: Path) -> None:
    path = stored(tmp_path / "km.bin", fitted(), how)
    content = path.read_bytes()
    for new, old in renamed.items():
        assert new in content or (how, new[:5]) in {("joblib 2", b"numpy"), ("pickle 2", b"jobli")}
        content = content.replace(new, old)  # in protocol 2 a name ends at its line, so lengths may change
    # joblib's arrays need no more than their order: the padding before them is told, not computed
    path.write_bytes(content)
    np.testing.assert_array_equal(read_kmeans_pickle(path), fitted().cluster_centers_)


def test_wrappers_without_padding_are_read(tmp_path: Path) -> None:
    # joblib before 1.1 wrote no numpy_array_alignment_bytes, and the array at once
    key = b"X\x1b\x00\x00\x00numpy_array_alignment_bytes"
    array = b"\x80\x02cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}("
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4K\x00K\x01\x87R"
    dtype += b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"X\x08\x00\x00\x00subclasscnumpy\nndarray\nX\x05\x00\x00\x00shapeK\x05K\x07\x86"
    array += b"X\x05\x00\x00\x00orderX\x01\x00\x00\x00CX\x05\x00\x00\x00dtype" + dtype
    centers = np.ascontiguousarray(FRAMES[:5])
    for middle in (b"", key + b"N"):
        (tmp_path / "km").write_bytes(array + middle + b"ub" + centers.tobytes() + b".")
        np.testing.assert_array_equal(read_kmeans_pickle(tmp_path / "km"), centers)
    assert joblib.load(tmp_path / "km").tolist() == centers.tolist()


def test_a_plain_array_of_either_byte_order_is_centroids(tmp_path: Path) -> None:
    for dtype in ("<f4", ">f4", "<f8"):
        for how in ("joblib", "pickle 4", "pickle 5"):
            path = stored(tmp_path / "km.bin", FRAMES[:9].astype(dtype), how)
            np.testing.assert_array_equal(read_kmeans_pickle(path), FRAMES[:9])


class Payload:
    """Pickled, it is a call of anything."""

    def __init__(self, function: Callable[..., object], *arguments: object, state: object = None) -> None:
        self._call = (function, arguments, state)

    def __reduce__(self) -> tuple[object, ...]:
        return self._call


def leave_a_mark() -> None:
    RAN.append("run")


MALICIOUS = {
    "os.system": lambda mark: Payload(os.system, f"touch {mark}"),
    "builtins.eval": lambda mark: Payload(builtins.eval, f"open({str(mark)!r}, 'w')"),
    "builtins.getattr": lambda _: Payload(getattr, Payload(__import__, "os"), "system"),
    "test_kmeans_pickle.leave_a_mark": lambda _: Payload(leave_a_mark),
    "leave_a_mark": lambda _: {"state": Payload(np.dtype, "f4", state=Payload(leave_a_mark))},
    "numpy.load": lambda mark: Payload(np.load, str(mark)),
    "pickle.loads": lambda _: Payload(pickle.loads, pickle.dumps(Payload(leave_a_mark))),
}


@pytest.mark.parametrize("where", ["alone", "inside"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", MALICIOUS)
def test_a_payload_is_named_and_never_run(name: str, protocol: int, where: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "km.bin"
    payload = MALICIOUS[name](mark)
    if where == "inside":
        model = fitted()
        model.labels_ = payload
        payload = model
    joblib.dump(payload, path, protocol=protocol)
    with pytest.raises(InputError, match=rf"asks for \w+\.{name.rpartition('.')[2]}") as caught:
        read_kmeans_pickle(path)
    assert "\n" not in str(caught.value)
    assert "nothing of it was run" in str(caught.value)
    assert not mark.exists()
    assert not RAN


HOSTILE = {
    "a dotted name hidden in an allowed module": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93.",
    "a name that is no text": b"\x80\x04K\x01\x8c\x07ndarray\x93.",
    "a name of many lines": b"\x80\x04\x8c\x03o\ns\x8c\x06sy\nstm\x93.",
    "an old instance": b"\x80\x02(X\x02\x00\x00\x00idios\nsystem\n.",
    "an object by mark": b"\x80\x02(cos\nsystem\nX\x02\x00\x00\x00ido.",
    "a persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "an extension": b"\x80\x02\x82\x01.",
    "a call of what is no name": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "a call of a made thing": b"\x80\x02cnumpy\ndtype\n)R)R.",
    "a call with no tuple": b"\x80\x02cnumpy\ndtype\nK\x01R.",
    "the state of a name": b"\x80\x02cnumpy\ndtype\n}b.",
    "the state of a dict": b"\x80\x02}}b.",
    "a key that takes for ever": b"\x80\x02})" + b"\x86".join([b"q\x00h\x00"] * 1) + b"\x86K\x01s.",
    "an array of objects": b"\x80\x02cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}(X\x05\x00\x00\x00shape)"
    b"X\x05\x00\x00\x00dtypecnumpy\ndtype\nX\x02\x00\x00\x00O8\x85RX\x05\x00\x00\x00orderX\x01\x00\x00\x00Cub.",
    "an array too large": b"\x80\x02cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}(X\x05\x00\x00\x00shape"
    b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"
    b"X\x05\x00\x00\x00dtypecnumpy\ndtype\nX\x02\x00\x00\x00f8\x85RX\x05\x00\x00\x00orderX\x01\x00\x00\x00Cub.",
    "an array of negative size": b"\x80\x02cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}("
    b"X\x05\x00\x00\x00shape"
    b"J\xff\xff\xff\xff\x85"
    b"X\x05\x00\x00\x00dtypecnumpy\ndtype\nX\x02\x00\x00\x00f8\x85RX\x05\x00\x00\x00orderX\x01\x00\x00\x00Cub.",
    "bytes of a huge length": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc.",
    "text of a huge length": b"\x80\x04\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"abc.",
    "a huge number": b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
    "a huge memo": b"\x80\x02K\x01r\xff\xff\xff\xff.",
    "a memo that is not there": b"\x80\x02h\x07.",
    "an empty stack": b"\x80\x02.",
    "items without a mark": b"\x80\x02]K\x01e.",
    "items for no list": b"\x80\x02K\x01K\x01a.",
    "items for no dict": b"\x80\x02K\x01K\x01K\x01s.",
    "half an item": b"\x80\x02}(K\x01u.",
    "no end": b"\x80\x02K\x01",
    "an unknown opcode": b"\x80\x02\xff.",
    "an empty file": b"",
    "text": b"hello",
    "protocol 0": pickle.dumps([1.0], protocol=0),
    "bzip2": bz2.compress(b"\x80\x02K\x01."),
    "cut zlib": zlib.compress(pickle.dumps(FRAMES))[:-9],
    "cut gzip": gzip.compress(pickle.dumps(FRAMES))[:50],
    "a number": pickle.dumps(3),
    "a list": pickle.dumps([[1.0, 2.0], [3.0, 4.0]]),
    "a backslash": b"\x80\x02c\\k\nKMeans\n.",
    "a class": b"\x80\x02csklearn.cluster._kmeans\nKMeans\n.",
    "nothing fitted": pickle.dumps(KMeans(3)),
    "a made dtype": pickle.dumps(np.dtype("f4")),
    "one dimension": pickle.dumps(FRAMES[0]),
    "integers": pickle.dumps(np.ones((3, 3), np.int64)),
    "one centroid": pickle.dumps(FRAMES[:1]),
    "none": pickle.dumps(FRAMES[:0]),
    "no width": pickle.dumps(np.zeros((3, 0), np.float32)),
    "not finite": pickle.dumps(np.full((3, 3), np.nan)),
    "too large for fp32": pickle.dumps(np.full((3, 3), 1e300)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_kmeans_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "km.bin"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(InputError, match=r"km\.bin: ") as caught:
        read_kmeans_pickle(path)
    assert "\n" not in str(caught.value)


def test_tuples_of_tuples_cost_nothing(tmp_path: Path) -> None:
    # each holds the one before it twice: to hash, print or compare the last takes 2¹⁰⁰ steps
    nested = b"\x80\x02)" + b"q\x00h\x00\x86" * 100 + b"q\x00"
    it, text = b"h\x00", b"X\x01\x00\x00\x00a"
    array = b"cnumpy\nndarray\n"
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R"
    buffer = b"cnumpy._core.numeric\n_frombuffer\n("
    for tail in (
        b"",
        b"}" + it + b"K\x01s",
        text + it + b"\x93",
        it + text + b"\x93",
        b"cnumpy\ndtype\n" + it + b"R",
        buffer + text + dtype + it + b"X\x01\x00\x00\x00CtR",
        buffer + text + dtype + b"K\x01\x85" + it + b"tR",
        buffer + text + b"cnumpy\ndtype\n" + it + b"\x85R" + b"K\x01\x85" + text + b"tR",
        buffer + text + dtype + b"(K\x03" + it + b"tb" + b"K\x01\x85" + text + b"tR",
        b"c_codecs\nencode\n(" + text + it + b"tR",
        b"c_codecs\nencode\n(" + it + text + b"tR",
        array + it + b"R" + it + b"b",
        b"csklearn.cluster._kmeans\nKMeans\n)R}X\x10\x00\x00\x00cluster_centers_" + it + b"sb",
    ):
        (tmp_path / "km").write_bytes(nested + tail + b".")
        with pytest.raises(InputError):
            read_kmeans_pickle(tmp_path / "km")


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slam.tokenizers.kmeans_pickle._MAX_BYTES", 10_000)
    (tmp_path / "km").write_bytes(zlib.compress(bytes(1_000_000)))
    with pytest.raises(InputError, match="cut short or too large"):
        read_kmeans_pickle(tmp_path / "km")
    (tmp_path / "km").write_bytes(b"\x80" * 10_001)
    with pytest.raises(InputError, match="too large for a k-means"):
        read_kmeans_pickle(tmp_path / "km")


@pytest.mark.parametrize("how", ["joblib", "pickle 5", "compressed zlib"])
def test_a_file_cut_anywhere_is_refused(how: str, tmp_path: Path) -> None:
    path = stored(tmp_path / "km.bin", fitted(), how)
    content = path.read_bytes()
    for end in range(0, len(content), 37):
        path.write_bytes(content[:end])
        with pytest.raises(InputError, match=r"km\.bin: "):
            read_kmeans_pickle(path)


@settings(max_examples=300, deadline=None, database=None)
@given(data=st.data())
def test_spoilt_bytes_give_centroids_or_one_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("spoilt") / "km.bin"
    content = bytearray(pickle.dumps(fitted_once(), protocol=data.draw(st.sampled_from([2, 4]))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        centroids = read_kmeans_pickle(path)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert centroids.ndim == 2
        assert np.isfinite(centroids).all()


def fitted_once(made: list[MiniBatchKMeans] = []) -> MiniBatchKMeans:  # noqa: B006 - fitted once
    if not made:
        model = fitted()
        del model.labels_, model.random_state_
        made.append(model)
    return made[0]
