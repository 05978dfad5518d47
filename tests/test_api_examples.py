"""The examples in the docstrings of the public API run, with a tiny model, as a user's program would."""

import doctest
import inspect
import re
from pathlib import Path
from typing import get_type_hints

import pytest

import slam
import toy_language
from conftest import sound
from slam.audio import write_audio

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("api")
    toy_language.write_lm(root / "lm", toy_language.new_toy_lm(context=256))
    toy_language.write_units(root / "units", {"said": [1, 2, 3]})
    return root


@pytest.fixture(scope="module")
def names(folder):
    """What the examples may take for granted."""
    slm = slam.load(folder / "lm", tokenizer=folder / "units")
    return {"slam": slam, "slm": slm, "audio": sound(1.0, 3), "folder": folder, "Path": Path}


def public():
    """Every function and method that the package exports, by its name."""
    for name in slam.__all__:
        thing = getattr(slam, name)
        if inspect.isfunction(thing):
            yield name, thing
        elif thing.__module__ in {"slam.spoken_lm", "slam.streaming"}:
            for method, found in vars(thing).items():
                if inspect.isfunction(found) and not method.startswith("_"):
                    yield f"{name}.{method}", found


@pytest.mark.parametrize("name", [name for name, _ in public()])
def test_every_public_function_is_typed_and_its_example_runs(names, name):
    function = dict(public())[name]
    hints = get_type_hints(function, vars(inspect.getmodule(function)))
    arguments = [one for one in inspect.signature(function).parameters if one != "self"]
    assert set(hints) == {*arguments, "return"}
    text = inspect.getdoc(function)
    for argument in arguments:
        assert re.search(rf"^ +{argument}: ", text, flags=re.MULTILINE), f"{argument} is not explained"
    assert "Raises:" in text
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, globs=dict(names))
    assert example.examples, "has no example"
    found = doctest.DocTestRunner().run(example)
    assert not found.failed


def test_the_programs_of_the_page_run(folder, tmp_path, monkeypatch, capsys):
    """The five lines and the stream, word for word, in a folder where their model lies."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "twist").symlink_to(folder / "lm")
    (tmp_path / "work" / "units").symlink_to(folder / "units")
    write_audio(tmp_path / "prompt.wav", sound(1.0, 3))
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), flags=re.DOTALL)
    assert len(programs) == 2
    found = {}
    for program in programs:
        exec(program, found)  # noqa: S102 - our own page
    assert isinstance(found["continuation"], slam.Audio)
    assert found["score"] < 0
    assert found["stream"].units
    assert "units so far" in capsys.readouterr().out
