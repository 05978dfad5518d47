import gzip
from pathlib import Path

import pytest

from slam.errors import InputError
from slam.text_files import byte_lines, text_lines


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_only_a_line_feed_ends_a_line_and_a_mark_at_the_beginning_is_none_of_it(
    suffix: str, tmp_path: Path
) -> None:
    content = "\ufeffone\r\n\u2028two\n\ufeffthree".encode()
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    assert list(text_lines(path)) == ["one\r\n", "\u2028two\n", "\ufeffthree"]
    assert [line.decode() for line in byte_lines(path)] == list(text_lines(path))


def test_lines_before_the_damage_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\xff\n")
    lines = text_lines(path)
    assert next(lines) == "one\n"
    with pytest.raises(InputError, match=r"a\.txt:2: not UTF-8 text"):
        next(lines)
