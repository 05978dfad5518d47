import subprocess
import time

import pytest

from slam.recipe import load_recipe
from slam.run import read_json, read_run
from toy_recipe import ENVIRONMENT, RECIPE, SLAM, slam, toy_run  # noqa: F401 - a fixture


def test_jobs_change_no_result(toy_run, tmp_path):  # noqa: F811
    done = slam("run", RECIPE, "--folder", tmp_path, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "results.json") == read_json(toy_run / "results.json")
    for step in load_recipe(RECIPE, folder=toy_run).steps:
        alone, beside = read_run(toy_run / step.name), read_run(tmp_path / step.name)
        assert alone.fingerprint == beside.fingerprint


def test_a_failure_beside_other_steps_is_one_line_and_status_two(tmp_path):
    text = RECIPE.read_text().replace("num_units = 20", "num_units = 9000")
    (tmp_path / "recipe.toml").write_text(text)
    done = slam("run", tmp_path / "recipe.toml", "--folder", tmp_path / "made", "--jobs", 2)
    assert done.returncode == 2
    assert "are too few to fit 9000 units" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stop", ["kill", "terminate"])
def test_a_stopped_recipe_leaves_no_worker_and_goes_on(tmp_path, toy_run, stop):  # noqa: F811
    command = [*SLAM, "run", str(RECIPE), "--folder", str(tmp_path), "--jobs", "2"]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/started.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        getattr(process, stop)()
    time.sleep(2)  # workers look for their parent twice a second
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    time.sleep(1)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = slam("run", RECIPE, "--folder", tmp_path, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "results.json") == read_json(toy_run / "results.json")
