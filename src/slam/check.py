"""A recipe → what running it would take, step by step, and what is missing; nothing is made or fetched."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from slam.amounts import WAV_BYTES_A_SECOND, Amount, count, duration, of_brought
from slam.cards import Card, card_of, find_card
from slam.errors import InputError, SlamError
from slam.forecast import Forecast, Known, forecast, of_done
from slam.recipe import Recipe, Step
from slam.run import identity, read_run, state_of

_GIB = 2**30
_MOST_NAMES = 5  # of what a step reads, in the table


@dataclass(frozen=True)
class Row:
    """A step, and what making it would take."""

    step: Step
    state: str  # "done", "started", "new", "other" or "foreign", as `slam.run` has them
    forecast: Forecast
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """What a recipe would take on this machine."""

    rows: tuple[Row, ...]
    machine: str  # what the figures are for
    missing: tuple[str, ...]  # a line each: what, and how it is to be had
    downloads: tuple[str, ...]  # of the hub, a line each
    disk: float  # bytes that the steps still to be made need at once, at most
    free_disk: float

    @property
    def seconds(self) -> float:
        """Of training, in steps that are still to be made."""
        return sum(row.forecast.seconds or 0.0 for row in self.rows if row.state != "done")

    @property
    def tokens(self) -> float:
        """That these are trained on."""
        return sum(row.forecast.trained_tokens or 0.0 for row in self.rows if row.state != "done")


def check_recipe(recipe: Recipe) -> Check:
    """Look a recipe through.

    Args:
        recipe: loaded with `missing_allowed`.

    Raises:
        ConfigError: the recipe is written for a GPU that is not known.
    """
    card, cards, machine, missing = _machine(recipe)
    amounts: dict[Path, Amount] = {}
    for name, path in _outside(recipe):
        amounts[path] = of_brought(path, recipe.data.get(name))
    rows: list[Row] = []
    for step in recipe.steps:
        known = Known(amounts, card, cards)
        made = forecast(step, known)
        state = _state(step)
        run = read_run(step.out) if state == "done" else None
        amounts[step.out] = made.makes if run is None else of_done(run, made)
        rows.append(Row(step, state, made, _names(step, recipe)))
    left = [row for row in rows if row.state != "done"]
    for row in left:
        missing += [_described(name, meaning, recipe) for name, meaning in row.step.missing.items()]
        missing += [f"step {row.step.name!r}: {need}" for need in row.forecast.needs]
        if row.state == "foreign":
            missing.append(f"{row.step.out}: is not empty and no run of slam; choose another --folder")
    wanted = dict.fromkeys(name for row in left for name in row.forecast.downloads)
    downloads, unreachable = _downloads(list(wanted))
    missing += unreachable
    disk = sum(row.forecast.disk for row in left)
    disk += max((row.forecast.passing_disk for row in left), default=0.0)
    free = float(shutil.disk_usage(_nearest(recipe.folder)).free)
    if disk > free:
        missing.append(
            f"{recipe.folder}: about {disk / 1e9:,.0f} GB of disk, of which {free / 1e9:,.0f} are free; "
            "give another --folder"
        )
    return Check(tuple(rows), machine, tuple(dict.fromkeys(missing)), downloads, disk, free)


def _machine(recipe: Recipe) -> tuple[Card | None, int, str, list[str]]:
    """The card and how many, in words too, and what of it is missing here."""
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    asked = recipe.machine
    named = find_card(asked.gpu) if asked is not None else None
    here = torch.cuda.get_device_name() if found else "this machine's CPU"
    if asked is None or named is None:
        return card_of(here), 1, here, []
    if found >= asked.gpus:
        return card_of(here) or named, asked.gpus, f"{asked.gpus} x {here}", []
    words = f"{asked.gpus} x {named.name}, {named.memory_gib:g} GiB each, which is not here: estimates"
    return named, asked.gpus, words, [f"{asked.gpus} x {named.name}: torch finds {found} GPUs here"]


def _outside(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    """The inputs that no step makes."""
    made = {step.out for step in recipe.steps}
    for step in recipe.steps:
        yield from ((str(path), path) for path in step.sources if path not in made)


def _names(step: Step, recipe: Recipe) -> tuple[str, ...]:
    made = {other.out: other.name for other in recipe.steps}
    names = tuple(dict.fromkeys(made.get(path, str(path)) for path in step.sources))
    return names if len(names) <= _MOST_NAMES else (f"{len(names)} steps before",)


def _state(step: Step) -> str:
    """What the step's folder holds for it; new, where its inputs are not there yet."""
    with suppress(InputError):
        return state_of(step.out, identity(step.stage, step.config)[0])
    return "new"


def _described(name: str, meaning: str, recipe: Recipe) -> str:
    brought = recipe.data.get(name)
    if brought is None:
        return meaning
    sizes = [
        f"{count(size)} {unit}"
        for size, unit in ((brought.hours, "h"), (brought.tokens, "tokens"), (brought.pairs, "pairs"))
        if size is not None
    ]
    if brought.hours is not None:
        gigabytes = brought.hours * 3600 * WAV_BYTES_A_SECOND / 1e9
        sizes.append(f"{gigabytes:,.0f} GB as 16-bit wav at 16 kHz, about half as FLAC")
    about = ", ".join((brought.about, *sizes)) if brought.about else ", ".join(sizes)
    return f"{name}: {about or 'is not there'}; get it: {brought.get or 'the recipe does not say where'}"


def _downloads(names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Of the hub's models, which will be fetched, and which cannot be."""
    from huggingface_hub import constants, try_to_load_from_cache

    found, unreachable = [], []
    for pinned in names:
        name, _, commit = pinned.partition("@")
        if isinstance(try_to_load_from_cache(name, "config.json", revision=commit or None), str):
            found.append(f"{name}: in the hub's cache")
        elif constants.HF_HUB_OFFLINE:
            unreachable.append(f"{name}: not in the hub's cache, and HF_HUB_OFFLINE is set; fetch it first")
        else:
            found.append(f"{name}: fetched from the hub when its step begins")
    return tuple(found), unreachable


def _nearest(folder: Path) -> Path:
    """`folder`, or the nearest above it that is there."""
    path = folder.absolute()
    while not path.exists():
        path = path.parent
    return path


def table(checked: Check) -> Table:
    """A row a step."""
    found = Table(title=f"for {checked.machine}", title_justify="left", title_style="")
    for heading, justify in (
        ("step", "left"), ("stage", "left"), ("from", "left"), ("makes", "left"),
        ("tokens", "right"), ("trains", "right"), ("memory", "right"), ("disk", "right"), ("", "left"),
    ):  # fmt: skip
        found.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    words = {"done": "done", "started": "begun", "other": "to be made again", "foreign": "in the way"}
    for row in checked.rows:
        told = row.forecast
        found.add_row(
            row.step.name, row.step.stage, ", ".join(row.reads), told.says,
            count(told.trained_tokens or told.makes.tokens), duration(told.seconds),
            f"{told.memory / _GIB:.1f} GiB" if told.memory else "", _size(told.disk),
            words.get(row.state, "lacks input" if row.step.missing else ""),
        )  # fmt: skip
    return found


def _size(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 5e7 else f"{number / 1e6:,.1f} MB" if number else ""  # noqa: PLR2004


def lines(checked: Check) -> Iterator[str]:
    """What is to be said below the table."""
    trains = f"{duration(checked.seconds)} of training" if checked.seconds else ""
    if trains and checked.tokens:
        trains += f" on {count(checked.tokens)} tokens"
    disk = f"{_size(checked.disk) or '0 MB'} of disk ({_size(checked.free_disk)} free)"
    yield ", ".join(filter(None, (trains, disk)))
    if trains:
        yield "preparing, encoding, validating and scoring come on top: how long they take is not estimated"
    yield from (f"hub: {line}" for line in checked.downloads)
    yield from (f"missing: {line}" for line in checked.missing)


def refuse(checked: Check, path: Path) -> None:
    """Say in one line that the recipe cannot run yet.

    Raises:
        SlamError: something is missing; the line names the first thing.
    """
    if checked.missing:
        more = f" (and {len(checked.missing) - 1} more, above)" if len(checked.missing) > 1 else ""
        raise SlamError(f"{path}: cannot run yet: {checked.missing[0]}{more}")
