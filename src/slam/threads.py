"""Threads that compute beside each other, torch with one thread in each."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _OneThread:
    """Lets torch compute on one thread wherever this is held, in as many threads as hold it.

    The numbers of OpenMP and of MKL are a thread's own (torch 2.10 to 2.13), so each holder sets them for
    itself. `torch.set_num_threads` also says what threads that have not met torch yet begin with.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_holders = 0
        self._of_new_threads = 1  # their number before the first holder came
        self._own = threading.local()

    @contextmanager
    def held(self) -> Iterator[None]:
        """One thread here until the end, and then as many as before."""
        import torch

        with self._lock:
            before = torch.get_num_threads()
            if not self._num_holders:
                self._of_new_threads = before
            elif before == 1 and not hasattr(self._own, "met"):
                before = self._of_new_threads  # this 1 is another holder's
            self._own.met = True
            torch.set_num_threads(1)
            self._num_holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_holders -= 1
                torch.set_num_threads(before)


one_thread = _OneThread().held
"""Let torch compute on one thread here until the block ends, beside other threads that do the same."""
