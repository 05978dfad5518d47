"""Rows that were read → what became of them: pairs that stay, and each row that does not, with why."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slam.errors import InputError
from slam.pair_layouts import Candidate
from slam.run import write_json_lines

# every reason for which a pair is left out, as the results name it
_REASONS = {
    "not_gold": "num_not_gold",
    "without_label": "num_without_label",
    "with_markup": "num_with_markup",
    "unfit_word": "num_unfit_words",
    "without_nonword": "num_without_nonword",
    "unfit_story": "num_unfit_stories",
    "without_partner": "num_without_partner",
    "empty": "num_empty",
    "equal": "num_equal",
    "near_identical": "num_near_identical",
    "duplicate": "num_duplicates",
    "repetitive": "num_repetitive",
    "sound_alike": "num_sound_alike",
    "not_drawn": "num_not_drawn",
    "length": "num_dropped_for_length",
}


@dataclass(frozen=True)
class Kept:
    """A pair that stays, so far."""

    id: str
    file: Path
    line: int
    pair: Candidate
    longer: int  # by how much the chosen side is: characters of text, or hundredths of a second


@dataclass
class Tally:
    """What became of the rows."""

    max_failures: float  # share of rows
    num_rows: int = 0
    left_out: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def leave_out(self, file: Path, line: int, why: str) -> None:
        """Note a row, or a pair of it, that is not used."""
        self.left_out.append({"file": str(file), "line": line, "why": why})

    def fail(self, file: Path, line: int, reason: str) -> None:
        """Note a row that cannot be read.

        Raises:
            InputError: none may be.
        """
        failure = {"file": str(file), "line": line, "reason": reason}
        if not self.max_failures:
            raise InputError(where(failure))
        self.failures.append(failure)

    @property
    def counts(self) -> dict[str, int]:
        """How many were left out, by the name that results give to each reason."""
        found = Counter(row["why"] for row in self.left_out)
        return {named: found[why] for why, named in _REASONS.items()}

    def check(self, num_pairs: int, failures_file: Path, first: Path) -> None:
        """Write the failures and raise InputError if they are too many; raise it too if no pair is left."""
        if len(self.failures) > self.max_failures * self.num_rows:
            write_json_lines(failures_file, self.failures)
            raise InputError(
                f"{len(self.failures)} of {self.num_rows} rows are malformed, the first: "
                f"{where(self.failures[0])}; all are named in {failures_file}"
            )
        if not num_pairs:
            counts = [f"{count} {name.removeprefix('num_')}" for name, count in self.counts.items() if count]
            found = f" ({', '.join(counts)})".replace("_", " ") if counts else ""
            raise InputError(f"{first}: no pair is left of {self.num_rows} rows{found}")


def where(failure: dict[str, Any]) -> str:
    """A failure as an error says it."""
    return f"{failure['file']}:{failure['line']}: {failure['reason']}"
