"""A recipe → its steps made: in order, or several at a time where none waits for another.

With `jobs` above 1, steps are made in processes of their own (`slam.workers`).
"""

import errno
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from slam import progress, report, world
from slam.errors import SlamError, reason_of
from slam.progress import console
from slam.recipe import Recipe, Step
from slam.run import Run, atomic_write, identity, read_run, state_of
from slam.workers import Workers

_POLL_SECONDS = 0.5
FAILURE_SUFFIX = ".failed"  # of the file beside a step's folder that holds why it failed last
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
    made = make_steps(recipe.steps, jobs)
    if world.rank() == 0:
        _publish(recipe)
    return [made[step.out] for step in recipe.steps]


def make_steps(
    steps: Sequence[Step], jobs: int, *, failures: dict[Path, str] | None = None
) -> dict[Path, Made]:
    """Make every one of `steps` that is not done.

    Args:
        steps: what to make; inputs that are none of them must be there.
        jobs: steps at the same time.
        failures: where given, a step that fails is noted here, folder → line, and so is each that depends on
            it; the others are made. Steps are then made in processes of their own, and left to any other
            process that makes them at this moment.

    Returns:
        Each step by its folder, with its run and whether it was made now.

    Raises:
        SlamError: a step failed and there are no `failures`, or a folder holds something that is no run of
            slam.
    """
    waiting = {step.out: step for step in steps}
    places = {out: f"[{number}/{len(waiting)}] {out.name}" for number, out in enumerate(waiting, 1)}
    made: dict[Path, Made] = {}
    running: dict[Future[Run], tuple[Step, float]] = {}
    with (
        Workers(jobs, apart=failures is not None) as workers,
        _Claims(shared=failures is not None) as claims,
        progress.bar("steps", len(waiting)) as bar,
    ):
        while waiting or running:
            left = len(waiting)
            for step in _ready(list(waiting.values()), [step for step, _ in running.values()]):
                if len(running) == jobs:
                    break
                if not claims.take(step.out):
                    continue
                del waiting[step.out]
                with _noting(step, failures):
                    if _prepare(step, places[step.out]):
                        running[workers.perform(step)] = (step, time.perf_counter())
                        continue
                    made[step.out] = (step, _finished(step), False)
                claims.leave(step.out)
                bar.advance()
            bar.advance(0, ", ".join(step.out.name for step, _ in running.values()))
            for future in wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                step, begin = running.pop(future)
                workers.free(future)
                with _noting(step, failures):
                    made[step.out] = (step, _result(future, step, failures), True)
                    words = f"{step.stage} in {time.perf_counter() - begin:.1f} s"
                    console.print(
                        f"{places[step.out]}: {words}{_summary(made[step.out][1])}", highlight=False
                    )
                claims.leave(step.out)
                bar.advance()
            _skip(waiting, failures or {})
            if not running and len(waiting) == left:  # all that is ready is being made elsewhere
                time.sleep(_POLL_SECONDS)
    return made


@contextmanager
def _noting(step: Step, failures: dict[Path, str] | None) -> Iterator[None]:
    """Note that `step` failed and go on, where there is somewhere to note it."""
    note = step.out.with_name(f"{step.out.name}{FAILURE_SUFFIX}")
    if failures is None:
        yield
        return
    try:
        yield
    except SlamError as error:
        failures[step.out] = str(error)
        note.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(note, f"{error}\n")
        console.print(f"{step.out.name}: {error}", style="red", highlight=False, markup=False)
    else:
        note.unlink(missing_ok=True)


def _skip(waiting: dict[Path, Step], failures: dict[Path, str]) -> None:
    """Leave out the steps that wait for one that failed."""
    for out, step in list(waiting.items()):  # in the order in which one waits for another
        if failed := next((path for path in step.sources if path in failures), None):
            failures[out] = f"left out: {failed.name} failed"
            del waiting[out]


class _Claims:
    """Which steps this process makes, where several make those of one folder: a lock beside each."""

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._locks: dict[Path, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for out in list(self._locks):
            self.leave(out)

    def take(self, out: Path) -> bool:
        """Whether the step of this folder is ours to make now."""
        if not self._shared:
            return True
        from filelock import FileLock, Timeout

        out.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out.with_name(f"{out.name}.lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        self._locks[out] = lock
        return True

    def leave(self, out: Path) -> None:
        """Let others have it."""
        if out in self._locks:
            self._locks.pop(out).release()


def _ready(waiting: Sequence[Step], running: Sequence[Step]) -> list[Step]:
    """Steps that wait for no other: none of their inputs is still to be made."""
    unmade = {step.out for step in (*waiting, *running)}
    return [step for step in waiting if not unmade & set(step.sources)]


def _prepare(step: Step, place: str) -> bool:
    """Whether `step` has to be made; a stale folder of ours is removed."""
    fingerprint, _, _ = identity(step.stage, step.config)
    state = state_of(step.out, fingerprint)
    if state == "other" and world.rank() == 0:
        # ours, by its run.json or started.json: made from other settings or inputs
        console.print(f"{place}: its settings or inputs changed, making it again", highlight=False)
        shutil.rmtree(step.out)
    if state == "started":
        console.print(f"{place}: going on where it was", highlight=False)
    return state != "done"


def _finished(step: Step) -> Run:
    run = read_run(step.out)
    assert run is not None  # noqa: S101 - its state was "done"
    return run


def _result(future: Future[Run], step: Step, failures: dict[Path, str] | None) -> Run:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise SlamError(
            f"step {step.name!r}: its process was killed (out of memory?); the same command goes on from here"
        )
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC  # which the next step would find too
    if error is None or isinstance(error, SlamError) or failures is None or full:
        return future.result()
    raise SlamError(f"step {step.name!r}: {type(error).__name__}: {reason_of(error)}")


def _publish(recipe: Recipe) -> None:
    """Put the report's page and scores where the recipe's folder begins."""
    for step in recipe.steps:
        if step.stage == "report":
            for name in (report.PAGE_FILE, report.RESULTS_FILE):
                shutil.copyfile(step.out / name, recipe.folder / name)


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
