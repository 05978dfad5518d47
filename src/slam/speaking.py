"""Lines to be spoken → sound files and rows that tell of them, shard by shard, in several processes.

A shard's rows are written after its sound, so where they are, nothing is missing.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from slam.audio import write_audio
from slam.errors import InputError
from slam.normalization import Normalization, normalizer
from slam.run import write_json_lines
from slam.synthesizers import Speech, Synthesizer, Utterance, load_synthesizer

_AHEAD = 2  # shards a process that wait to be spoken, or for someone to take them


@dataclass(frozen=True)
class Line:
    """An utterance to be: what the manifest will say of it but for its sound."""

    id: str
    text: str
    source: str
    story: str | None
    voice: str
    rate: int  # words per minute
    opening: str = ""  # spoken before the text, in one breath: a pair's prompt
    given: bool = False  # by the user: it is normalised, and if it cannot be spoken, counted


@dataclass(frozen=True)
class Manner:
    """How lines are spoken and kept."""

    synthesizer: str
    folder: Path | None  # of its voices or weights
    sample_rate: int  # Hz
    suffix: str  # of the sound files
    normalization: Normalization


@dataclass(frozen=True)
class Job:
    """A shard's lines, and where their sound and their rows go."""

    manner: Manner
    index: int
    lines: Sequence[Line]
    root: Path  # to which the rows' paths are relative
    audio: Path  # folder in `root`
    rows: Path  # file


def perform(jobs: Iterable[Job], num_workers: int) -> Iterator[Job]:
    """Speak the shards, in processes of their own where there is enough to do; yield each when it is done.

    Jobs are taken as they are needed, a few ahead of what was done.

    Raises:
        InputError: a process was killed, or a line that nobody gave cannot be spoken.
    """
    jobs = iter(jobs)
    first = list(islice(jobs, 2))
    jobs = chain(first, jobs)
    if num_workers == 1 or len(first) <= 1:
        try:
            yield from map(speak_shard, jobs)
        finally:
            _ready.cache_clear()  # a voice's network need not outlive the stage
        return
    pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"))
    try:
        waiting: list[Future[Job]] = []
        for job in jobs:
            waiting.append(pool.submit(speak_shard, job))
            if len(waiting) > _AHEAD * num_workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
    except BrokenProcessPool:
        raise InputError(
            "a process that spoke was killed (out of memory?); run again to go on, with fewer num_workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def speak_shard(job: Job) -> Job:
    """Write a shard's sound, then its rows: of each line spoken, or `id` and `reason` of one that was not."""
    synthesizer = _ready(job.manner.synthesizer, job.manner.folder)
    rows = []
    for line in job.lines:
        try:
            row, start = described(line, job.manner.normalization)
            (speech,) = synthesizer.synthesize(
                [Utterance(row["text"], line.voice, line.rate)], job.manner.sample_rate
            )
            if start and not any(character >= start for character, _ in speech.word_seconds):
                raise InputError(_seamless(synthesizer, speech, row["text"][start:]))
        except InputError as error:
            if not line.given:
                raise
            rows.append({"id": line.id, "reason": str(error)})  # a line of dashes ends no book
            continue
        path = job.audio / f"{line.id}{job.manner.suffix}"
        write_audio(job.root / path, speech.audio)
        row |= {"audio": str(path), "seconds": speech.audio.seconds}
        row["side_seconds"] = speech.seconds_at(start) if start else 0.0
        if speech.word_seconds:
            row["words"] = [[character, round(seconds, 3)] for character, seconds in speech.word_seconds]
        rows.append(row)
    write_json_lines(job.rows, rows)
    return job


def described(line: Line, normalization: Normalization) -> tuple[dict[str, Any], int]:
    """The line's row without its sound, and the character of its text at which it begins behind its opening.

    Raises:
        InputError: no text is left of it.
    """
    opening, text, original = line.opening, line.text, {}
    if line.given:
        opening, text = (normalizer(normalization)(part) for part in (line.opening, line.text))
        if not text:
            raise InputError("holds no text")
        written = " ".join(f"{line.opening} {line.text}".split())
        if written != f"{opening} {text}".strip():
            original = {"original": written}
    opening = f"{opening} " if opening else ""
    row = {
        "id": line.id,
        "text": opening + text,
        "source": line.source,
        "story": line.story,
        "voice": line.voice,
        "rate": line.rate,
    }
    return row | original, len(opening)


def _seamless(synthesizer: Synthesizer, speech: Speech, side: str) -> str:
    """Why it is not known where the side begins."""
    if speech.word_seconds:
        return f"{synthesizer.name} spoke no word of {side!r}"
    return f"{synthesizer.name} tells no word's time, and pairs need that of their sides; use another one"


@lru_cache(maxsize=1)
def _ready(name: str, folder: Path | None) -> Synthesizer:
    """Loaded once in each process: a neural voice takes seconds."""
    return load_synthesizer(name, folder)
