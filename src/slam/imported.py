"""Lines of the reference toolkit, one after the other → utterances, pairs, and a count of what was met."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slam.errors import InputError
from slam.origins import Origin
from slam.pairs import PairRow
from slam.slamkit import Spoken, SpokenPair, holds_pair, parse_line, parse_pair
from slam.units import Units, merge

Utterance = tuple[dict[str, Any], Units]  # row of the manifest, units


@dataclass
class Imported:
    """What was met so far."""

    origin: Origin
    benchmark: str  # name of the set that the pairs are of
    seen: dict[str, tuple[Path, int]] = field(default_factory=dict)  # utterance → file and line
    pairs: list[PairRow] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    has_durations: bool | None = None  # as the first good line decides
    has_pairs: bool | None = None  # the same
    num_empty: int = 0
    num_merged: int = 0
    num_seam_repeats: int = 0
    num_units: int = 0
    num_frames: int = 0

    @property
    def num_lines(self) -> int:
        """Lines that are not blank."""
        return len(self.seen) + len(self.pairs) + len(self.failures)

    @property
    def num_utterances(self) -> int:
        """Of good lines; a pair is two."""
        return len(self.seen) + 2 * len(self.pairs)

    def take(self, line: bytes, place: tuple[Path, int]) -> list[Utterance]:
        """A line → its utterance, or the two of its pair; what it held is counted.

        Raises:
            InputError: it is malformed; the reason alone. Nothing of it is counted.
        """
        has_pairs = holds_pair(line)
        if has_pairs:
            pair = parse_pair(line)
            parts = [pair.prompt, pair.chosen, pair.rejected]
        else:
            name, spoken = parse_line(line)
            parts = [spoken]
        for part in parts:
            self._check(part)
        if self.has_pairs not in (None, has_pairs):
            here, others = ("is a pair", "are none") if has_pairs else ("is no pair", "are pairs")
            raise InputError(f"{here}, and the lines before {others}; import such files apart")
        if len({part.durations is None for part in parts}) > 1:
            raise InputError("some of its parts have durations, some have none")
        has_durations = parts[0].durations is not None
        if self.has_durations not in (None, has_durations):
            here, others = ("has", "have none") if has_durations else ("has no", "have them")
            raise InputError(f"{here} durations, and the lines before {others}; import such files apart")
        utterances = self._pair(pair) if has_pairs else [self._utterance(name, spoken, place)]
        self.has_pairs, self.has_durations = has_pairs, has_durations
        return utterances

    def _check(self, spoken: Spoken) -> None:
        if len(spoken.ids) and spoken.ids.max() >= self.origin.num_units:
            raise InputError(
                f"unit {spoken.ids.max()} is outside a vocabulary of {self.origin.num_units} units"
            )

    def _utterance(self, name: str, spoken: Spoken, place: tuple[Path, int]) -> Utterance:
        if name in self.seen:
            before, number = self.seen[name]
            raise InputError(f"{name!r} was given before, in {before}:{number}")
        self.seen[name] = place
        self.num_empty += not len(spoken.ids)
        self.num_merged += _repeats(spoken)
        return self._row(name, self._units(spoken))

    def _pair(self, pair: SpokenPair) -> list[Utterance]:
        """The prompt before each side. Prompt and sides were encoded apart, so nothing is merged between."""
        named = {"prompt": pair.prompt, "chosen side": pair.chosen, "rejected side": pair.rejected}
        for name, spoken in named.items():
            if not len(spoken.ids):
                raise InputError(f"its {name} has no units")
        prompt, chosen, rejected = (self._units(spoken) for spoken in named.values())
        if np.array_equal(chosen.ids, rejected.ids):
            raise InputError("its sides are equal; no preference can be learnt from them")
        start = None if prompt.durations is None else prompt.num_frames / prompt.frame_rate
        name = f"{self.benchmark}-{self.num_lines + 1:07d}"
        row = PairRow(
            name,
            self.benchmark,
            "all",
            f"{name}-chosen",
            f"{name}-rejected",
            start,
            start,
            prompt_units=len(prompt),
        )
        self.pairs.append(row)
        self.num_merged += sum(map(_repeats, named.values()))
        utterances = []
        for role, side in (("chosen", chosen), ("rejected", rejected)):
            self.num_seam_repeats += int(prompt.ids[-1] == side.ids[0])
            manifest, units = self._row(f"{name}-{role}", _joined(prompt, side))
            texts = [pair.about.get(f"{part}_text") for part in ("prompt", role)]
            if all(isinstance(text, str) for text in texts):
                manifest["text"] = " ".join(map(str, texts))
            utterances.append((manifest | {"origin": pair.about}, units))
        return utterances

    def _units(self, spoken: Spoken) -> Units:
        """Equal neighbours merged; without durations where there were none."""
        durations = np.ones(len(spoken.ids), np.int64) if spoken.durations is None else spoken.durations
        units = merge(spoken.ids, durations, self.origin.frame_rate)
        return units if spoken.durations is not None else Units(units.ids, None, units.frame_rate)

    def _row(self, name: str, units: Units) -> Utterance:
        row: dict[str, Any] = {"id": name, "num_units": len(units)}
        if units.durations is not None:
            row["seconds"] = units.num_frames / units.frame_rate
            self.num_frames += units.num_frames
        self.num_units += len(units)
        return row, units


def _repeats(spoken: Spoken) -> int:
    return int((spoken.ids[1:] == spoken.ids[:-1]).sum())


def _joined(prompt: Units, side: Units) -> Units:
    ids = np.concatenate((prompt.ids, side.ids))
    if prompt.durations is None or side.durations is None:
        return Units(ids, None, prompt.frame_rate)
    return Units(ids, np.concatenate((prompt.durations, side.durations)), prompt.frame_rate)
