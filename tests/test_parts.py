import sys
from pathlib import Path

import pytest

from slam.errors import ConfigError, MissingExtraError
from slam.parts import resolve

BUILT_IN = {
    "logmel-kmeans": "slam.tokenizers.logmel_kmeans:LogMelKMeans",
    "gone": "slam_no_such_package:Part",
}


def test_a_built_in_part_is_found_by_its_short_name() -> None:
    from slam.tokenizers.logmel_kmeans import LogMelKMeans

    assert resolve("tokenizer", "logmel-kmeans", BUILT_IN) is LogMelKMeans


def test_a_part_of_the_users_own_is_found_by_module_and_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_part.py").write_text("class Mine:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = resolve("vocoder", "my_own_part:Mine", BUILT_IN)
    assert found is sys.modules.pop("my_own_part").Mine


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match="no tokenizer is called 'logmel-kmean'; did you mean 'logmel-kmeans'"
    ):
        resolve("tokenizer", "logmel-kmean", BUILT_IN)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="known: gone, logmel-kmeans"):
        resolve("tokenizer", "zzz", BUILT_IN)


def test_a_part_whose_package_is_missing_names_the_package() -> None:
    for name in ("gone", "slam_no_such_package:Part"):
        with pytest.raises(MissingExtraError, match="needs the package 'slam_no_such_package'"):
            resolve("tokenizer", name, BUILT_IN)


@pytest.mark.parametrize("name", ["slam.units:NoSuchThing", ":", "slam.units:a b"])
def test_a_name_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        resolve("tokenizer", name, BUILT_IN)
