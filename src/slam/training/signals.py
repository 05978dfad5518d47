"""SIGINT and SIGTERM → a word to the training, which stops where it can be resumed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from slam import world


class StopRequested(Exception):  # noqa: N818 - a request, no error
    """A signal came, and what is under way may be given up."""


class Stop:
    """Whether a signal asked to stop, and how to leave."""

    def __init__(self) -> None:
        self.requested: int | None = None

    def poll(self) -> None:
        """Give up what is under way, if a signal came.

        Several processes have to agree first: they go on to the end of the update.

        Raises:
            StopRequested: a signal came.
        """
        if self.requested is not None and world.size() == 1:
            raise StopRequested

    def leave(self) -> None:
        """Leave as the signal asks, if one came: the caller has written its checkpoint.

        Raises:
            KeyboardInterrupt: it was SIGINT.
            SystemExit: it was SIGTERM, with status 0.
        """
        if self.requested == signal.SIGINT:
            raise KeyboardInterrupt
        if self.requested is not None:
            raise SystemExit(0)


@contextmanager
def signals() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM instead of dying of them; a second SIGINT is not waited for."""
    stop = Stop()

    def note(number: int, _: FrameType | None) -> None:
        if stop.requested == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = number

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            with suppress(TypeError):
                signal.signal(number, handler)
