import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from slam.errors import InputError
from slam.tensor_files import read_tensors

TENSORS = {"one": torch.arange(6.0).reshape(2, 3), "other": torch.tensor([7, -1])}


class Harm:
    """What runs when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def written(folder, suffix):
    path = folder / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(TENSORS, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_table_of_tensors_is_what_was_written(suffix, tmp_path):
    found = read_tensors(written(tmp_path, suffix))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_a_tensor_alone_is_one(tmp_path):
    torch.save(TENSORS["one"], tmp_path / "voice.pt")
    assert torch.equal(read_tensors(tmp_path / "voice.pt"), TENSORS["one"])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("place", range(0, 1200, 100))
def test_a_file_cut_short_is_answered_in_one_line(suffix, place, tmp_path):
    path = written(tmp_path, suffix)
    content = path.read_bytes()
    path.write_bytes(content[: place * len(content) // 1200])
    with pytest.raises(
        InputError, match=rf"weights{suffix}: (cannot be read, it is damaged|no PyTorch)"
    ) as told:
        read_tensors(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_is_not_there_is_named(suffix, tmp_path):
    with pytest.raises(InputError, match=rf"gone{suffix}: cannot be read.*\("):
        read_tensors(tmp_path / f"gone{suffix}")


@pytest.mark.parametrize("form", ["zip", "old", "plain pickle"])
def test_what_would_run_is_refused_and_not_run(form, tmp_path):
    path, mark = tmp_path / "weights.pt", tmp_path / "harmed"
    content = {"one": TENSORS["one"], "more": Harm(mark)}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError, match=r"could run anything; it was not run$"):
        read_tensors(path)
    assert not mark.exists()
    if form == "plain pickle":
        pickle.loads(path.read_bytes())  # noqa: S301 - our own
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()  # the trap is one
