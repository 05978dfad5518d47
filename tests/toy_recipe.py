"""The toy recipe, run once for all tests that look at what it left: offline, with warnings as errors."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
RECIPE = TESTS / "toy.toml"
SLAM = [sys.executable, "-W", "error", str(TESTS / "offline.py")]
# one thread, so that sums are added in one order whatever else the machine does
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def slam(*words, **options):
    """Run a command; its output is text."""
    return subprocess.run(
        [*SLAM, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        **{"env": ENVIRONMENT} | options,
    )


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory):
    """The folder of the finished toy recipe; not to be written to."""
    if importlib.util.find_spec("espeakng_loader") is None:
        pytest.skip("no eSpeak NG: install the extra `espeak`")
    folder = tmp_path_factory.getbasetemp() / "toy-run"
    if not (folder / "report.html").exists():  # each test file that asks has a session's fixture of its own
        done = slam("run", RECIPE, "--folder", folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith(f"report: {folder / 'report.html'}")
    return folder
