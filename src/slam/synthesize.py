"""Text → speech: the user's lines, or stories and pairs of the built-in grammar, spoken by a synthesizer.

Writes sound files, `manifest.jsonl` (a row an utterance) and, where pairs were asked for, `pairs.jsonl`.
Work is cut into shards; a shard's manifest is written after its sound, so an interrupted run goes on at the
first missing one.
"""

import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from slam.audio import write_audio
from slam.errors import ConfigError, InputError
from slam.pairs import PairRow, write_pair_rows
from slam.progress import bar
from slam.run import Results, effort, read_json_lines, read_lines, source, stage, write_json_lines
from slam.stories import Split, write_pairs, write_texts
from slam.synthesizers import Utterance, load_synthesizer

MANIFEST_FILE = "manifest.jsonl"
_FAILURES_FILE = "failures.jsonl"
KINDED = ("preferences", "storycloze")  # whose pairs `kinds` restricts


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """Settings of `slam synthesize`."""

    text: Path | None = source()
    """The user's own text: a .txt file with an utterance a line, or .jsonl with a "text" in each line."""
    texts: dict[str, int] = field(default_factory=dict)
    """How many texts of the built-in grammar: stories, sentences, phrases, words → count."""
    pairs: dict[str, int] = field(default_factory=dict)
    """How many pairs: preferences, swuggy, sblimp, storycloze, topic-storycloze → count."""
    kinds: tuple[str, ...] = ()
    """Kinds of contradiction in story pairs; all kinds if none is named."""
    split: Split = "train"
    """Which stories: no story is in two splits."""
    text_only: bool = False
    """Write the manifest without speaking, for a text language model."""
    synthesizer: str = "espeak"
    """Who speaks: a built-in synthesizer, or package.module:Name."""
    voices: tuple[str, ...] = ("en-us",)
    """Voices, drawn for each utterance; a pair keeps one voice on both sides."""
    rates: tuple[int, ...] = (180,)
    """Speaking rates in words per minute, drawn for each utterance."""
    sample_rate: int = 16_000
    """Sample rate of the sound files in Hz."""
    seed: int = 0
    """Decides texts, voices and rates."""
    shard_size: int = 200
    """Utterances in a unit of work."""
    num_workers: int = effort(lambda: os.cpu_count() or 1)
    """Processes that speak at the same time."""

    def __post_init__(self) -> None:
        if not (self.text or self.texts or self.pairs):
            raise ConfigError(
                "nothing to say: give text (a file), texts or pairs (counts of the built-in grammar)"
            )
        if not self.voices or not self.rates:
            raise ConfigError("voices and rates must each name at least one")
        if self.text_only and self.pairs:
            raise ConfigError("pairs are spoken: text_only cannot go with them")
        for table in ("texts", "pairs"):
            for name, count in getattr(self, table).items():
                if count < 1:
                    raise ConfigError(f"{table}.{name} = {count}: must be at least 1")
        for name, least in (("sample_rate", 8000), ("shard_size", 1), ("num_workers", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least {least}")


@dataclass(frozen=True)
class Line:
    """An utterance to be: what the manifest will say of it but for its sound."""

    id: str
    text: str
    source: str
    story: str | None
    voice: str
    rate: int
    side_start: int  # character at which a pair's side begins; 0 where there is none


@stage
def synthesize(config: SynthesizeConfig, out: Path) -> Results:
    """Speak the texts and pairs that `config` asks for into the folder `out`.

    Raises:
        InputError: the user's text is missing or empty.
        ConfigError: the grammar, the synthesizer or the voice does not exist.
    """
    lines, pairs = plan(config)
    if config.text_only:
        write_json_lines(out / MANIFEST_FILE, [asdict(line) for line in lines])
        return {"num_utterances": len(lines), "num_words": sum(len(line.text.split()) for line in lines)}
    synthesizer = load_synthesizer(config.synthesizer)
    for voice in config.voices:
        synthesizer.check_voice(voice)
    shards = [lines[i : i + config.shard_size] for i in range(0, len(lines), config.shard_size)]
    missing = [index for index in range(len(shards)) if not _rows_path(out, index).is_file()]
    with bar("speaking", len(lines)) as progress:
        progress.advance(sum(len(shard) for index, shard in enumerate(shards) if index not in missing))
        jobs = [(config.synthesizer, config.sample_rate, out, index, shards[index]) for index in missing]
        for count in _perform(jobs, config.num_workers):
            progress.advance(count)
    told = [row for index in range(len(shards)) for row in read_json_lines(_rows_path(out, index))]
    rows = [row for row in told if "audio" in row]
    failures = [row for row in told if "audio" not in row]
    write_json_lines(out / _FAILURES_FILE, failures)
    if not rows:
        raise InputError(f"nothing could be spoken, the first: {failures[0]['reason']}")
    starts = {row["id"]: row.pop("side_seconds") for row in rows}
    write_json_lines(out / MANIFEST_FILE, rows)
    if pairs:
        write_pair_rows(
            out,
            [
                PairRow(**p, chosen_start=starts[p["chosen"]], rejected_start=starts[p["rejected"]])
                for p in pairs
            ],
        )
    return {
        "num_utterances": len(rows),
        "num_failures": len(failures),
        "failures": [row["reason"] for row in failures[:20]],
        "num_pairs": len(pairs),
        "num_words": sum(len(row["text"].split()) for row in rows),
        "seconds_of_speech": round(sum(row["seconds"] for row in rows), 2),
        "synthesizer_version": synthesizer.version,
    }


def plan(config: SynthesizeConfig) -> tuple[list[Line], list[dict[str, Any]]]:
    """Every utterance that `config` asks for, and the pairs among them (rows without their times)."""
    lines: list[Line] = []
    pairs: list[dict[str, Any]] = []

    def say(name: str, text: str, origin: str, story: str | None, *, key: str, start: int = 0) -> None:
        generator = random.Random(f"{config.seed}-{key}")  # noqa: S311 - reproducible, not secret
        voice, rate = generator.choice(config.voices), generator.choice(config.rates)
        lines.append(Line(name, text, origin, story, voice, rate, start))

    for number, text in enumerate(_read_texts(config.text) if config.text else (), 1):
        say(f"line-{number:07d}", text, "text", None, key=f"line-{number}")
    try:
        for origin, count in config.texts.items():
            for item in write_texts(origin, count, split=config.split, seed=config.seed):
                say(item.id, item.text, item.source, item.story, key=item.id)
        for origin, count in config.pairs.items():
            for pair in write_pairs(
                origin,
                count,
                split=config.split,
                seed=config.seed,
                kinds=config.kinds if origin in KINDED else (),
            ):
                opening = f"{pair.prompt} " if pair.prompt else ""
                for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                    name = f"{pair.id}-{side}"
                    say(name, opening + text, origin, pair.story, key=pair.id, start=len(opening))
                pairs.append(
                    {
                        "id": pair.id,
                        "benchmark": pair.source,
                        "kind": pair.kind,
                        "chosen": f"{pair.id}-chosen",
                        "rejected": f"{pair.id}-rejected",
                        "reason": pair.reason,
                        "story": pair.story,
                    }
                )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return lines, pairs


def _read_texts(path: Path) -> list[str]:
    """The utterances of the user's file, blank lines left out."""
    if path.suffix == ".jsonl":
        texts = []
        for number, row in enumerate(read_json_lines(path), 1):
            if not isinstance(row.get("text"), str) or not row["text"].strip():
                raise InputError(f'{path}: row {number} has no "text"')
            texts.append(row["text"])
    else:
        texts = [line for line in read_lines(path) if line.strip()]
    if not texts:
        raise InputError(f"{path}: holds no text")
    return [" ".join(text.split()) for text in texts]


Job = tuple[str, int, Path, int, Sequence[Line]]


def _perform(jobs: Sequence[Job], num_workers: int) -> Iterator[int]:
    """Speak each shard, in processes of their own where there is enough to do; yield utterances done."""
    if num_workers == 1 or len(jobs) <= 1:
        yield from map(_speak_shard, jobs)
        return
    pool = ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=get_context("spawn"))
    try:
        yield from pool.map(_speak_shard, jobs)
    except BrokenProcessPool:
        raise InputError(
            "a process that spoke was killed (out of memory?); run again to go on, with fewer num_workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _speak_shard(job: Job) -> int:
    """Write a shard's sound, then its manifest."""
    name, sample_rate, out, index, lines = job
    synthesizer = load_synthesizer(name)
    rows = []
    for line in lines:
        utterance = Utterance(line.text, line.voice, line.rate)
        try:
            speech = synthesizer.synthesize([utterance], sample_rate)[0]
        except InputError as error:
            if line.source != "text":
                raise
            rows.append({"id": line.id, "reason": str(error)})  # a line of dashes ends no book
            continue
        path = Path("audio") / f"{index:05d}" / f"{line.id}.wav"
        write_audio(out / path, speech.audio)
        start = speech.seconds_at(line.side_start) if line.side_start else 0.0
        row = asdict(line) | {"audio": str(path), "seconds": speech.audio.seconds, "side_seconds": start}
        del row["side_start"]
        rows.append(row)
    write_json_lines(_rows_path(out, index), rows)
    return len(rows)


def _rows_path(out: Path, index: int) -> Path:
    return out / "shards" / f"{index:05d}.jsonl"
