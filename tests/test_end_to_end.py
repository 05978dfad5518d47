import subprocess
import time

from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from slam.recipe import load_recipe
from slam.run import read_json, read_json_lines, read_run
from toy_recipe import ENVIRONMENT, RECIPE, SLAM, slam, toy_run  # noqa: F401 - a fixture

MODELS = ("random", "twist", "twist-dpo")
BENCHMARKS = ("swuggy", "sblimp", "storycloze", "topic-storycloze")


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_one_command_leaves_scores_a_page_and_sound(toy_run):  # noqa: F811
    rows = [row for row in read_json(toy_run / "results.json") if row["metric"] == "accuracy"]
    assert [(row["model"], row["benchmark"]) for row in rows] == [(m, b) for m in MODELS for b in BENCHMARKS]
    assert {row["n"] for row in rows} == {6}
    assert (toy_run / "report.html").read_text().startswith("<!doctype html>")
    assert len(list((toy_run / "continuations").glob("*.wav"))) == 6


def test_every_step_tells_what_made_it(toy_run):  # noqa: F811
    for step in load_recipe(RECIPE, folder=toy_run).steps:
        run = read_run(step.out)
        assert run is not None, step.name
        assert run.stage == step.stage
        assert run.peak_memory_bytes > 1_000_000
        assert not (step.out / "started.json").exists()
        assert not list(step.out.rglob("*.partial"))
        assert not (step.out / "checkpoints").exists()


def test_every_model_opens_in_stock_transformers(toy_run):  # noqa: F811
    for name in ("text-lm", *MODELS):
        lm = AutoModelForCausalLM.from_pretrained(toy_run / name, trust_remote_code=False)
        about = read_json(toy_run / name / "slam.json")
        assert lm.config.vocab_size == about["num_units"] + 2


def test_every_model_says_which_runs_made_it_and_no_path(toy_run):  # noqa: F811
    stages = {
        "text-lm": ["pretrain"],
        "random": ["pretrain"],
        "twist": ["pretrain"] * 2,
        "twist-dpo": ["pretrain", "pretrain", "dpo"],
    }
    for name, expected in stages.items():
        training = read_json(toy_run / name / "slam.json")["training"]
        assert [run["stage"] for run in training] == expected
        made = read_run(toy_run / name)
        last = training[-1]
        assert last["fingerprint"] == made.fingerprint
        assert {key: told["fingerprint"] for key, told in last["inputs"].items()} == made.inputs
        assert last["results"]["steps"] == made.results["steps"]
        assert last["settings"]["seed"] == made.config["seed"]
        assert str(toy_run) not in (toy_run / name / "slam.json").read_text()


def test_the_models_differ_as_their_names_say(toy_run):  # noqa: F811
    text, random, twist, tuned = (
        load_file(toy_run / name / "model.safetensors") for name in ("text-lm", *MODELS)
    )
    name = "model.layers.0.mlp.up_proj.weight"

    def distance(one, other):
        return float((one[name] - other[name]).norm())

    assert distance(twist, text) < distance(random, text)
    assert 0 < distance(tuned, twist) < distance(tuned, random)


def test_a_finished_recipe_does_nothing_says_so_and_is_quick(toy_run):  # noqa: F811
    before = modified(toy_run)
    began = time.monotonic()
    again = slam("run", RECIPE, "--folder", toy_run)
    assert time.monotonic() - began < 3
    assert again.returncode == 0
    assert "every step is done already, nothing to do" in again.stderr
    changed = {path for path, when in modified(toy_run).items() if before.get(path) != when}
    assert changed <= {toy_run / "report.html", toy_run / "results.json"}


def _kill_in(step, folder, delay):
    """Start the recipe and kill it, as the kernel would, some moments into a step."""
    with subprocess.Popen(
        [*SLAM, "run", str(RECIPE), "--folder", str(folder)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 120
        while not (folder / step / "started.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()


def test_a_run_killed_again_and_again_ends_as_the_run_never_killed(toy_run, tmp_path):  # noqa: F811
    folder = tmp_path / "killed"
    moments = (("benchmark-speech", 0.5), ("units", 0.4), ("twist", 0.3), ("report", 0.2))
    for step, delay in moments:
        _kill_in(step, folder, delay)
        assert not (folder / "results.json").exists()
    done = slam("run", RECIPE, "--folder", folder)
    assert done.returncode == 0, done.stderr
    assert read_json(folder / "results.json") == read_json(toy_run / "results.json")
    for name in MODELS:
        one, other = (load_file(root / name / "model.safetensors") for root in (folder, toy_run))
        assert all(bool((one[key] == other[key]).all()) for key in one)
    said = [read_json_lines(root / "continuations" / "continuations.jsonl") for root in (folder, toy_run)]
    assert said[0] == said[1]
