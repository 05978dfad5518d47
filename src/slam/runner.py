"""A recipe → its steps made: in order, or several at a time where none waits for another.

With `jobs` above 1, steps are made in worker processes, each with its share of the cores: on a few cores,
small models train faster side by side than one after the other. A worker ends with its parent, so a killed
recipe leaves nobody writing in its folders.
"""

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Self

from slam import progress, report, world
from slam.errors import SlamError
from slam.progress import console
from slam.recipe import STAGES, Recipe, Step
from slam.run import Run, identity, read_run, state_of

_POLL_SECONDS = 0.5
Made = tuple[Step, Run, bool]


def run_recipe(recipe: Recipe, jobs: int | None = None) -> list[Made]:
    """Make every step that is not done.

    Args:
        recipe: what to make.
        jobs: steps at the same time, instead of the recipe's own number.

    Returns:
        Each step in the recipe's order, with its run and whether it was made now.

    Raises:
        SlamError: a step failed, or the recipe's folder holds something that is no run of slam.
    """
    jobs = recipe.jobs if jobs is None else jobs
    if world.size() > 1:  # torchrun's processes make each step together
        jobs = 1
    waiting = {step.name: step for step in recipe.steps}
    made: dict[str, Made] = {}
    running: dict[Future[Run], tuple[Step, float]] = {}
    with _Workers(jobs) as workers, progress.bar("steps", len(recipe.steps)) as bar:
        while waiting or running:
            for step in _ready(list(waiting.values()), [step for step, _ in running.values()]):
                if len(running) == jobs:
                    break
                del waiting[step.name]
                if _prepare(step, recipe):
                    running[workers.perform(step)] = (step, time.perf_counter())
                else:
                    made[step.name] = (step, _finished(step), False)
                    bar.advance()
            names = ", ".join(step.name for step, _ in running.values())
            for future in wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                step, begin = running.pop(future)
                run = _result(future, step)
                made[step.name] = (step, run, True)
                seconds = time.perf_counter() - begin
                console.print(
                    f"{_label(step, recipe)}: {step.stage} in {seconds:.1f} s{_summary(run)}", highlight=False
                )
                bar.advance()
            bar.advance(0, names)
    if world.rank() == 0:
        _publish(recipe)
    return [made[step.name] for step in recipe.steps]


def _ready(waiting: Sequence[Step], running: Sequence[Step]) -> list[Step]:
    """Steps that wait for no other: none of their inputs is still to be made."""
    unmade = {step.out for step in (*waiting, *running)}
    return [step for step in waiting if not unmade & set(step.sources)]


def _prepare(step: Step, recipe: Recipe) -> bool:
    """Whether `step` has to be made; a stale folder of ours is removed."""
    fingerprint, _, _ = identity(step.stage, step.config)
    state = state_of(step.out, fingerprint)
    if state == "other" and world.rank() == 0:
        # ours, by its run.json or started.json: made from other settings or inputs
        console.print(
            f"{_label(step, recipe)}: its settings or inputs changed, making it again", highlight=False
        )
        shutil.rmtree(step.out)
    if state == "started":
        console.print(f"{_label(step, recipe)}: going on where it was", highlight=False)
    return state != "done"


def _finished(step: Step) -> Run:
    run = read_run(step.out)
    assert run is not None  # noqa: S101 - its state was "done"
    return run


def _result(future: Future[Run], step: Step) -> Run:
    try:
        return future.result()
    except BrokenProcessPool:
        raise SlamError(
            f"step {step.name!r}: its process was killed (out of memory?); the same command goes on from here"
        ) from None


def _label(step: Step, recipe: Recipe) -> str:
    return f"[{recipe.steps.index(step) + 1}/{len(recipe.steps)}] {step.name}"


def _publish(recipe: Recipe) -> None:
    """Put the report's page and scores where the recipe's folder begins."""
    for step in recipe.steps:
        if step.stage == "report":
            for name in (report.PAGE_FILE, report.RESULTS_FILE):
                shutil.copyfile(step.out / name, recipe.folder / name)


class _Workers:
    """Makes steps: here and now with one job, else in processes that share the cores."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        if kind is not None:
            # a training writes a checkpoint and leaves; every other stage just ends
            for process in multiprocessing.active_children():
                process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def perform(self, step: Step) -> Future[Run]:
        """Begin `step`."""
        if self._jobs == 1:
            future: Future[Run] = Future()
            future.set_result(_perform(step.stage, step))
            return future
        if self._pool is None:
            with _shared_cores(self._jobs):
                self._pool = ProcessPoolExecutor(
                    self._jobs,
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=_begin_worker,
                    initargs=(os.getpid(),),
                )
                return self._pool.submit(_perform, step.stage, step)
        with _shared_cores(self._jobs):
            return self._pool.submit(_perform, step.stage, step)


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


_SUMMARIES = {
    "synthesize": ("num_utterances", "utterances"),
    "fit-units": ("vocabulary_used", "units in use"),
    "encode": ("num_units", "units"),
    "import-units": ("num_units", "units"),
    "pretrain": ("final_validation_loss", "nats a token on held-out documents"),
    "dpo": ("final_validation_preference_accuracy", "of held-out preferences right"),
    "evaluate": ("num_pairs", "pairs scored"),
    "generate": ("num_continuations", "continuations"),
}


def _summary(run: Run) -> str:
    if run.stage not in _SUMMARIES:
        return ""
    key, words = _SUMMARIES[run.stage]
    value = run.results[key]
    return f": {value:,.3f} {words}" if isinstance(value, float) else f": {value:,} {words}"
