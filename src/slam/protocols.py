"""The name of a protocol → what a model's score of a pair is made of.

Papers score pairs in ways that differ by points: summed or per token, with or without `<S>` at either end, of
the whole utterance or of what comes after the prompt. A name says all of it: `slam`, the paper's, and words
joined to it by `+` for what differs.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from slam.errors import ConfigError, InputError
from slam.pairs import PairRow, heard_early
from slam.units import Ids, Units

DEFAULT = "slam"
ONSET_SECONDS = 0.5  # after the shared beginning: "The Fallacy of Global Token Perplexity", arXiv 2601.06329
Part = Literal["whole", "continuation", "onset"]

_WORDS = {
    "sum": "summed, not divided by how many tokens there are",
    "no-bos": "no <S> in front, so that the first unit is context alone",
    "no-eos": "no <S> at the end",
    "frames": "a unit a frame: equal neighbours are not merged",
    "continuation": "only what comes after the shared beginning counts",
    "localized": f"only the first {ONSET_SECONDS} s after the shared beginning count",
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is scored, and what of it counts."""

    name: str
    summed: bool = False
    opening: bool = True  # <S> in front, as context
    closing: bool = True  # <S> at the end, scored
    deduplicated: bool = True
    part: Part = "whole"

    @property
    def words(self) -> str:
        """The protocol in a line."""
        ends = {
            (True, True): "both <S>, the last one scored",
            (True, False): "<S> in front and none at the end",
            (False, True): "no <S> in front, one at the end, scored",
            (False, False): "without <S>",
        }[self.opening, self.closing and self.part != "onset"]
        what = {
            "whole": "the whole utterance",
            "continuation": "what comes after the shared beginning",
            "onset": f"the first {ONSET_SECONDS} s after the shared beginning",
        }[self.part]
        return (
            f"{'summed' if self.summed else 'mean'} log-likelihood of {what}"
            f"{'' if self.summed else ' a token'}, {'units' if self.deduplicated else 'frames'}, {ends}, "
            "ties 1/2"
        )


@dataclass(frozen=True)
class Utterances:
    """A pair's row and the units of both of its utterances."""

    row: PairRow
    chosen: Units
    rejected: Units


@dataclass(frozen=True)
class Side:
    """An utterance as it is scored."""

    ids: Ids  # [N]
    seam: int  # units that both sides begin with
    onset: int  # units up to the end of the first half second after them


def read_protocol(name: str) -> Protocol:
    """The protocol called `name`: `slam`, or `slam+` and words that say what differs.

    Raises:
        ConfigError: it does not begin with `slam`, a word is unknown or given twice, or two contradict.
    """
    first, *words = name.split("+")
    unknown = next((word for word in words if word not in _WORDS), None)
    if first != DEFAULT or unknown is not None or len(set(words)) < len(words):
        known = "; ".join(f"{word}: {meaning}" for word, meaning in _WORDS.items())
        raise ConfigError(
            f"no protocol is called {name!r}: write {DEFAULT!r}, or {DEFAULT!r} with words joined by +, each "
            f"once ({known})"
        )
    if {"continuation", "localized"} <= set(words):
        raise ConfigError(f"protocol {name!r}: continuation and localized contradict each other; choose one")
    part: Part = "continuation" if "continuation" in words else "onset" if "localized" in words else "whole"
    return Protocol(
        name=name,
        summed="sum" in words,
        opening="no-bos" not in words,
        closing="no-eos" not in words,
        deduplicated="frames" not in words,
        part=part,
    )


def sides(row: PairRow, chosen: Units, rejected: Units, protocol: Protocol) -> tuple[Side, Side]:
    """Both whole utterances of a pair, as `protocol` takes them.

    The shared beginning is the prompt where the row knows when it ends; a unit that spans its end belongs to
    what follows. Where the row does not, it is the units that both sides begin with.

    Raises:
        InputError: the protocol needs durations, and the units carry none; or a side has no units.
    """
    units = (chosen, rejected)
    for one, name in zip(units, (row.chosen, row.rejected), strict=True):
        if not len(one):
            raise InputError(f"pair {row.id!r}: the utterance {name!r} has no units")
    ids = [one.ids if protocol.deduplicated else one.expand() for one in units]
    if protocol.part == "whole":
        return Side(ids[0], 0, len(ids[0])), Side(ids[1], 0, len(ids[1]))
    seams = _seams(row, units, ids, protocol)
    if protocol.part == "continuation":
        return Side(ids[0], seams[0], len(ids[0])), Side(ids[1], seams[1], len(ids[1]))
    found = []
    for one, content, seam in zip(units, ids, seams, strict=True):
        begins = _begins(one, content, protocol)
        end = begins[seam] + ONSET_SECONDS * one.frame_rate
        found.append(Side(content, seam, int(np.searchsorted(begins, end, side="left"))))
    return found[0], found[1]


def _seams(row: PairRow, units: tuple[Units, Units], ids: list[Ids], protocol: Protocol) -> tuple[int, int]:
    """How many units of each side belong to the shared beginning; each side keeps one at least."""
    if row.prompt_units is not None and protocol.deduplicated:
        found = [row.prompt_units] * 2
    elif row.prompt_units is not None:
        found = [int(one.known_durations[: row.prompt_units].sum()) for one in units]
    elif row.chosen_start and row.rejected_start:
        starts = (row.chosen_start, row.rejected_start)
        frames = [round(start * one.frame_rate) for start, one in zip(starts, units, strict=True)]
        early = heard_early(*units, frames)
        found = [
            int(np.searchsorted(_begins(one, content, protocol), frame - early, side="right")) - 1
            for one, content, frame in zip(units, ids, frames, strict=True)
        ]
    else:
        found = [min(shared_length(*ids), min(map(len, ids)) - 1)] * 2
    one, other = (max(0, min(seam, len(content) - 1)) for seam, content in zip(found, ids, strict=True))
    return one, other


def _begins(units: Units, ids: Ids, protocol: Protocol) -> npt.NDArray[np.int64]:
    """The frame at which each unit begins, `[N]`."""
    if not protocol.deduplicated:
        return np.arange(len(ids))
    durations = units.known_durations.astype(np.int64)
    return np.cumsum(durations) - durations


def shared_length(one: npt.NDArray[np.uint16], other: npt.NDArray[np.uint16]) -> int:
    """How many items two sequences begin with alike."""
    size = min(len(one), len(other))
    differing = np.flatnonzero(one[:size] != other[:size])
    return int(differing[0]) if len(differing) else size
