import os
import subprocess
import sys

import pytest

import toy_training
import toy_tuning
from slam.dpo import dpo
from slam.run import read_run

TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_two_processes_that_divide_the_weights_stop_where_one_does_and_save_what_it_saves(tmp_path):
    """They go back to weights that were kept, after a validation, which leaves some of them whole."""
    toy_tuning.write_folders(tmp_path)
    config = toy_tuning.config_of(
        tmp_path,
        validation_shards=tmp_path / "shards",
        max_validation_loss_rise=0.6,
        validations=10,
        sharding="shard",
        **toy_tuning.HARSH,
    )
    names = (
        *("model", "pairs", "budget", "batch_pairs", "learning_rate", "schedule", "beta", "held_out_share"),
        *("validations", "context", "samples", "validation_shards", "max_validation_loss_rise", "sharding"),
    )
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    done = subprocess.run(
        [*TOGETHER, "-m", "slam", "dpo", *words, "--out", str(tmp_path / "together")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    dpo(config, tmp_path / "alone")
    results = [read_run(tmp_path / name).results for name in ("alone", "together")]
    assert results[0]["stopped_by"] == "max_validation_loss_rise"
    for name in ("stopped_by", "stopped_at_step", "kept_step"):
        assert results[0][name] == results[1][name]
    for when in ("before", "after"):
        for name, value in results[0][when].items():
            assert results[1][when][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    alone, together = (toy_training.weights(tmp_path / name) for name in ("alone", "together"))
    assert alone.keys() == together.keys()
    for name, weight in alone.items():
        # a key's bias adds the same to all scores of a query: its gradient is what rounding leaves of nothing
        assert (weight - together[name]).abs().max() < (5e-2 if name.endswith("k_proj.bias") else 1e-3), name
