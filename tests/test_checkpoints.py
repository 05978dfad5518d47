import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import toy_training
from slam.pretrain import pretrain
from slam.run import read_json, read_run
from toy_training import KilledError, act_at_step, assert_same_run, checkpoint, kill, tamper

KILL_AND_RESUME = Path(__file__).parent / "kill_and_resume.py"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return toy_training.write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def settings_of(shards):
    return toy_training.config_of(shards)


@pytest.fixture(scope="module")
def unkilled(settings_of, tmp_path_factory):
    out = tmp_path_factory.mktemp("unkilled") / "lm"
    pretrain(settings_of, out)
    return out


def killed_at(number, config, out, monkeypatch):
    """A folder in which a training died when it asked for the data of a step."""
    with monkeypatch.context() as patch:
        act_at_step(patch, number, kill)
        with pytest.raises(KilledError):
            pretrain(config, out)
    assert read_run(out) is None
    return out


def resumed(config, out):
    pretrain(config, out)
    return out


# A run killed and resumed equals the run never killed


@pytest.mark.parametrize("number", [0, 1, 7, 10, 13, 20, 23])
def test_a_killed_run_resumed_equals_the_run_never_killed(
    *, settings_of, unkilled, tmp_path, monkeypatch, number
):
    out = killed_at(number, settings_of, tmp_path / "lm", monkeypatch)
    assert_same_run(resumed(settings_of, out), unkilled)


def test_a_run_killed_again_and_again_still_equals_the_run_never_killed(
    settings_of, unkilled, tmp_path, monkeypatch
):
    for number in (3, 11, 12, 19):
        out = killed_at(number, settings_of, tmp_path / "lm", monkeypatch)
    assert_same_run(resumed(settings_of, out), unkilled)


def test_a_run_killed_after_its_last_checkpoint_equals_the_run_never_killed(
    settings_of, unkilled, tmp_path, monkeypatch
):
    out = tmp_path / "lm"
    with monkeypatch.context() as patch:
        patch.setattr("slam.model.SpeechLM.save", lambda *_: kill())
        with pytest.raises(KilledError):
            pretrain(settings_of, out)
    assert_same_run(resumed(settings_of, out), unkilled)


def test_a_run_killed_amid_its_checkpoint_equals_the_run_never_killed(
    settings_of, unkilled, tmp_path, monkeypatch
):
    written = []

    def half_written(tensors, path):
        save_file(tensors, path)
        written.append(path)
        if len(written) == 18:  # the ninth checkpoint's second file
            path.write_bytes(path.read_bytes()[:100])
            kill()

    with monkeypatch.context() as patch:
        patch.setattr("slam.training.checkpoints.save_file", half_written)
        with pytest.raises(KilledError):
            pretrain(settings_of, tmp_path / "lm")
    assert not list((tmp_path / "lm").rglob("*.partial"))
    assert_same_run(resumed(settings_of, tmp_path / "lm"), unkilled)


def test_twenty_kills_at_random_moments_change_neither_the_log_nor_the_weights(shards, tmp_path):
    done = subprocess.run(
        [sys.executable, str(KILL_AND_RESUME), str(shards), str(tmp_path), "20", "11"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    steps = [int(step) for step in done.stdout.split()]
    assert len(steps) == 20
    assert steps == sorted(steps)  # each attempt began where the last one was killed
    assert len(set(steps)) == 20
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    counts = [read_run(tmp_path / name).results for name in ("killed", "whole")]
    assert counts[0]["steps"] == counts[1]["steps"] > steps[-1]
    assert counts[0]["tokens"] == counts[1]["tokens"]


# A damaged checkpoint


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def flip_a_byte(path):
    """In the middle, among the weights; no length changes, and it can be read as before."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def of_another_model(path):
    save_file({"another": torch.zeros(3)}, path)


def count_another_token(path):
    state = read_json(path)
    path.write_text(json.dumps(state | {"tokens": state["tokens"] + 1}))


def forget_its_files(path):
    """As one would who wants a changed file to pass."""
    path.write_text(json.dumps(read_json(path) | {"files": {}}))


def forget_its_digest(path):
    state = read_json(path)
    del state["digest"]
    path.write_text(json.dumps(state))


def say_nothing(path):
    path.write_text("null")


DAMAGES = [
    ("model.safetensors", flip_a_byte),
    ("model.safetensors", cut),
    ("model.safetensors", of_another_model),
    ("model.safetensors", os.remove),
    ("optimizer.safetensors", flip_a_byte),
    ("optimizer.safetensors", cut),
    ("optimizer.safetensors", os.remove),
    ("state.json", cut),
    ("state.json", count_another_token),
    ("state.json", forget_its_files),
    ("state.json", forget_its_digest),
    ("state.json", say_nothing),
    ("state.json", os.remove),
]


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    *, settings_of, unkilled, tmp_path, monkeypatch, capsys, file, damage
):
    out = killed_at(15, settings_of, tmp_path / "lm", monkeypatch)
    newest, before = checkpoint(out, 15), checkpoint(out, 14)
    assert sorted((out / "checkpoints").iterdir()) == [before, newest]
    damage(newest / file)
    steps = []
    for step in (13, 14, 15):
        act_at_step(monkeypatch, step, lambda step=step: steps.append(step))
    capsys.readouterr()
    resumed(settings_of, out)
    said = capsys.readouterr().err.replace("\n", "")
    assert said.count("damaged checkpoint passed over") == 1
    assert newest.name in said
    assert file in said
    assert steps == [14, 15]  # neither from the damaged one nor from the beginning
    assert_same_run(out, unkilled)


def test_when_every_checkpoint_is_damaged_all_are_named_and_the_training_begins_anew(
    *, settings_of, unkilled, tmp_path, monkeypatch, capsys
):
    out = killed_at(15, settings_of, tmp_path / "lm", monkeypatch)
    for step in (14, 15):
        flip_a_byte(checkpoint(out, step) / "model.safetensors")
    capsys.readouterr()
    resumed(settings_of, out)
    said = capsys.readouterr().err.replace("\n", "")
    assert said.count("damaged checkpoint passed over") == 2
    assert_same_run(out, unkilled)


# What is in one


def test_a_checkpoint_is_safetensors_and_json_and_nothing_pickled(settings_of, tmp_path, monkeypatch):
    out = killed_at(15, settings_of, tmp_path / "lm", monkeypatch)
    found = [path for path in (out / "checkpoints").rglob("*") if path.is_file()]
    assert len(found) >= 4
    for path in found:
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.suffix == ".safetensors"
            with safe_open(path, framework="pt") as opened:
                assert opened.keys()


def test_a_checkpoint_holds_every_random_state_so_that_a_resumed_training_draws_the_same_numbers(
    settings_of, tmp_path, monkeypatch
):
    drawn = []

    def change(task):
        def row(numbers, fill):
            drawn.append(float(torch.rand(())))
            return task.row(numbers, fill)

        return replace(task, row=row)

    tamper(monkeypatch, change)
    pretrain(settings_of, tmp_path / "whole")
    expected = drawn[:]
    assert len(set(expected)) == len(expected) > 24
    drawn.clear()
    out = killed_at(12, settings_of, tmp_path / "lm", monkeypatch)
    assert 0 < len(drawn) < len(expected)
    resumed(settings_of, out)
    assert drawn == expected


def test_no_more_than_two_checkpoints_are_kept_and_a_finished_run_keeps_none(
    settings_of, unkilled, tmp_path, monkeypatch
):
    out = killed_at(20, settings_of, tmp_path / "lm", monkeypatch)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["000000019", "000000020"]
    assert not (unkilled / "checkpoints").exists()


def test_a_finished_run_is_not_made_twice(settings_of, unkilled, monkeypatch):
    act_at_step(monkeypatch, 0, kill)
    assert pretrain(settings_of, unkilled).results["steps"] == 24
