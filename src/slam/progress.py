"""Work that takes longer than a moment → a bar with speed and time left, on standard error."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from slam import world

_LINE_SECONDS = 60.0

console = Console(stderr=True, quiet=world.rank() > 0)


_silenced = False


def silence() -> None:
    """Draw no bars in this process: its parent draws them."""
    global _silenced  # noqa: PLW0603 - a process is silenced once, when it starts
    _silenced = True


class Bar:
    """A running bar: how far, and a word on how it goes."""

    def __init__(self, progress: Progress, task: TaskID, *, lines: bool) -> None:
        self._progress, self._task = progress, task
        self._lines = lines
        self._said = time.monotonic()

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Move on by `amount`."""
        self._progress.update(self._task, advance=amount, note=note)

    def reach(self, completed: float, note: str = "") -> None:
        """Move to `completed`; off a terminal, say so in a line every minute."""
        self._progress.update(self._task, completed=completed, note=note)
        if self._lines and time.monotonic() - self._said > _LINE_SECONDS:
            self._said = time.monotonic()
            task = self._progress.tasks[self._task]
            words = [f"{task.percentage:.0f} %", note]
            if task.time_remaining is not None:
                words.append(f"{timedelta(seconds=round(task.time_remaining))} left")
            console.print(f"{task.description}: {', '.join(filter(None, words))}", highlight=False)


@contextmanager
def bar(what: str, total: float | None) -> Iterator[Bar]:
    """Show a bar that goes away when the work is done; off a terminal, a line now and then.

    Args:
        what: is done.
        total: when it is done; None where that is not known.
    """
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=28),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    hidden = _silenced or not console.is_terminal
    lines = not _silenced and not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        yield Bar(progress, progress.add_task(what, total=total, note=""), lines=lines)
