import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slam.errors import MissingExtraError
from slam.normalization import normalizer

# stands in for NVIDIA's package: the same names, and grammars that take note of when they are compiled
NEMO = """
import pathlib
class Normalizer:
    def __init__(self, input_case, lang, cache_dir):
        assert (input_case, lang) == ("cased", "en")
        far = pathlib.Path(cache_dir) / "grammar.far"
        if not far.is_file():
            print("compiled")
            far.write_text("far")
    def split_text_into_sentences(self, text):
        return text.replace(". ", ".|").split("|")
    def normalize(self, text, punct_post_process):
        assert punct_post_process
        assert "." not in text[:-1]
        return text.replace("3", "three") + " "
"""
CALL = """
from slam.normalization import normalizer
print(normalizer("spoken")("He had\\n3 dogs. She said \\u201c3\\u201d."))
"""


def test_what_a_wrong_encoding_left_is_put_right() -> None:
    repaired = normalizer("unicode")
    assert repaired("The cafÃ© was open.") == "The café was open."
    assert repaired("Tom &amp; Ann \u201csaid\u201d\n\t so") == 'Tom & Ann "said" so'
    assert repaired("\ufb01nd the cafe\u0301") == "find the caf\u00e9"
    assert normalizer("none")(" Tom &amp;\n Ann ") == "Tom &amp; Ann"


@given(st.text(st.sampled_from("abc XYZ.,!?'-\n\t09"), max_size=40))
def test_plain_text_is_left_but_for_white_space(text: str) -> None:
    for name in ("none", "unicode"):
        assert normalizer(name)(text) == " ".join(text.split())


def call(folder: Path) -> list[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(folder), *sys.path)),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    command = [sys.executable, "-W", "error", "-c", CALL]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout.splitlines()


def test_numbers_are_written_out_sentence_by_sentence_by_grammars_that_are_compiled_once(
    tmp_path: Path,
) -> None:
    package = tmp_path / "nemo_text_processing" / "text_normalization"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "normalize.py").write_text(textwrap.dedent(NEMO))
    for name in ("nemo_text_processing-1.0", "pynini-2.0"):
        (tmp_path / f"{name}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name.partition('-')[0]}\nVersion: 1.0\n"
        (tmp_path / f"{name}.dist-info" / "METADATA").write_text(metadata)
    said = 'He had three dogs. She said "three".'
    assert call(tmp_path) == ["compiled", said]
    assert call(tmp_path) == [said]
    assert [path.name for path in (tmp_path / "cache" / "slam").iterdir()] == ["nemo-text-1.0-1.0"]


def test_without_the_grammars_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    normalizer.cache_clear()
    monkeypatch.setitem(sys.modules, "nemo_text_processing", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'slam\[normalize\]'"):
        normalizer("spoken")


def test_the_grammars_read_numbers_dates_and_abbreviations(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nemo_text_processing", reason="slam[normalize] is not installed")
    spoken = normalizer("spoken")
    assert spoken("She had 12 dogs.") == "She had twelve dogs."
    assert spoken("Dr. Li came on 3/4/2021. He paid $3.50 for it.") == (
        "doctor Li came on march fourth twenty twenty one. He paid three dollars fifty cents for it."
    )
    assert not capfd.readouterr().err
