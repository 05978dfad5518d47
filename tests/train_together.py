"""Trainings one after another in the same processes: an import of torch takes longer than all of them.

    torchrun --nproc-per-node N train_together.py JOBS

JOBS is JSON, a list of `{"shards", "out", "changes", "killed_at"}`: settings that differ from the toy's, and
the step at which all processes die, or null. `{"command", "said"}` is a command of slam's instead; each
process adds its status and what it wrote on standard error to a file `said` followed by its number.
"""

import io
import json
import sys
from contextlib import redirect_stderr, suppress
from pathlib import Path

import pytest

import toy_training
from slam import cli, world
from slam.pretrain import pretrain


def train(job):
    """One training, to its end or its death."""
    config = toy_training.config_of(Path(job["shards"]), **job["changes"])
    with pytest.MonkeyPatch.context() as patch, suppress(toy_training.KilledError):
        if job["killed_at"] is not None:
            toy_training.act_at_step(patch, job["killed_at"], toy_training.kill)
        pretrain(config, Path(job["out"]))


def command(job):
    """One command, and how it ends."""
    status, said = 0, io.StringIO()
    with redirect_stderr(said):
        try:
            cli.main(job["command"])
        except SystemExit as ended:
            status = ended.code
    Path(f"{job['said']}{world.rank()}").write_text(json.dumps([status, said.getvalue()]))


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text()):
        (command if "command" in each else train)(each)
