"""Others' preferences, BLiMP, words or stories → pairs to speak or to encode.

Pairs of text are written for `slam synthesize`, which speaks prompt and side as one utterance of one voice.
Pairs of recordings are joined here, as they are. What cannot teach a preference is left out and counted.
"""

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slam.audio import audio_seconds
from slam.errors import ConfigError, InputError
from slam.joined_recordings import Joined, join_pair
from slam.pair_filters import Filters, balance, draw, length_accuracy, sound_alike
from slam.pair_layouts import Candidate, LayoutName, Part, Reading, Sides
from slam.pair_sources import PairSource, check_columns
from slam.pair_tally import Kept, Tally, where
from slam.pairs import PairRow, write_pair_rows
from slam.progress import bar
from slam.recordings import MANIFEST_FILE
from slam.run import Results, effort, source, stage, write_json_lines
from slam.text_sources import TEXT_PAIRS_FILE

_FAILURES_FILE, _LEFT_OUT_FILE = "failures.jsonl", "left-out.jsonl"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_AUDIO = Path("audio")
_FOLDER_SIZE = 1000  # pairs whose sound files share a folder
_HUNDREDTHS = 100  # of a second, in which the lengths of recordings are compared
_LEAST = {"wrong_endings": 1, "num_pairs": 1, "num_pairs_each": 1, "sample_rate": 8000, "num_workers": 1}


@dataclass(frozen=True, kw_only=True)
class BuildPairsConfig:
    """Settings of `slam build-pairs`."""

    files: tuple[Path, ...] = source(required=True)
    """Files in order: of pairs .csv or .jsonl, of words .txt, of stories .txt or .jsonl; or with .gz."""
    layout: LayoutName
    """What they hold: swag, hellaswag, blimp, pairs (prompt, chosen, rejected), words, or stories."""
    columns: dict[str, str] = field(default_factory=dict)
    """In the layouts pairs and stories, how the rows name what is read: our name → theirs."""
    dictionary: Path | None = source()
    """For words: a pronouncing dictionary; no non-word is in it, and only words in it are asked for."""
    accents: tuple[str, ...] = ()
    """Voices of eSpeak in which sides must not sound alike, and non-words not like any word."""
    sides: Sides = "text"
    """What prompt, chosen and rejected are, in the layout pairs: text, or paths of recordings."""
    benchmark: str = "preferences"
    """Name of the set."""
    wrong_endings: int = 1
    """With SWAG and HellaSwag, most wrong endings of a row that are taken: a pair each, one cluster."""
    gold_only: bool = True
    """With SWAG, take only endings that were found, and none that a model wrote to be right."""
    max_auto_bleu: float | None = 0.3
    """Keep pairs of whose prompt and chosen text fewer bigrams than this share are repeated (auto-BLEU-2)."""
    max_similarity: float | None = 0.97
    """Most of the letters that the sides may share in order (1 less the edits a letter)."""
    balance_lengths: bool = True
    """Leave out pairs, by the seed, until chosen sides are as often longer as shorter, by as much."""
    num_pairs: int | None = None
    """At most so many pairs, drawn by the seed before lengths are balanced; clusters stay whole."""
    num_pairs_each: int | None = None
    """At most so many pairs of each kind and group (a paradigm, a frequency band), drawn likewise."""
    sample_rate: int = 16_000
    """Sample rate in Hz of recordings that are joined."""
    seed: int = 0
    """Decides which wrong ending, non-word or other story is taken, and which pairs are left out."""
    max_failures: float = 0.0
    """Share of rows that may be malformed, or whose recordings cannot be read, before the stage fails."""
    num_workers: int = effort(lambda: os.cpu_count() or 1)
    """Recordings that are joined at the same time."""

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError("files: name at least one file of pairs")
        if not _NAME.fullmatch(self.benchmark):
            raise ConfigError(
                f"benchmark = {self.benchmark!r}: use letters, digits, - _ . only; it names files"
            )
        self._check_layout()
        if self.sides == "audio" and self.layout != "pairs":
            raise ConfigError(f'sides = "audio" goes with layout = "pairs"; {self.layout!r} is text')
        for name in ("max_auto_bleu", "max_similarity", "max_failures"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} = {value}: is a share, between 0 and 1")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} = {value}: must be at least {least}")

    def _check_layout(self) -> None:
        """Raise ConfigError if a setting says nothing in this layout, or the layout lacks one."""
        if self.layout == "words" and not (self.dictionary and self.accents):
            raise ConfigError('layout = "words" needs dictionary (a file) and accents (voices of eSpeak)')
        if self.dictionary and self.layout != "words":
            raise ConfigError(f'dictionary goes with layout = "words", not {self.layout!r}')
        if self.accents and self.sides == "audio":
            raise ConfigError("accents are for texts: leave them out where sides are recordings")
        if self.wrong_endings > 1 and self.layout not in ("swag", "hellaswag"):
            raise ConfigError(f"wrong_endings = {self.wrong_endings}: {self.layout!r} has one wrong side")
        if wrong := check_columns(self.layout, self.columns):
            raise ConfigError(wrong)

    @property
    def source(self) -> PairSource:
        """What is read, and how."""
        reading = Reading(
            layout=self.layout,
            sides=self.sides,
            gold_only=self.gold_only,
            seed=self.seed,
            wrong_endings=self.wrong_endings,
            columns=self.columns,
        )
        drawn = (self.num_pairs, self.num_pairs_each)
        return PairSource(self.files, reading, self.dictionary, self.accents, *drawn)


@stage
def build_pairs(config: BuildPairsConfig, out: Path) -> Results:
    """Write the pairs of `config.files` into the folder `out`.

    Raises:
        InputError: a file cannot be read, too large a share of its rows is malformed, or no pair is left.
    """
    tally = Tally(config.max_failures)
    read = config.source
    passed = list(_passed(config, read, tally))
    alike = sound_alike([one.pair for one in passed], config.accents)
    found = [one for one, same in zip(passed, alike, strict=True) if not same]
    drawn = _drawn(found, config)
    kept = balance(drawn, _longer(drawn), config.seed) if config.balance_lengths else drawn
    steps = (("sound_alike", passed, found), ("not_drawn", found, drawn), ("length", drawn, kept))
    for why, before, after in steps:
        stay = {one.id for one in after}
        for one in before:
            if one.id not in stay:
                tally.leave_out(one.file, one.line, why)
    try:
        if config.sides == "audio":
            rows, pairs = _join_all(kept, config, out, tally)
            written = {row.id for row in pairs}
            kept = [one for one in kept if one.id in written]
        tally.check(len(kept), out / _FAILURES_FILE, config.files[0])
    except InputError:  # nothing half-written stays
        shutil.rmtree(out / _AUDIO, ignore_errors=True)
        raise
    if config.sides == "audio":
        write_json_lines(out / MANIFEST_FILE, rows)
        write_pair_rows(out, pairs)
    else:
        write_json_lines(out / TEXT_PAIRS_FILE, [_text_row(one, config.benchmark) for one in kept])
    write_json_lines(out / _FAILURES_FILE, tally.failures)
    write_json_lines(out / _LEFT_OUT_FILE, tally.left_out)
    unit = 1 if config.sides == "text" else 1 / _HUNDREDTHS
    return {
        "num_rows": tally.num_rows,
        "num_pairs": len(kept),
        "num_failures": len(tally.failures),
        "failures": [where(row) for row in tally.failures[:20]],
        **tally.counts,
        "length_accuracy_before": round(length_accuracy(_longer(drawn)), 4),
        "length_accuracy": round(length_accuracy(_longer(kept)), 4),
        "mean_longer": round(float(_longer(kept).mean()) * unit, 4),
        **read.about,
    }


def _passed(config: BuildPairsConfig, read: PairSource, tally: Tally) -> Iterator[Kept]:
    """The pairs that no filter refuses, in order; the others are counted."""
    filters = Filters(config.max_similarity, config.max_auto_bleu)
    for row in read.rows():
        if row.number == 0:
            tally.num_rows += 1
        try:
            if isinstance(row.found, InputError):
                raise row.found
            why = row.found if isinstance(row.found, str) else filters.refuse(row.found)
            if isinstance(row.found, str) or why:
                tally.leave_out(row.file, row.line, str(why))
                continue
            longer = _difference(row.found)
        except InputError as error:
            tally.fail(row.file, row.line, str(error))
            continue
        name = f"{config.benchmark}-{tally.num_rows:07d}" + (f"-{row.number + 1}" if row.number else "")
        yield Kept(name, row.file, row.line, row.found, longer)


def _difference(pair: Candidate) -> int:
    """By how much the chosen side is longer: characters, or hundredths of a second."""
    if pair.prompt.audio is not None:
        audio_seconds(pair.prompt.audio)  # that it can be read
    return _length(pair.chosen) - _length(pair.rejected)


def _length(part: Part) -> int:
    return len(part.text) if part.audio is None else round(_HUNDREDTHS * audio_seconds(part.audio))


def _longer(kept: Sequence[Kept]) -> npt.NDArray[np.int64]:
    return np.array([one.longer for one in kept], np.int64)


def _drawn(found: list[Kept], config: BuildPairsConfig) -> list[Kept]:
    """As many of the pairs as are asked for, in their order."""
    if config.num_pairs_each is not None:
        groups: dict[Any, list[Kept]] = defaultdict(list)
        for one in found:
            groups[one.pair.kind, *sorted(one.pair.groups.items())].append(one)
        stay = {one.id for some in groups.values() for one in _some(some, config.num_pairs_each, config.seed)}
        found = [one for one in found if one.id in stay]
    return found if config.num_pairs is None else _some(found, config.num_pairs, config.seed)


def _some(found: list[Kept], count: int, seed: int) -> list[Kept]:
    return [found[number] for number in draw([one.pair.cluster or one.id for one in found], count, seed)]


def _text_row(one: Kept, benchmark: str) -> dict[str, Any]:
    """A pair as `slam synthesize` reads it."""
    pair = one.pair
    row: dict[str, Any] = {"id": one.id, "benchmark": benchmark, "kind": pair.kind}
    row |= {"prompt": pair.prompt.text, "chosen": pair.chosen.text, "rejected": pair.rejected.text}
    row |= {"reason": pair.reason, "story": pair.story}
    optional = {"voice": pair.voice, "cluster": pair.cluster, "groups": dict(pair.groups)}
    row |= {name: value for name, value in optional.items() if value}
    return row | {"origin": f"{one.file.name}:{one.line}"}


def _join_all(
    kept: Sequence[Kept], config: BuildPairsConfig, out: Path, tally: Tally
) -> tuple[list[dict[str, Any]], list[PairRow]]:
    """Write each pair's two sound files; gives the rows of the manifest and of `pairs.jsonl`."""
    rows: list[dict[str, Any]] = []
    pairs: list[PairRow] = []

    def join(number: int) -> Joined | str:
        folder = _AUDIO / f"{number // _FOLDER_SIZE:05d}"
        try:
            return join_pair(kept[number].pair, kept[number].id, config.sample_rate, out, folder)
        except InputError as error:
            return str(error)

    workers = ThreadPoolExecutor(config.num_workers)
    try:
        with bar("joining", len(kept)) as progress:
            for one, joined in zip(kept, workers.map(join, range(len(kept))), strict=True):
                progress.advance()
                if isinstance(joined, str):
                    tally.fail(one.file, one.line, joined)
                    continue
                rows += [row | {"source": config.benchmark} for row in joined.rows]
                chosen, rejected = (row["id"] for row in joined.rows)
                sides = (chosen, rejected, joined.seam_seconds, joined.seam_seconds)
                pairs.append(
                    PairRow(
                        one.id,
                        config.benchmark,
                        one.pair.kind,
                        *sides,
                        one.pair.reason,
                        one.pair.story,
                        cluster=one.pair.cluster,
                        groups=dict(one.pair.groups),
                    )
                )
    finally:
        workers.shutdown(cancel_futures=True)
    return rows, pairs
