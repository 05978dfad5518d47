"""A text file, packed with gzip or not → its lines, one in memory at a time; damage is named."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from slam.errors import InputError

_MARK = b"\xef\xbb\xbf"  # a byte-order mark, as some editors begin a file


def byte_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, which only a line feed ends; unpacked if its name ends in .gz.

    Raises:
        InputError: it cannot be read, or is damaged.
    """
    try:
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw as file:
            for number, line in enumerate(file, 1):
                yield line.removeprefix(_MARK) if number == 1 else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: is damaged ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def text_lines(path: Path) -> Iterator[str]:
    """The same lines as text.

    Raises:
        InputError: also if a line is not UTF-8.
    """
    for number, line in enumerate(byte_lines(path), 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: not UTF-8 text ({error.reason})") from None
