"""Seconds from the command to the first optimizer step on 10 M packed tokens, and to open 1 B tokens.

Each start is a process of its own: imports, shards, a model of 1.8 M parameters, a trial that packing keeps
documents apart, the first validation and one update of 2,048 tokens, without compilation. Nothing is left
out.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from side_by_side import REPEATS, arguments, finish, timed

from slam.shards import describe, frame_documents, open_shards, write_split
from slam.units import Vocabulary

START_SECONDS, OPEN_SECONDS = 5.0, 0.05
VOCABULARY = Vocabulary(500)
_FIRST_UPDATE = """
import os, sys, time
from slam.cli import main
from slam.training import loop
update = loop.Training.update
def once(self, *batch):
    update(self, *batch)
    print(time.time())
    sys.stdout.flush()
    os._exit(0)
loop.Training.update = once
main(sys.argv[1:])
"""


def write_shards(folder: Path, num_tokens: int) -> Path:
    """Documents of 620 tokens, and twenty more to validate on."""
    random = np.random.default_rng(0)
    for split, count in (("train", num_tokens // 620), ("validation", 20)):
        ends = np.cumsum(np.full(count, 618))
        units = random.integers(0, 500, int(ends[-1])).astype(np.uint16)
        write_split(folder, split, *frame_documents(units, ends, VOCABULARY))
    describe(folder, vocabulary=VOCABULARY, tokenizer="none", fingerprint="0" * 16, counts={})
    return folder


def write_sparse_shards(folder: Path, num_tokens: int) -> Path:
    """The same size on paper: a file with holes, for opening must not read it."""
    (folder / "train").mkdir(parents=True)
    tokens = np.lib.format.open_memmap(folder / "train/tokens.npy", "w+", np.uint16, (num_tokens,))
    del tokens
    ends = np.append(np.arange(620, num_tokens, 620, dtype=np.int64), num_tokens)
    np.save(folder / "train/ends.npy", ends)
    describe(folder, vocabulary=VOCABULARY, tokenizer="none", fingerprint="0" * 16, counts={})
    return folder


def start(shards: Path, out: Path) -> float:
    """Seconds from starting the process to the end of its first update."""
    words = ["pretrain", "--shards", shards, "--budget", "100 steps", "--batch-tokens", "2048", "--out", out]
    begin = time.time()
    done = subprocess.run(  # noqa: S603 - this project's own command
        [sys.executable, "-c", _FIRST_UPDATE, *map(str, words)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1]) - begin


def main() -> None:
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder) / "ten", 10_000_000)
        starts = [start(shards, Path(folder) / f"out-{number}") for number in range(REPEATS)]
        large = write_sparse_shards(Path(folder) / "thousand", 1_000_000_000)
        opened = [timed(lambda: open_shards(large, "train")) for _ in range(REPEATS)]
    found = {
        "seconds_to_first_update": statistics.median(starts),
        "all_starts": [round(seconds, 2) for seconds in starts],
        "asked_start": START_SECONDS,
        "seconds_to_open_1B_tokens": statistics.median(opened),
        "all_openings": [round(seconds, 4) for seconds in opened],
        "asked_open": OPEN_SECONDS,
    }
    passed = found["seconds_to_first_update"] < START_SECONDS
    passed = passed and found["seconds_to_open_1B_tokens"] < OPEN_SECONDS
    finish("start_up", "s", found, {"passed": passed}, options.json)


if __name__ == "__main__":
    main()
