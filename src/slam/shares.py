"""I/N → the shards that are one process's, where several write one folder; the last to end joins them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slam.errors import ConfigError
from slam.run import Unfinished

_SHARE = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class Share:
    """A process's part of the work: every `step`-th shard, from the `first` on."""

    first: int
    step: int

    def __contains__(self, index: int) -> bool:
        return index % self.step == self.first

    def check_joined(self, out: Path, left: Sequence[int], num_shards: int) -> None:
        """Leave the joining to others as long as there are shards `left`.

        Raises:
            Unfinished: there are.
        """
        if left:
            raise Unfinished(
                f"{out}: part {self.first + 1}/{self.step} is done; {len(left)} of {num_shards} shards are "
                "other parts' to write, and the last to end joins them"
            )


def read_share(shard: str | None) -> Share:
    """The share that a setting names; all of the work where it names none.

    Raises:
        ConfigError: `shard` is not I/N with 1 ≤ I ≤ N.
    """
    if shard is None:
        return Share(0, 1)
    found = _SHARE.fullmatch(shard)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"shard = {shard!r}: write I/N, from 1/N to N/N")
    return Share(int(found[1]) - 1, int(found[2]))


@contextmanager
def one_process(out: Path, shard: str | None) -> Iterator[None]:
    """Alone among those that share the folder; at once where nobody shares it."""
    from filelock import FileLock

    if shard is None:
        yield
        return
    with FileLock(out / ".lock"):
        yield
