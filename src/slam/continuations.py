"""A folder of spoken continuations, ours or another system's → samples: what is said, whole and in parts.

`slam generate` tells of its sounds in `continuations.jsonl`. Of any other folder every sound is a sample,
and where its prompt ends is what the user says.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam.audio import Audio, read_audio
from slam.errors import ConfigError, InputError, MismatchError
from slam.recordings import find_recordings
from slam.run import read_json_lines, read_run

CONTINUATIONS_FILE = "continuations.jsonl"
_REQUIRED = ("prompt", "model", "audio")


@dataclass(frozen=True)
class Sound:
    """A sound file, or a part of one."""

    path: Path
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None for all that follows
    units: tuple[int, ...] | None = None  # [N] that it speaks, where they are known

    @property
    def key(self) -> str:
        """What it is known by, where work on it is kept."""
        return f"{self.path} {self.start:g} {'' if self.end is None else f'{self.end:g}'}"

    def read(self) -> Audio:
        """Its samples, of which there may be none.

        Raises:
            InputError: the file cannot be read.
        """
        audio = read_audio(self.path)
        first = round(self.start * audio.sample_rate)
        last = None if self.end is None else round(self.end * audio.sample_rate)
        return Audio(audio.samples[first:last], audio.sample_rate)


@dataclass(frozen=True)
class Sample:
    """What a model made of a prompt."""

    model: str  # as it is reported
    id: str  # of the prompt, or the file's name
    whole: Sound  # prompt and continuation
    prompt: Sound | None  # None where it is not known apart
    continuation: Sound | None  # alone; None where it is not known apart, or where nothing follows the prompt
    units: tuple[int, ...] | None  # [N] of the continuation; None where they are not known
    prompt_units: tuple[int, ...] | None
    ended: bool | None  # whether the model ended it by itself
    seconds: float | None  # of the whole; None where the file alone knows


def read_continuations(folders: Mapping[str, Path], prompt_seconds: float | None) -> list[Sample]:
    """The samples of every folder, in the order of their rows or file names.

    A folder with one model is reported by its own name in `folders`; models of a folder with several by
    `name/model`.

    Args:
        folders: name → folder.
        prompt_seconds: how long the prompt is in sounds that `slam generate` did not make; None if unknown.

    Raises:
        InputError: a folder holds no continuations, or its rows cannot be read.
    """
    samples: list[Sample] = []
    for name, folder in folders.items():
        if (folder / CONTINUATIONS_FILE).is_file():
            samples += _generated(name, folder)
        else:
            samples += [_foreign(name, one.id, one.path, prompt_seconds) for one in find_recordings(folder)]
    if twice := _repeated([(sample.model, sample.id) for sample in samples]):
        raise InputError(f"continuations: {twice[0]} has two continuations called {twice[1]!r}")
    return samples


def _repeated(keys: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    seen: set[tuple[str, str]] = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    return None


def _generated(name: str, folder: Path) -> Iterator[Sample]:
    """The samples of a folder that `slam generate` wrote."""
    path = folder / CONTINUATIONS_FILE
    rows = read_json_lines(path)
    for number, row in enumerate(rows, 1):
        if absent := [key for key in _REQUIRED if key not in row]:
            raise InputError(f"{path}:{number}: lacks {', '.join(absent)}; generate again")
    prompts = {row["prompt"]: row for row in rows if row["model"] is None}
    made = [row for row in rows if row["model"] is not None]
    if not made:
        raise InputError(f"{path}: holds no continuations")
    models = {row["model"] for row in made}
    for row in made:
        prompt = prompts.get(row["prompt"], {})
        # without a sound of the continuation alone nothing is asked of its prompt's
        alone = "alone" in row
        said, heard = _units(row), _units(prompt)
        both = None if said is None or heard is None else heard + said
        yield Sample(
            model=name if len(models) == 1 else f"{name}/{row['model']}",
            id=row["prompt"],
            whole=Sound(folder / row["audio"], units=both),
            prompt=Sound(folder / prompt["audio"], units=heard) if alone and prompt else None,
            continuation=Sound(folder / row["alone"], units=said) if row.get("alone") else None,
            units=said,
            prompt_units=heard,
            ended=row.get("ended"),
            seconds=row.get("seconds"),
        )


def _units(row: Mapping[str, Any]) -> tuple[int, ...] | None:
    return None if row.get("units") is None else tuple(row["units"])


def _foreign(name: str, identifier: str, path: Path, prompt_seconds: float | None) -> Sample:
    return Sample(
        model=name,
        id=identifier,
        whole=Sound(path),
        prompt=None if prompt_seconds is None else Sound(path, 0.0, prompt_seconds),
        continuation=None if prompt_seconds is None else Sound(path, prompt_seconds),
        units=None,
        prompt_units=None,
        ended=None,
        seconds=None,
    )


def check_tokenizer(folders: Mapping[str, Path], setting: str, other: Path, fingerprint: str) -> None:
    """Refuse what is of other units than the continuations, where both are known.

    Args:
        folders: of the continuations: name → folder.
        setting: the setting that names what is held against them.
        other: what it names.
        fingerprint: of its tokenizer.

    Raises:
        ConfigError: no folder is of units.
        MismatchError: the tokenizers differ.
    """
    if not any((folder / CONTINUATIONS_FILE).is_file() for folder in folders.values()):
        raise ConfigError(f"{setting}: no continuations here are of units; leave it out")
    for folder in folders.values():
        run = read_run(folder)
        spoken = run.results.get("tokenizer_fingerprint") if run is not None else None
        if spoken not in (None, fingerprint):
            raise MismatchError(
                f"{other}: of the tokenizer {fingerprint}, but {folder} holds units of {spoken}; use that of "
                "the models' tokenizer"
            )
