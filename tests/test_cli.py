import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

import toy_language
from slam.cli import main
from slam.stages import STAGES
from toy_recipe import SLAM, TESTS, slam

HEAVY = ("torch", "transformers", "sklearn", "matplotlib", "scipy", "soundfile", "tensorboard")
TEXT_STEP = '[steps.text]\nstage = "synthesize"\ntexts = { stories = 3 }\ntext_only = true\n'


def said_by(capsys, *words):
    """`(exit status, standard error)` of a command in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    return caught.value.code, capsys.readouterr().err


def assert_one_line(status, said, *expected):
    assert status == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    for part in expected:
        assert str(part) in said


def imported_by(code):
    """The heavy packages that a piece of Python has imported when it ends."""
    ending = f"import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}\n{ending}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip().splitlines()[-1]


def test_importing_the_package_and_its_commands_imports_nothing_heavy():
    assert imported_by("import slam, slam.cli, slam.recipe") == "[]"


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["pretrain", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words):
    leaving = "except SystemExit as leaving: assert not leaving.code"
    assert imported_by(f"from slam.cli import main\ntry: main({words!r})\n{leaving}") == "[]"


def test_a_finished_recipe_imports_nothing_heavy_and_does_nothing(tmp_path):
    (tmp_path / "recipe.toml").write_text(TEXT_STEP)
    words = ["run", str(tmp_path / "recipe.toml"), "--folder", str(tmp_path / "work")]
    assert slam(*words).returncode == 0
    before = (tmp_path / "work" / "text" / "run.json").stat().st_mtime_ns
    assert imported_by(f"from slam.cli import main\nmain({words!r})") == "[]"
    again = slam(*words)
    assert "nothing to do" in again.stderr
    assert (tmp_path / "work" / "text" / "run.json").stat().st_mtime_ns == before


def test_help_names_every_command(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    for name in (*STAGES, "run"):
        assert name in shown


@pytest.mark.parametrize("name", list(STAGES))
def test_the_help_of_a_command_names_every_setting_with_its_line(capsys, name):
    main([name, "--help"])
    shown = capsys.readouterr().out
    for setting in STAGES[name].config.__dataclass_fields__:
        assert f"--{setting.replace('_', '-')}" in shown
    assert "--out" in shown


def test_a_command_writes_its_folder_and_prints_it(tmp_path):
    done = slam("synthesize", "--texts.stories", "2", "--text-only", "--out", tmp_path / "text")
    assert done.returncode == 0
    assert done.stdout == f"{tmp_path / 'text'}\n"
    assert len((tmp_path / "text" / "manifest.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "text" / "run.json").read_text())["stage"] == "synthesize"


def test_a_network_socket_is_refused_where_the_tests_run_the_command():
    """Else the end-to-end tests would say nothing about being offline."""
    code = "import offline, socket\noffline.disable_socket(allow_unix_socket=True)\nsocket.socket()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS, capture_output=True, text=True, check=False
    )
    assert "SocketBlockedError" in done.stderr


@pytest.fixture
def units(tmp_path):
    return toy_language.write_units(tmp_path / "units", {"one": toy_language.count(0, 1, 9)})


@pytest.fixture
def lm(tmp_path):
    return toy_language.write_lm(tmp_path / "lm")


def test_a_missing_file_is_one_line(capsys, tmp_path):
    assert_one_line(*said_by(capsys, "run", tmp_path / "none.toml"), tmp_path / "none.toml", "no such recipe")
    for words in (
        ["encode", "--audio", tmp_path / "none"],
        ["pack", "--train", tmp_path / "none"],
        ["pretrain", "--shards", tmp_path / "none", "--budget", "1h"],
        ["synthesize", "--text", tmp_path / "none"],
        ["report", "--runs.step", tmp_path / "none"],
    ):
        out = tmp_path / words[0]
        assert_one_line(*said_by(capsys, *words, "--out", out), tmp_path / "none", "no such")
        assert not out.exists()


def test_a_folder_of_something_else_is_one_line(capsys, tmp_path, units, lm):
    for words in (
        ["pretrain", "--shards", units, "--budget", "1h"],
        ["dpo", "--model", units, "--pairs", units, "--budget", "1h"],
        ["evaluate", "--models.one", units, "--benchmarks", units],
        ["generate", "--models.one", lm, "--prompts", lm],
        ["report", "--runs.step", units],
        ["encode", "--audio", lm],
    ):
        out = tmp_path / "out" / words[0]
        assert_one_line(*said_by(capsys, *words, "--out", out))
        assert not (out / "run.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretain"], "pretain"),
        (["pretrain", "--shard", "x", "--budget", "1h", "--out", "o"], "--shard"),
        (["pretrain", "--budget", "1h", "--out", "o"], "--shards"),
        (["pretrain", "--shards", ".", "--out", "o"], "--budget"),
        (["pretrain", "--shards", ".", "--budget", "24:00", "--out", "o"], "write a number with its unit"),
        (["pretrain", "--shards", ".", "--budget", "1h", "--seed", "five", "--out", "o"], "five"),
        (["pretrain", "--shards", ".", "--budget", "1h", "--initialization", "warm", "--out", "o"], "warm"),
        (["pretrain", "--shards", ".", "--budget", "1h"], "--out"),
        (["run"], "recipe"),
    ],
)
def test_an_unknown_or_missing_word_is_one_line(capsys, words, said):
    assert_one_line(*said_by(capsys, *words), said)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (TEXT_STEP + "sed = 3\n", "unknown key 'sed'; did you mean 'seed'?"),
        ('[steps.a]\nstage = "pack"\ntrain = ["b"]\n[steps.b]\nstage = "pack"\ntrain = ["a"]', "comes later"),
        ("[[[", "not TOML"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_makes_nothing(capsys, tmp_path, recipe, said):
    (tmp_path / "recipe.toml").write_text(recipe)
    words = ["run", tmp_path / "recipe.toml", "--folder", tmp_path / "work"]
    assert_one_line(*said_by(capsys, *words), tmp_path / "recipe.toml", said)
    assert not (tmp_path / "work").exists()


def test_an_empty_corpus_is_one_line(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    assert_one_line(*said_by(capsys, "encode", "--audio", tmp_path / "empty", "--out", out), "no recordings")
    (tmp_path / "empty.txt").write_text("\n\n")
    words = ["synthesize", "--text", tmp_path / "empty.txt", "--text-only", "--out", tmp_path / "text"]
    assert_one_line(*said_by(capsys, *words), tmp_path / "empty.txt")


def test_a_tokenizer_that_does_not_match_the_model_is_one_line(capsys, tmp_path, lm):
    pairs = toy_language.write_pairs(tmp_path / "pairs", toy_language.counting_pairs(5), fingerprint="f" * 16)
    for words in (
        ["evaluate", "--models.one", lm, "--benchmarks", pairs],
        ["dpo", "--model", lm, "--pairs", pairs, "--budget", "10 steps"],
    ):
        status, said = said_by(capsys, *words, "--out", tmp_path / words[0])
        assert_one_line(status, said, pairs, "encode with the model's tokenizer")


def test_a_folder_of_another_run_is_one_line_and_stays(capsys, tmp_path):
    words = ["synthesize", "--texts.stories", "2", "--text-only", "--out", tmp_path / "text"]
    main([str(word) for word in words])
    before = (tmp_path / "text" / "run.json").read_bytes()
    assert_one_line(*said_by(capsys, *words, "--seed", "4"), "holds a run with other settings")
    assert (tmp_path / "text" / "run.json").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    words = ["synthesize", "--texts.stories", "2", "--text-only", "--out", tmp_path / "file" / "text"]
    assert_one_line(*said_by(capsys, *words), tmp_path / "file")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/model"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["named", "nameless", "safetensors"],
)
def test_a_full_disk_is_one_line(capsys, tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    shards = toy_language.write_shards(
        tmp_path / "shards", toy_language.utterances(9), toy_language.utterances(2, 1)
    )
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    words = [
        "pretrain",
        "--shards",
        shards,
        "--budget",
        "10 steps",
        "--batch-tokens",
        "50",
        "--out",
        tmp_path / "lm",
    ]
    status, said = said_by(capsys, *words)
    # on a slow machine the training has told of itself before
    assert_one_line(status, said.splitlines()[-1] + "\n", "no space left")
    assert not (tmp_path / "lm" / "run.json").exists()


def test_a_disk_that_really_is_full_is_one_line_and_leaves_nothing_half_written(tmp_path):
    """A file system of 300 kB, in a mount namespace of its own."""
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=300k none {tmp_path}/disk"
    (tmp_path / "disk").mkdir()
    if (
        shutil.which("unshare") is None
        or subprocess.run([*inside, mount], check=False, capture_output=True).returncode
    ):
        pytest.skip("no small file system can be mounted here")
    shards = toy_language.write_shards(
        tmp_path / "shards", toy_language.utterances(9), toy_language.utterances(2, 1)
    )
    words = ["pretrain", "--shards", str(shards), "--budget", "10 steps", "--batch-tokens", "50"]
    out = tmp_path / "disk" / "lm"
    script = f'{mount} && "$@"; echo status $?; find {out} -type f'
    done = subprocess.run(
        [*inside, script, "sh", *SLAM, *words, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert "status 2" in done.stdout
    # on a slow machine the training has told of itself before
    assert_one_line(2, done.stderr.splitlines()[-1] + "\n", "no space left")
    left = {Path(line).name for line in done.stdout.splitlines() if line.startswith(str(out))}
    assert "run.json" not in left
    assert not {name for name in left if name.endswith((".partial", ".safetensors"))}


def test_ctrl_c_is_status_130_and_one_line(capsys, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("slam.text_plan.write_texts", stop)
    words = ["synthesize", "--texts.stories", "2", "--text-only", "--out", tmp_path / "text"]
    status, said = said_by(capsys, *words)
    assert status == 130
    assert said.strip() == "stopped; the same command goes on from here"
    monkeypatch.undo()
    main([str(word) for word in words])
    assert (tmp_path / "text" / "run.json").exists()


def test_models_named_by_their_folders_alone_are_called_after_them(tmp_path, capsys):
    toy_language.write_pairs(tmp_path / "pairs", toy_language.counting_pairs(4))
    for seed, name in enumerate(("one.v2", "two")):
        toy_language.write_lm(tmp_path / name, toy_language.new_toy_lm(seed))
    out = tmp_path / "scores"
    models = [str(tmp_path / name) for name in ("one.v2", "two")]
    main(["evaluate", *models, "--benchmarks", str(tmp_path / "pairs"), "--out", str(out)])
    rows = json.loads((out / "results.json").read_text())
    assert list(dict.fromkeys(row["model"] for row in rows)) == ["one-v2", "two"]
    assert capsys.readouterr().out.strip().endswith(str(out))


def test_two_models_of_one_folder_name_are_refused(tmp_path, capsys):
    for name in ("a", "b"):
        toy_language.write_lm(tmp_path / name / "lm")
    status, said = said_by(capsys, "evaluate", tmp_path / "a" / "lm", tmp_path / "b" / "lm")
    assert_one_line(status, said, "two models would be called 'lm'", "--models.NAME FOLDER")
