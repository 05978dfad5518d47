"""A step → its run, in this process or in one of its own with its share of the cores.

On a few cores, small models train faster side by side than one after the other. A worker ends with its
parent, so a killed recipe leaves nobody writing in its folders.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Self

from slam import progress
from slam.recipe import Step
from slam.run import Run
from slam.stages import STAGES

_POLL_SECONDS = 0.5


class Workers:
    """Makes steps: here and now with one job, else in processes that share the cores."""

    def __init__(self, jobs: int, *, apart: bool) -> None:
        self._jobs = jobs
        self._apart = apart or jobs > 1
        self._idle: list[ProcessPoolExecutor] = []  # of one process each: where one dies, its step is known
        self._busy: dict[Future[Run], ProcessPoolExecutor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # a training writes a checkpoint and leaves; every other stage just ends
            for process in multiprocessing.active_children():
                process.terminate()
        for pool in (*self._idle, *self._busy.values()):
            pool.shutdown(cancel_futures=True)

    def perform(self, step: Step) -> Future[Run]:
        """Begin `step`."""
        if not self._apart:
            future: Future[Run] = Future()
            future.set_result(_perform(step.stage, step))
            return future
        with _shared_cores(self._jobs):
            pool = self._idle.pop() if self._idle else self._pool()
            future = pool.submit(_perform, step.stage, step)
        self._busy[future] = pool
        return future

    def free(self, future: Future[Run]) -> None:
        """Let the process of a step that ended make another, unless it is dead."""
        pool = self._busy.pop(future, None)
        if pool is None:
            return
        if isinstance(future.exception(), BrokenProcessPool):
            pool.shutdown()
        else:
            self._idle.append(pool)

    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin_worker,
            initargs=(os.getpid(),),
        )


def _perform(stage: str, step: Step) -> Run:
    return STAGES[stage].perform(step.config, step.out)


@contextmanager
def _shared_cores(jobs: int) -> Iterator[None]:
    """Let processes that start now use their share of the cores, which OpenMP reads when it loads."""
    before = os.environ.get("OMP_NUM_THREADS")
    if before is None:
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]


def _begin_worker(parent: int) -> None:
    """Leave Ctrl-C and the terminal to the parent, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    progress.silence()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
