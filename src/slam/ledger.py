"""Work that is done an item at a time → a file of JSON lines that an interrupted run goes on with.

A line is written, and forced to the disk, when its item is done. A run that is killed while it writes leaves
a last line cut short, which the next one drops.
"""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from slam.run import read_json_lines

_KEY = "key"


class Ledger:
    """What is known of each item, by its key; safe to write to from several threads."""

    def __init__(self, path: Path) -> None:
        """Open `path`, which need not be there.

        Raises:
            InputError: a line of it is no JSON object.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if size := path.stat().st_size:
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < size:
                self._file.truncate(whole)
        found = read_json_lines(path)
        self._rows = {row[_KEY]: {k: v for k, v in row.items() if k != _KEY} for row in found}
        self._lock = threading.Lock()

    @property
    def rows(self) -> Mapping[str, dict[str, Any]]:
        """What is known, by key."""
        return self._rows

    def write(self, rows: Mapping[str, dict[str, Any]]) -> None:
        """Add what was found out of some items, and have it on disk when this returns."""
        lines = "".join(json.dumps({_KEY: k} | row, ensure_ascii=False) + "\n" for k, row in rows.items())
        with self._lock:
            self._file.write(lines.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._rows.update(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
