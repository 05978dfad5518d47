"""A folder or table of benchmark recordings, as the field hands it on → its pairs, matched by id.

Layouts differ in where an id, a role and a group are said: in a `gold.csv`, in file names, or in a table of
the user's own. Whatever the order of a directory listing, a file finds its partner by id; one that has none
is named, and shifts nothing.
"""

import csv
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from slam.audio import SUFFIXES, find_audio
from slam.errors import ConfigError, InputError
from slam.pair_layouts import read_rows

LayoutName = Literal["auto", "swuggy", "sblimp", "salmon", "paired-wavs", "table"]
Split = Literal["dev", "test"]

SALMON_PARTS = (
    "sentiment_consistency",
    "speaker_consistency",
    "gender_consistency",
    "bg_domain_consistency",
    "bg_all_consistency",
    "rir_consistency",
    "sentiment_alignment",
    "bg_alignment",
)
_PARTS_OF = {"swuggy": "lexical", "sblimp": "syntactic"}  # folders of sLM21
_GOLD = "gold.csv"
_TABLES = (".csv", ".jsonl", ".csv.gz", ".jsonl.gz")
_ROLES = {"correct": "better", "incorrect": "worse", "positive": "better", "negative": "worse"}
_ROLE_LAST = re.compile(rf"(?P<id>.+)[_+-](?P<role>{'|'.join(_ROLES)})", re.IGNORECASE)
_NUMBER_FIRST = re.compile(r"(?P<number>\d+)(?:[_+].*)?")
_SALMON = re.compile(r"sample_(?P<id>[^_]+)(?:_.*)?")
_BANDS = ((1, 5), (6, 20), (21, 100))


@dataclass(frozen=True, kw_only=True)
class Found:
    """A pair as its layout tells of it; either side may be missing."""

    id: str
    better: tuple[Path, ...]  # one, unless a partner is missing or there are duplicates
    worse: tuple[Path, ...]
    kind: str = "all"
    item: str | None = None
    cluster: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    prompt_seconds: float = 0.0

    @property
    def fault(self) -> str | None:
        """Why it is no pair, or None."""
        for name, side in (("better", self.better), ("worse", self.worse)):
            if not side:
                return f"pair {self.id!r}: its {name} side is missing; the other is {_names(self)}"
            if len(side) > 1:
                return f"pair {self.id!r}: has {len(side)} {name} sides ({_names(self)})"
        return None


def _names(pair: Found) -> str:
    return ", ".join(str(path) for path in (*pair.better, *pair.worse))


@dataclass(frozen=True)
class Layout:
    """What was found: the benchmark's name, and its pairs in the order of their ids."""

    name: LayoutName
    benchmark: str
    pairs: list[Found]
    faults: list[str]  # files that belong to no pair, and rows that say nothing


def read_layout(source: Path, layout: LayoutName, split: Split | None, benchmark: str | None) -> Layout:
    """The pairs of `source`.

    Args:
        source: a folder, or a table.
        layout: which it is of; `auto` finds out.
        split: the half, where both are there.
        benchmark: the name of the set; if None, one that the layout or the folder gives.

    Raises:
        InputError: nothing there is of the layout, or of any; the line says what was looked for.
        ConfigError: a split must be chosen, or cannot be.
    """
    found = _find(source) if layout == "auto" else layout
    if split is not None and found not in _PARTS_OF:
        raise ConfigError(f"split = {split!r}: only swuggy and sblimp have halves; this is {found}")
    pairs, faults, named = _READERS[found](source, split)
    if not pairs:
        raise InputError(
            f"{source}: holds no pairs of the layout {found}; {_LOOKED_FOR[found]}"
            + (f"; the first that fits nothing: {faults[0]}" if faults else "")
        )
    return Layout(
        found, benchmark or _cleaned(named), sorted(pairs, key=lambda pair: _order(pair.id)), faults
    )


_LOOKED_FOR = {
    "swuggy": "looked for lexical/dev or lexical/test with gold.csv and its wavs",
    "sblimp": "looked for syntactic/dev or syntactic/test with gold.csv and its wavs",
    "salmon": "looked for folders named after SALMon's parts, with sample_<id>_*.wav, two of each id",
    "paired-wavs": "looked for NAME_correct.wav beside NAME_incorrect.wav (or positive, negative), or names "
    "that begin with running numbers, even ones better",
    "table": "looked for rows of id, better, worse",
}


def _find(source: Path) -> LayoutName:
    """Which layout `source` is of.

    Raises:
        InputError: none, or sLM21's both sets.
    """
    if source.is_file():
        if source.name.endswith(_TABLES):
            return "table"
        raise InputError(f"{source}: is no table; expected a file that ends in {', '.join(_TABLES)}")
    sets: list[LayoutName] = [name for name in ("swuggy", "sblimp") if _halves(source, _PARTS_OF[name])]
    if len(sets) > 1:
        raise InputError(
            f"{source}: holds swuggy (lexical) and sblimp (syntactic); import one at a time: say --layout"
        )
    if sets:
        return sets[0]
    if (source / _GOLD).is_file():
        columns = set(_gold_columns(source / _GOLD))
        if "word" in columns or "frequency" in columns:
            return "swuggy"
        if "type" in columns:
            return "sblimp"
    if _salmon_parts(source):
        return "salmon"
    if any(
        _ROLE_LAST.fullmatch(path.stem) or _NUMBER_FIRST.fullmatch(path.stem) for path in find_audio(source)
    ):
        return "paired-wavs"
    looked = "; ".join(_LOOKED_FOR[name] for name in ("swuggy", "sblimp", "salmon", "paired-wavs"))
    inside = ", ".join(sorted(path.name for path in source.iterdir())[:5]) or "nothing"
    raise InputError(f"{source}: is of no known layout ({looked}); it holds {inside}")


def _halves(source: Path, part: str) -> dict[str, Path]:
    """The halves of an sLM21 set under `source`: dev, test → folder."""
    for root in (source / part, source):
        if root == source and source.name != part:
            continue
        found = {name: root / name for name in ("dev", "test") if (root / name).is_dir()}
        if found:
            return found
    return {}


Read = tuple[list[Found], list[str], str]


def _slm21(name: Literal["swuggy", "sblimp"]) -> Callable[[Path, Split | None], Read]:
    def read(source: Path, split: Split | None) -> Read:
        halves = _halves(source, _PARTS_OF[name])
        if not halves and (source / _GOLD).is_file():
            halves = {source.name if source.name in ("dev", "test") else (split or "dev"): source}
        if split is None and len(halves) > 1:
            raise ConfigError(f"{source}: holds dev and test; choose one: --split dev or --split test")
        half = split if split is not None else next((name for name in halves), None)
        if half not in halves:
            raise InputError(
                f"{source}: holds no {half or 'dev or test'} half of {name}; {_LOOKED_FOR[name]}"
                + (f"; it has {', '.join(halves)}" if halves else "")
            )
        folder = halves[half]
        if not (folder / _GOLD).is_file():
            raise InputError(
                f"{folder}: has no {_GOLD}, which says what is better; that of the test half is not given "
                "out: score dev, or put the file there"
            )
        pairs, faults = _gold_pairs(folder, name)
        return pairs, faults, f"{name}-{half}"

    return read


def _gold_columns(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file), [])


class _Gold(msgspec.Struct):
    id: str
    filename: Annotated[str, Meta(min_length=1)]
    correct: Literal["0", "1"]
    voice: str = ""
    frequency: str = ""
    word: str = ""
    type: str = ""
    subtype: str = ""


def _gold_pairs(folder: Path, name: str) -> tuple[list[Found], list[str]]:
    """Pairs of one id and one voice."""
    sounds = {path.stem: path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
    members: dict[tuple[str, str], list[_Gold]] = {}
    faults: list[str] = []
    for line, raw in read_rows(folder / _GOLD):
        try:
            row = msgspec.convert(raw, _Gold, strict=False)
        except msgspec.ValidationError as error:
            faults.append(f"{folder / _GOLD}:{line}: {str(error).replace('`', '')}")
            continue
        members.setdefault((row.id, row.voice), []).append(row)
    named = {_stem(row.filename) for rows in members.values() for row in rows}
    faults += [f"{sounds[stem]}: {_GOLD} does not name it" for stem in sorted(sounds.keys() - named)]
    pairs = []
    for (number, voice), rows in members.items():
        sides = {
            role: tuple(
                sounds.get(_stem(row.filename), folder / row.filename) for row in rows if row.correct == role
            )
            for role in ("1", "0")
        }
        real = next((row for row in rows if row.correct == "1"), rows[0])
        groups = {"voice": voice} if voice else {}
        if name == "swuggy":
            kind = frequency_band(real.frequency)
            groups["vocabulary"] = "oov" if kind == "oov" else "in-vocabulary"
            cluster = real.word or None
        else:
            kind, cluster = real.type or "all", number
            groups |= {"paradigm": real.subtype} if real.subtype else {}
        pairs.append(
            Found(
                id=f"{number}-{voice}" if voice else number,
                better=sides["1"],
                worse=sides["0"],
                kind=kind,
                item=number,
                cluster=cluster,
                groups=groups,
            )
        )
    return pairs, faults


def _stem(filename: str) -> str:
    return Path(filename).stem if Path(filename).suffix.lower() in SUFFIXES else Path(filename).name


def frequency_band(frequency: str) -> str:
    """SWUGGY's band of a word: how often LibriSpeech has it; `oov` where it never does."""
    said = frequency.strip().lower()
    if not said:
        return "all"
    try:
        count = float(said)
    except ValueError:
        return said  # a band already, or oov
    if count < 1:
        return "oov"
    return next((f"{low}-{high}" for low, high in _BANDS if count <= high), ">100")


def _salmon_parts(source: Path) -> list[Path]:
    return [source / name for name in SALMON_PARTS if (source / name).is_dir()]


def _salmon(source: Path, _: Split | None) -> Read:
    """Of two samples of one id the lexicographically first is the better, as in the benchmark's own code."""
    parts = _salmon_parts(source) or ([source] if source.name in SALMON_PARTS else [])
    pairs, faults = [], []
    for part in parts:
        samples: dict[str, list[Path]] = {}
        for path in find_audio(part):
            if found := _SALMON.fullmatch(path.stem):
                samples.setdefault(found["id"], []).append(path)
            else:
                faults.append(f"{path}: is not named sample_<id>…")
        for number, paths in samples.items():
            name = f"{part.name}/{number}"
            pairs.append(
                Found(
                    id=name,
                    better=tuple(paths[:1]),
                    worse=tuple(paths[1:]),
                    kind=part.name,
                    cluster=name,
                )
            )
    return pairs, faults, "salmon"


def _paired_wavs(source: Path, _: Split | None) -> Read:
    """Names that end in their role, or begin with running numbers; a subfolder is a kind."""
    paths = list(find_audio(source))
    named = [path for path in paths if _ROLE_LAST.fullmatch(path.stem)]
    reader = _by_role if named else _by_number
    pairs, faults = reader(source, paths)
    return pairs, faults, source.name


def _by_role(source: Path, paths: Iterable[Path]) -> tuple[list[Found], list[str]]:
    sides: dict[str, dict[str, list[Path]]] = {}
    kinds: dict[str, str] = {}
    faults = []
    for path in paths:
        found = _ROLE_LAST.fullmatch(path.stem)
        if not found:
            faults.append(f"{path}: its name ends in no role (_{', _'.join(_ROLES)})")
            continue
        kind = _kind_of(source, path)
        name = found["id"] if kind == "all" else f"{kind}/{found['id']}"
        kinds[name] = kind
        both = sides.setdefault(name, {"better": [], "worse": []})
        both[_ROLES[found["role"].lower()]].append(path)
    pairs = [
        Found(id=name, better=tuple(both["better"]), worse=tuple(both["worse"]), kind=kinds[name])
        for name, both in sides.items()
    ]
    return pairs, faults


def _by_number(source: Path, paths: Iterable[Path]) -> tuple[list[Found], list[str]]:
    """The reference toolkit's layout: of each two numbers the even one is better."""
    numbered: dict[tuple[str, int], list[Path]] = {}
    faults = []
    for path in paths:
        if found := _NUMBER_FIRST.fullmatch(path.stem):
            numbered.setdefault((_kind_of(source, path), int(found["number"])), []).append(path)
        else:
            faults.append(f"{path}: its name begins with no number and ends in no role")
    # the toolkit goes by the order of numbers, which is told from ids only where none is missing
    pairs = []
    for kind, half in dict.fromkeys((kind, number // 2) for kind, number in numbered):
        name = str(half) if kind == "all" else f"{kind}/{half}"
        better, worse = (tuple(numbered.get((kind, 2 * half + side), ())) for side in (0, 1))
        pairs.append(Found(id=name, better=better, worse=worse, kind=kind))
    return pairs, faults


def _kind_of(source: Path, path: Path) -> str:
    folder = path.parent.relative_to(source)
    return "all" if folder == Path() else str(folder)


class _Row(msgspec.Struct):
    id: Annotated[str, Meta(min_length=1)]
    better: Annotated[str, Meta(min_length=1)]
    worse: Annotated[str, Meta(min_length=1)]
    group: str = ""
    item: str = ""
    cluster: str = ""
    voice: str = ""
    prompt_seconds: Annotated[float, Meta(ge=0)] | Literal[""] = 0.0


def _table(source: Path, _: Split | None) -> Read:
    rows: dict[str, list[_Row]] = {}
    faults = []
    for line, raw in read_rows(source):
        try:
            row = (
                msgspec.json.decode(raw, type=_Row, strict=False)
                if isinstance(raw, bytes)
                else msgspec.convert(raw, _Row, strict=False)
            )
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            faults.append(f"{source}:{line}: {str(error).replace('`', '')}")
            continue
        rows.setdefault(row.id, []).append(row)
    pairs = []
    for name, same in rows.items():
        first = same[0]
        pairs.append(
            Found(
                id=name,
                better=tuple(source.parent / row.better for row in same),
                worse=tuple(source.parent / row.worse for row in same),
                kind=first.group or "all",
                item=first.item or None,
                cluster=first.cluster or None,
                groups={"voice": first.voice} if first.voice else {},
                prompt_seconds=float(first.prompt_seconds or 0.0),
            )
        )
    return pairs, faults, source.name.split(".")[0]


_READERS: Mapping[str, Callable[[Path, Split | None], Read]] = {
    "swuggy": _slm21("swuggy"),
    "sblimp": _slm21("sblimp"),
    "salmon": _salmon,
    "paired-wavs": _paired_wavs,
    "table": _table,
}


def _cleaned(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or "benchmark"


def _order(name: str) -> tuple[tuple[int, str], ...]:
    """Numbers in names by their size."""
    return tuple(
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part
    )
