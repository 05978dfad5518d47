"""`slam run --check`: the whole recipe is told, what is missing is named, and nothing is made."""

import tomllib
from pathlib import Path

import pytest

import slam.check
from conftest import write_recordings
from slam.bases import base_config, known_bases, num_parameters, outline
from slam.check import Check, check_recipe, lines, refuse
from slam.cli import main
from slam.errors import ConfigError, SlamError
from slam.recipe import load_recipe
from slam.run import read_json_lines
from slam.runner import run_recipe

RECIPES = Path(__file__).parent.parent / "recipes"
SMALL = """
folder = "work"

[steps.units]
stage = "encode"
audio = "speech"
num_units = 20
num_workers = 1

[steps.tokens]
stage = "pack"
train = ["units"]
validation_share = 0.3

[steps.lm]
stage = "pretrain"
shards = "tokens"
budget = "10 steps"
batch_tokens = 64
architecture = { hidden_size = 16, intermediate_size = 32, num_layers = 2, num_heads = 2 }
"""


def checked(path: Path, *overrides: str) -> Check:
    return check_recipe(load_recipe(path, overrides=overrides, missing_allowed=True))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path / "small.toml"


@pytest.mark.parametrize(
    ("name", "hours", "tokens"),
    # the paper's: 24 h and 1.4 B tokens (Table 3), 48 h and 16.7 B; ours: an hour, 0.35 to 0.4 of 1.4 B
    [("slam", 24, 1.4e9), ("slam-scaled", 47.7, 15.9e9), ("slam-hour", 1, 0.5e9)],
)
def test_the_recipes_for_a_gpu_are_told_whole_without_anything_of_them_here(
    name: str, hours: float, tokens: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = checked(RECIPES / f"{name}.toml")
    content = tomllib.loads((RECIPES / f"{name}.toml").read_text())
    assert [row.step.name for row in found.rows] == list(content["steps"])
    assert found.seconds == pytest.approx(hours * 3600, rel=0.01)
    assert found.tokens == pytest.approx(tokens, rel=0.05)
    for path, about in content["data"].items():
        (line,) = [line for line in found.missing if line.startswith(f"{path}: ")]
        assert about["get"] in line
    (row,) = [row for row in found.rows if row.step.name == "twist"]
    assert "358 M parameters" in row.forecast.says
    assert 5.7e9 < row.forecast.memory < 60e9  # 16 bytes a parameter at least
    assert not list(tmp_path.iterdir())


def test_a_checked_recipe_prints_every_step_and_ends_with_the_first_thing_missing(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", str(small), "--check"])
    assert end.value.code == 2
    said = capsys.readouterr()
    assert all(name in said.out for name in ("units", "tokens", "lm", "pretrain"))
    assert said.err.count("\n") == 1
    assert "no step and no path is called 'speech'" in said.err
    assert not (small.parent / "work").exists()


def test_a_recipe_that_could_run_is_told_so_and_then_runs(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recordings(small.parent / "speech", 10)
    main(["run", str(small), "--check"])
    assert "missing" not in capsys.readouterr().out
    assert not (small.parent / "work").exists()
    found = checked(small)
    assert [row.state for row in found.rows] == ["new", "new", "new"]
    rows = read_json_lines(small.parent / "speech" / "manifest.jsonl")
    seconds = sum(row["seconds"] for row in rows)
    assert f"units of {seconds / 3600:.3g} h" == found.rows[0].forecast.says
    run_recipe(load_recipe(small))
    again = checked(small, 'lm.budget="11 steps"')
    assert [row.state for row in again.rows] == ["done", "done", "other"]
    assert again.rows[2].forecast.trained_tokens == 11 * 64


def test_a_misspelt_step_is_still_given_its_right_name(small: Path) -> None:
    (line,) = checked(small, 'units.audio="."', 'lm.shards="tokns"').missing
    assert line == "no step and no path is called 'tokns'; did you mean 'tokens'?"


def test_a_row_that_does_not_fit_the_card_is_missing_memory(small: Path) -> None:
    text = small.read_text() + '\n[machine]\ngpu = "a5000"\n'
    small.write_text(text)
    big = ('units.audio="."', 'lm.hub_base="HuggingFaceTB/SmolLM2-135M"', "lm.batch_tokens=131072")
    fits, not_fits = (checked(small, *big, f"lm.micro_batch_tokens={size}") for size in (512, 65_536))
    assert not [line for line in fits.missing if "GiB" in line]
    (line,) = [line for line in not_fits.missing if "GiB" in line]
    assert line.startswith("step 'lm': micro_batch_tokens = 65536: takes about")
    assert "RTX A5000 has 24; lower it" in line


def test_a_base_that_is_nowhere_and_a_context_too_long_for_it_are_named(small: Path) -> None:
    lost = checked(small, 'units.audio="."', 'lm.hub_base="nobody/nothing"').missing
    assert (
        "nobody/nothing: no folder of a causal LM, not in the hub's cache, and no base whose sizes" in lost[0]
    )
    long = checked(small, 'units.audio="."', 'lm.hub_base="facebook/opt-125m"', "lm.context=4096").missing
    assert long == ("step 'lm': context = 4096: the base allows 2048 tokens",)


def test_a_disk_that_is_too_small_is_named(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recordings(small.parent / "speech", 3)

    class Full:
        free = 1000

    monkeypatch.setattr(slam.check.shutil, "disk_usage", lambda _: Full)
    (line,) = checked(small).missing
    assert line.startswith("work: about 0 GB of disk")


def test_a_model_of_the_hub_is_missing_where_the_hub_is_shut(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ('units.audio="."', 'lm.hub_base="Qwen/Qwen2.5-0.5B"')
    found = checked(small, *overrides)
    assert found.downloads == ("Qwen/Qwen2.5-0.5B: fetched from the hub when its step begins",)
    assert not found.missing
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (line,) = checked(small, *overrides).missing
    assert "Qwen/Qwen2.5-0.5B: not in the hub's cache, and HF_HUB_OFFLINE is set" in line


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('[machine]\ngpu = "H20O"', "no GPU called 'H20O' is known; did you mean 'H200'?"),
        ('[machine]\ngqu = "H200"', "machine: unknown key 'gqu'; did you mean 'gpu'?"),
        ('[data."x"]\nhuors = 3', "data: unknown key 'huors'; did you mean 'hours'?"),
        ('[data."x"]\nhours = "3"', "data: Expected `float | null`, got `str`"),
    ],
)
def test_what_a_recipe_says_beside_its_steps_is_checked(small: Path, table: str, said: str) -> None:
    small.write_text(small.read_text() + "\n" + table + "\n")
    with pytest.raises(ConfigError) as error:
        checked(small)
    assert said in str(error.value)


def test_known_bases_have_the_sizes_that_the_paper_gives() -> None:
    for name, known in known_bases().items():
        assert num_parameters(outline(base_config(name), 502)) == known["parameters"], name


def test_nothing_missing_is_no_error(small: Path) -> None:
    write_recordings(small.parent / "speech", 3)
    found = checked(small)
    refuse(found, small)
    assert any("of disk" in line for line in lines(found))
    with pytest.raises(SlamError, match=r"small\.toml: cannot run yet"):
        refuse(checked(small, 'units.audio="nowhere"'), small)
