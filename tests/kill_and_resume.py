"""Train once undisturbed, and once killed again and again and started anew each time.

    python kill_and_resume.py SHARDS OUT KILLS SEED

leaves both in OUT (`whole`, `killed`) and prints how many checkpoints each kill came after. Every attempt is
a fork of this process, which has imported torch but never computed with it: an import takes seconds, a fork
none.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch.utils.tensorboard
from transformers import Qwen2ForCausalLM  # noqa: F401 - the same

import slam.training  # noqa: F401 - the same
import toy_training
from slam.pretrain import pretrain

STEPS = 200
_PATIENCE_SECONDS = 60.0
_MOST_STEPS = 5  # that an attempt is left in peace
_STEP_SECONDS = 0.03  # about as long as a step with its checkpoint takes


def fork(shards, out):
    """Begin, or go on with, a training in a process of its own."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        pretrain(toy_training.config_of(shards, budget=f"{STEPS} steps", validations=9), out)
    except BaseException:  # noqa: BLE001 - whatever it is, the child must not run on as its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def newest(out):
    """The step of the newest checkpoint, -1 without one."""
    folder = out / "checkpoints"
    return max((int(path.name) for path in folder.glob("0*")), default=-1) if folder.is_dir() else -1


def kill(child, out, generator):
    """Kill a training that has got some steps further, some moments into a step; gives that step."""
    goal = newest(out) + generator.randint(1, _MOST_STEPS)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while newest(out) < goal:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            raise SystemExit(f"the training ended with status {status} before it was killed")
        if time.monotonic() > deadline:
            raise SystemExit(f"the training did not reach step {goal}")
        time.sleep(0.001)
    time.sleep(generator.uniform(0, _STEP_SECONDS))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        raise SystemExit(f"the training ended with status {status} before it was killed")
    return newest(out)


def finish(child):
    """Wait for a training to end by itself."""
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"the training ended with status {status}")


def main():
    shards, out, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    generator = random.Random(seed)
    finish(fork(shards, out / "whole"))
    killed = out / "killed"
    steps = [kill(fork(shards, killed), killed, generator) for _ in range(kills)]
    finish(fork(shards, killed))
    print(*steps)  # noqa: T201 - for the test that started this


if __name__ == "__main__":
    main()
