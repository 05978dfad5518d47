import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_model
import toy_language
import toy_training
from slam.pack import PackConfig, pack
from slam.pretrain import pretrain
from slam.run import read_run, stage
from slam.shards import Batches, open_shards
from slam.training import Task
from slam.training.engine import Engine
from toy_training import KilledError, act_at_step, figures, kill, weights

# one thread each: there are two processes on what may be two cores
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TRAIN_TOGETHER = Path(__file__).parent / "train_together.py"
KILLED_AT = 9
ARCHITECTURE = ("hidden-size", 32), ("intermediate-size", 64), ("num-layers", 2), ("num-heads", 2)


def words(config, out):
    """The toy training as a command."""
    named = {
        "shards": config.shards,
        "budget": config.budget,
        "batch-tokens": config.batch_tokens,
        "micro-batch-tokens": config.micro_batch_tokens,
        "context": config.context,
        "validations": config.validations,
        "learning-rate": config.learning_rate,
        "checkpoint-seconds": config.checkpoint_seconds,
        "sharding": config.sharding,
        "optimizer": config.optimizer,
        "schedule": config.schedule,
        "floor": config.floor,
        "out": out,
    } | {f"architecture.{name}": size for name, size in ARCHITECTURE}
    return ["pretrain", *(word for name, value in named.items() for word in (f"--{name}", str(value)))]


def together(*command):
    """A command in two processes that exchange by gloo, as `torchrun` starts them."""
    return subprocess.run(
        [*TOGETHER, *map(str, command)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def assert_same_training(out, other):
    """The same curve and model, but for the order in which sums were added."""
    first, second = figures(out), figures(other)
    assert [row.keys() for row in first] == [row.keys() for row in second]
    for row, expected in zip(first, second, strict=True):
        # a share of a thousand weights of each parameter: one of them that just does not move is no matter
        assert row.pop("weights_moved", 0) == pytest.approx(expected.pop("weights_moved", 0), abs=1e-3)
        assert row == pytest.approx(expected, rel=1e-5)
    found, wanted = weights(out), weights(other)
    assert found.keys() == wanted.keys()
    for name, weight in found.items():
        # a key's bias adds the same to all scores of a query: its gradient is what rounding leaves of nothing
        most = 1e-3 if name.endswith("k_proj.bias") else 1e-5
        torch.testing.assert_close(weight, wanted[name], atol=most, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def settings_of(tmp_path_factory):
    shards = toy_training.write_shards(tmp_path_factory.mktemp("shards"))
    return toy_training.config_of(shards)


@pytest.fixture(scope="module")
def alone(settings_of, tmp_path_factory):
    """The training by one process, never stopped."""
    out = tmp_path_factory.mktemp("alone") / "lm"
    pretrain(settings_of, out)
    return out


@pytest.fixture(scope="module")
def folders(settings_of, tmp_path_factory):
    """Trainings of two processes, and what one process left to them."""
    root = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        act_at_step(patch, KILLED_AT, kill)
        with pytest.raises(KilledError):
            pretrain(settings_of, root / "one-then-replicate")
    shutil.copytree(root / "one-then-replicate", root / "one-then-shard")

    def job(name, sharding, killed_at=None):
        return {
            "shards": str(settings_of.shards),
            "out": str(root / name),
            "changes": {"sharding": sharding},
            "killed_at": killed_at,
        }

    muon = replace(settings_of, optimizer="muon", sharding="shard")
    jobs = [
        job("shard", "shard"),
        job("one-then-replicate", "replicate"),
        job("one-then-shard", "shard"),
        job("replicate-then-one", "replicate", KILLED_AT),
        job("shard-then-one", "shard", KILLED_AT),
        {"command": words(muon, root / "muon"), "said": str(root / "muon-said-")},
    ]
    (root / "jobs.json").write_text(json.dumps(jobs))
    done = together(TRAIN_TOGETHER, root / "jobs.json")
    assert done.returncode == 0, done.stderr
    return root


# The same training, whoever does it


def test_two_processes_train_as_one_does_at_the_same_batch_a_last_batch_of_one_document_included(
    settings_of, alone, tmp_path
):
    training = open_shards(settings_of.shards, "train")
    order = Batches(training.lengths, settings_of.batch_tokens, settings_of.seed)
    sizes = [len(batch) for batch in islice(order, 24)]
    assert sizes[order.num_batches - 1] == 1
    out = tmp_path / "lm"
    done = together("-m", "slam", *words(settings_of, out))
    assert done.returncode == 0, done.stderr
    assert_same_training(out, alone)
    assert done.stdout == f"{out}\n"  # one process speaks
    results = [read_run(folder).results for folder in (out, alone)]
    for name in ("steps", "tokens", "num_parameters", "epochs"):
        assert results[0][name] == results[1][name]


def test_with_its_weights_divided_the_training_is_the_same(folders, alone):
    assert_same_training(folders / "shard", alone)


@pytest.mark.parametrize("name", ["one-then-replicate", "one-then-shard"])
def test_two_processes_go_on_where_one_was_killed(folders, alone, name):
    assert_same_training(folders / name, alone)


@pytest.mark.parametrize("name", ["replicate-then-one", "shard-then-one"])
def test_one_process_goes_on_where_two_were_killed(settings_of, folders, alone, tmp_path, name):
    out = shutil.copytree(folders / name, tmp_path / name)
    assert max(path.name for path in (out / "checkpoints").iterdir()) == f"{KILLED_AT:09d}"
    started = []
    with pytest.MonkeyPatch.context() as patch:
        act_at_step(patch, KILLED_AT - 1, lambda: started.append("too early"))
        pretrain(settings_of, out)
    assert not started
    assert_same_training(out, alone)


@pytest.mark.parametrize("name", ["shard", "one-then-replicate"])
def test_what_two_processes_save_is_a_stock_checkpoint(folders, alone, name):
    document = toy_language.VOCABULARY.document(toy_language.count(2, 5, 9))
    scores = [
        reference_model.document_logits(reference_model.load_plainly(folder), document)
        for folder in (folders / name, alone)
    ]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-3, rtol=1e-3)


def test_two_processes_stopped_by_sigterm_leave_a_checkpoint_from_which_one_goes_on(settings_of, tmp_path):
    config = replace(settings_of, budget="600 steps", checkpoint_seconds=3600.0)
    out = tmp_path / "lm"
    with subprocess.Popen(
        [*TOGETHER, "-m", "slam", *words(config, out)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        log = out / "metrics.jsonl"
        while not (log.is_file() and '"step": 10,' in log.read_text()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    (kept,) = (out / "checkpoints").iterdir()
    assert 10 <= int(kept.name) < 600
    assert not (out / "run.json").exists()
    pretrain(config, out)
    pretrain(config, tmp_path / "alone")
    assert_same_training(out, tmp_path / "alone")


def test_muon_on_divided_weights_is_refused_in_one_line_with_status_2(folders):
    said = [json.loads((folders / f"muon-said-{rank}").read_text()) for rank in (0, 1)]
    assert [status for status, _ in said] == [2, 2]
    (line,) = said[0][1].splitlines()  # with its end torchrun ends process 1
    assert 'optimizer = "muon"' in line
    assert 'sharding = "replicate"' in line
    assert not (folders / "muon").exists()


# Who reads what


@dataclass(frozen=True)
class Unused:
    """Stands for what a division of documents has no use for."""


def engine_of(lengths, batch_tokens, micro_batch_tokens, *, filled):
    """An engine that can do no more than say which documents are this process's."""
    task = Task(
        order=Batches(lengths, batch_tokens, seed=0),
        costs=lengths,
        terms=lengths - 1,
        longest=int(lengths.max()),
        row=Unused(),
        loss=Unused(),
        validate=Unused(),
    )
    fill = task.fill(max(micro_batch_tokens, task.longest)) if filled else None
    return Engine(Unused(), Unused(), Unused(), task, fill, micro_batch_tokens)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(2, 200), min_size=1, max_size=60).map(np.array),
    batch_tokens=st.integers(1, 3000),
    micro_batch_tokens=st.integers(1, 1000),
    world_size=st.integers(1, 5),
    filled=st.booleans(),
)
def test_the_processes_share_each_batch_out_among_them_without_overlap(
    *, lengths, batch_tokens, micro_batch_tokens, world_size, filled
):
    engine = engine_of(lengths, batch_tokens, micro_batch_tokens, filled=filled)
    most = engine.fill.num_tokens if filled else micro_batch_tokens
    for items in islice(engine.task.order, engine.task.order.num_batches + 1):
        shares = []
        for rank in range(world_size):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("RANK", str(rank))
                patch.setenv("WORLD_SIZE", str(world_size))
                shares.append(engine.micro_batches(items))
        seen = [int(item) for share in shares for micro_batch in share for item in micro_batch]
        assert sorted(seen) == sorted(items.tolist())
        # as many for each: they exchange gradients after the last one
        assert len({len(share) for share in shares}) == 1
        for micro_batch in (micro_batch for share in shares for micro_batch in share):
            assert len(micro_batch) <= 1 or lengths[micro_batch].sum() <= most


# Work that one process does for all


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """A stage without settings."""


def test_a_stage_of_one_process_is_waited_for_by_the_others(tmp_path, monkeypatch):
    done = []

    @stage
    def count(_, out):
        done.append(threading.current_thread().name)
        (out / "counted").write_text("1")
        return {"counted": len(done)}

    # each thread is a process of its own as far as the stage can tell
    ranks = {"process 0": 0, "process 1": 1}
    monkeypatch.setattr("slam.world.rank", lambda: ranks[threading.current_thread().name])
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = {}

    def work():
        found[threading.current_thread().name] = count(NoConfig(), tmp_path / "out")

    first, second = (threading.Thread(target=work, name=name) for name in ranks)
    second.start()
    second.join(timeout=0.5)
    assert second.is_alive()  # there is nothing to give yet
    assert not (tmp_path / "out").exists()
    first.start()
    for thread in (first, second):
        thread.join(timeout=30)
    assert done == ["process 0"]
    assert found["process 0"] == found["process 1"]
    assert found["process 1"].results == {"counted": 1}


def test_packing_under_torchrun_leaves_what_one_process_leaves(tmp_path):
    named = {f"utterance-{n}": units for n, units in enumerate(toy_language.utterances(60))}
    units = toy_language.write_units(tmp_path / "units", named)
    pack(PackConfig(train=(units,)), tmp_path / "one")
    done = together("-m", "slam", "pack", "--train", units, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'two'}\n"
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    runs = [json.loads(content.pop(Path("run.json"))) for content in (one, two)]
    assert one == two
    assert runs[0]["fingerprint"] == runs[1]["fingerprint"]
    assert runs[0]["results"]["splits"] == runs[1]["results"]["splits"]
