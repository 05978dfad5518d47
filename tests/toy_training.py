"""Short trainings of the toy language: their settings, ways to disturb them, and how two are compared."""

from dataclasses import replace

import torch
from safetensors.torch import load_file

import slam.pretrain
import toy_language
from slam.pretrain import PretrainConfig
from slam.run import read_json_lines
from slam.shards import Batches

# what a row of the log may hold that the clock decides
OF_THE_CLOCK = {"seconds", "tokens_per_second", "mfu"}


def write_shards(folder):
    """What the toy trainings learn and are validated on."""
    return toy_language.write_shards(
        folder, toy_language.utterances(120), toy_language.utterances(20, seed=1)
    )


def config_of(shards, **changes):
    """24 updates of about eight documents, each in a few micro-batches; a checkpoint after every one."""
    return replace(
        PretrainConfig(
            shards=shards,
            budget="24 steps",
            batch_tokens=80,
            micro_batch_tokens=40,
            context=32,
            validations=4,
            optimizer="adamw",
            learning_rate=3e-3,
            schedule="cosine",
            floor=0.05,
            architecture=toy_language.ARCHITECTURE,
            checkpoint_seconds=1e-9,
        ),
        **changes,
    )


class KilledError(Exception):
    """Stands for a process that is no more: nothing of the project catches it."""


def kill():
    """End a training as a power cut would."""
    raise KilledError


def act_at_step(monkeypatch, number, act):
    """Do something when the data of a step is asked for."""
    starting_at = Batches.starting_at

    def tampered(self, first):
        for current, batch in enumerate(starting_at(self, first), first):
            if current == number:
                act()
            yield batch

    monkeypatch.setattr(Batches, "starting_at", tampered)


def tamper(monkeypatch, change):
    """Let every training be of the task that `change` makes of the real one."""
    plain = slam.pretrain.next_token_task

    def changed(*given, **named):
        return change(plain(*given, **named))

    monkeypatch.setattr(slam.pretrain, "next_token_task", changed)


def follow(monkeypatch):
    """A list that always holds one number: the step whose data was asked for last."""
    current = [0]
    starting_at = Batches.starting_at

    def noted(self, first):
        for step, batch in enumerate(starting_at(self, first), first):
            current[0] = step
            yield batch

    monkeypatch.setattr(Batches, "starting_at", noted)
    return current


def spoil_loss(monkeypatch, steps, spoil):
    """Change the loss of the batches of these steps, on the way forward and back."""
    current = follow(monkeypatch)

    def change(task):
        def loss(values, row, about):
            total, seen = task.loss(values, row, about)
            return (spoil(total) if current[0] in steps else total), seen

        return replace(task, loss=loss)

    tamper(monkeypatch, change)


class Clock:
    """Stands for the module `time` inside the loop: every look at it takes a tick, so an update takes one."""

    TICK = 1 / 16  # seconds; sums of it are exact

    def __init__(self, monkeypatch, tick=TICK):
        self.now, self.tick = 0.0, tick
        monkeypatch.setattr("slam.training.loop.time", self)

    def perf_counter(self):
        self.now += self.tick
        return self.now


def rows(out):
    """The training's log."""
    return read_json_lines(out / "metrics.jsonl")


def figures(out):
    """What of the log does not depend on the clock."""
    return [{key: value for key, value in row.items() if key not in OF_THE_CLOCK} for row in rows(out)]


def weights(folder):
    """Name → tensor of a model or of a checkpoint."""
    return load_file(folder / "model.safetensors")


def checkpoint(out, step):
    """The folder of the checkpoint before update `step`, counted from 0."""
    return out / "checkpoints" / f"{step:09d}"


def assert_same_tensors(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def assert_same_run(out, other):
    """Bit for bit: the weights, and every figure but the clock's."""
    assert_same_tensors(weights(out), weights(other))
    assert figures(out) == figures(other)
