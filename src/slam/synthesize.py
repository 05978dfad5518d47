"""Text → speech, or units of it: the user's texts and pairs, or those of the built-in grammar.

Writes sound files, `manifest.jsonl` (a row an utterance) and, where pairs were asked for, `pairs.jsonl`; with
`units_only` the folder of units that `slam encode` would make of them, and no sound is kept. Work is cut into
shards, whose lines are read when their turn comes; an interrupted run goes on at the first missing one, and
several processes may share them.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal

from slam.audio import OPUS_RATES
from slam.encoding import encoder, finish_encoded, given_tokenizer, inputs_path, write_outcomes
from slam.errors import ConfigError, InputError
from slam.pairs import write_pair_rows
from slam.progress import bar
from slam.recordings import MANIFEST_FILE, Recording
from slam.run import Results, effort, read_json_lines, replacing, source, stage, write_json_lines
from slam.shares import Share, one_process, read_share
from slam.speaking import Job, Line, Manner, described, perform
from slam.spoken_pairs import Spoken, spoken_pairs
from slam.synthesizers import load_synthesizer
from slam.text_plan import Plan, PlanConfig, plan
from slam.tokenizers import SpeechTokenizer
from slam.units import shard_path
from slam.utterances import Encoder

_FAILURES_FILE = "failures.jsonl"
_PASSING = "passing"  # folder of the sound that is on its way to units


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig(PlanConfig):
    """Settings of `slam synthesize`."""

    balance_lengths: bool = True
    """Leave out pairs of `pairs_from` until better sides are longer as often as shorter."""
    text_only: bool = False
    """Write the manifest without speaking, for a text language model."""
    synthesizer: str = "espeak"
    """Who speaks: a built-in synthesizer, or package.module:Name."""
    synthesizer_folder: Path | None = source()
    """Folder of the synthesizer's voices or weights, for one that takes it."""
    sample_rate: int = 16_000
    """Sample rate of the sound files in Hz."""
    audio_format: Literal["wav", "flac", "opus"] = "wav"
    """Format of the sound files; opus loses a little, wav and flac hold 16 bits."""
    units_only: Path | None = source()
    """A folder of units whose tokenizer encodes the speech at once: units are kept, and no sound."""
    tokenizer: str | None = None
    """The name of that tokenizer, package.module:Name, if it is not a built-in one."""
    shard_size: int = 200
    """Utterances in a unit of work."""
    shard: str | None = effort(None)
    """I/N: speak only each N-th shard, from the I-th on; the last process to end joins them."""
    num_workers: int = effort(lambda: os.cpu_count() or 1)
    """Processes that speak at the same time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_only and self.has_pairs:
            raise ConfigError("pairs are spoken: text_only cannot go with them")
        if self.text_only and (self.units_only or self.shard):
            raise ConfigError("text_only speaks nothing: leave out units_only and shard")
        for name, least in (("sample_rate", 8000), ("shard_size", 1), ("num_workers", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least {least}")
        self._check_sound()
        read_share(self.shard)

    def _check_sound(self) -> None:
        if self.units_only and self.audio_format != "wav":
            raise ConfigError("units_only keeps no sound: leave out audio_format")
        if self.tokenizer and not self.units_only:
            raise ConfigError("tokenizer names that of units_only; give both or neither")
        if self.audio_format == "opus" and self.sample_rate not in OPUS_RATES:
            known = ", ".join(map(str, OPUS_RATES))
            raise ConfigError(f"sample_rate = {self.sample_rate}: opus has {known} Hz")


@stage
def synthesize(config: SynthesizeConfig, out: Path) -> Results:
    """Speak the texts and pairs that `config` asks for into the folder `out`.

    Raises:
        InputError: the user's text is missing or empty, or the data set cannot be reached.
        ConfigError: the grammar, the synthesizer or the voice does not exist.
        Unfinished: with `config.shard`, other processes have shards yet to speak.
    """
    if config.text_only:
        return _write_text(config, plan(config, out), out)
    synthesizer = load_synthesizer(config.synthesizer, config.synthesizer_folder)
    for voice in config.voices:
        synthesizer.check_voice(voice)
    with one_process(out, config.shard):
        planned = plan(config, out)
        for voice in sorted(planned.voices - set(config.voices)):
            synthesizer.check_voice(voice)
        tokenizer = None
        if config.units_only is not None:
            tokenizer = given_tokenizer(config.units_only, out, config.tokenizer)
    num_shards = _speak(config, planned, out, tokenizer)
    with one_process(out, config.shard):
        left = [index for index in range(num_shards) if not _done(config, out, index)]
        read_share(config.shard).check_joined(out, left, num_shards)
        results = _join(config, planned, out, num_shards)
        if tokenizer:
            results |= finish_encoded(out, num_shards, tokenizer) | {
                "num_utterances": results["num_utterances"]
            }
    return results | planned.about | {"synthesizer_version": synthesizer.version}


def _write_text(config: SynthesizeConfig, planned: Plan, out: Path) -> Results:
    """The manifest of what would be said."""
    num_utterances = num_words = num_blank = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal num_utterances, num_words, num_blank
        for line in planned.lines():
            try:
                row, _ = described(line, config.normalization)
            except InputError:
                num_blank += 1
                continue
            num_utterances += 1
            num_words += len(row["text"].split())
            yield row

    _write_rows(out / MANIFEST_FILE, rows())
    counts = {"num_utterances": num_utterances, "num_words": num_words}
    return counts | ({"num_failures": num_blank} if num_blank else {}) | planned.about


def _speak(config: SynthesizeConfig, planned: Plan, out: Path, tokenizer: SpeechTokenizer | None) -> int:
    """Speak the shards that are missing of this process's; how many there are of all."""
    from threadpoolctl import threadpool_limits

    share = read_share(config.shard)
    shards = Shards(planned, config.shard_size, share, lambda index: _done(config, out, index))
    with (
        bar("speaking", planned.num_lines) as progress,
        threadpool_limits(1) if tokenizer else nullcontext(),
        ThreadPoolExecutor(config.num_workers) as threads,
    ):
        at_work = None if tokenizer is None else encoder(tokenizer, threads, whole=config.has_pairs)
        progress.advance(shards.start * config.shard_size)
        jobs = (_job(config, out, index, lines) for index, lines in shards.missing(progress.advance))
        for job in perform(jobs, config.num_workers):
            if at_work:
                _encode(at_work, job, out)
            progress.advance(len(job.lines))
    if not shards.number:
        raise InputError(f"{config.dataset or config.dataset_folder}: holds no rows")
    return shards.number


class Shards:
    """The lines cut into shards, as they are read: from the first that is still to be spoken on."""

    def __init__(self, planned: Plan, size: int, share: Share, done: Callable[[int], bool]) -> None:
        self._planned, self._size, self._share, self._done = planned, size, share, done
        first = next(index for index in count(share.first, share.step) if not done(index))
        self.start = max(0, first - share.step + 1)  # all before are of shards that must be there
        self.number = self.start  # of the shards there are, once `missing` has gone through

    def missing(self, skipped: Callable[[int], None]) -> Iterator[tuple[int, list[Line]]]:
        """`(index, lines)` of each shard of the share that is not done; tell `skipped` of other lines."""
        lines = self._planned.lines(self.start * self._size)
        while shard := list(islice(lines, self._size)):
            index, self.number = self.number, self.number + 1
            if index in self._share and not self._done(index):
                yield index, shard
            else:
                skipped(len(shard))


def _job(config: SynthesizeConfig, out: Path, index: int, lines: list[Line]) -> Job:
    manner = Manner(
        synthesizer=config.synthesizer,
        folder=config.synthesizer_folder,
        sample_rate=config.sample_rate,
        suffix=f".{config.audio_format}",
        normalization=config.normalization,
    )
    audio, rows = Path("audio") / f"{index:05d}", _rows_path(out, index)
    if config.units_only:
        audio = Path(_PASSING) / f"{index:05d}"
        rows = out / audio / MANIFEST_FILE
        rmtree(out / audio, ignore_errors=True)  # what an interrupted run left
    return Job(manner, index, lines, out, audio, rows)


def _encode(at_work: Encoder, job: Job, out: Path) -> None:
    """Make the shard's sound units, and remove it."""
    rows = read_json_lines(job.rows)
    spoken = [row for row in rows if "reason" not in row]
    recordings = [Recording(row["id"], out / row.pop("audio")) for row in spoken]
    outcomes = dict(at_work.outcomes(recordings))
    for number, row in enumerate(spoken):
        told = outcomes[number].row
        row |= {key: told[key] for key in told if key != "seconds"}
    inputs = [row if "fate" in row else row | {"fate": "failed"} for row in rows]
    write_outcomes(out, job.index, [outcomes[number] for number in range(len(spoken))], inputs)
    rmtree(out / job.audio)


def _join(config: SynthesizeConfig, planned: Plan, out: Path, num_shards: int) -> Results:
    """Write what describes the folder as a whole: a row of the manifest is in memory at a time."""
    sided = {name for pair in planned.pairs for name in (pair.chosen, pair.rejected)}
    spoken: dict[str, Spoken] = {}
    failures: list[dict[str, Any]] = []
    told = {"num_utterances": 0, "num_words": 0, "seconds": 0.0}

    def rows() -> Iterator[dict[str, Any]]:
        for index in range(num_shards):
            for row in read_json_lines((inputs_path if config.units_only else _rows_path)(out, index)):
                if "reason" in row:
                    failures.append({"id": row["id"], "reason": row["reason"]})
                    continue
                start = row.pop("side_seconds")
                if row["id"] in sided:
                    spoken[row["id"]] = Spoken(start, row["seconds"])
                told["num_utterances"] += 1
                told["num_words"] += len(row["text"].split())
                told["seconds"] += row["seconds"]
                yield row

    _write_rows(out / MANIFEST_FILE, rows())
    write_json_lines(out / _FAILURES_FILE, failures)
    if not told["num_utterances"]:
        raise InputError(f"nothing could be spoken, the first: {failures[0]['reason']}")
    balanced = planned.built if config.balance_lengths else frozenset()
    pairs, counts = spoken_pairs(planned.pairs, spoken, balanced, config.seed)
    if pairs:
        write_pair_rows(out, pairs)
    rmtree(out / _PASSING, ignore_errors=True)
    return {
        "num_utterances": told["num_utterances"],
        "num_failures": len(failures),
        "failures": [row["reason"] for row in failures[:20]],
        **counts,
        "num_words": told["num_words"],
        "seconds_of_speech": round(told["seconds"], 2),
    }


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line as they come, whole or not at all."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _done(config: SynthesizeConfig, out: Path, index: int) -> bool:
    return (shard_path if config.units_only else _rows_path)(out, index).is_file()


def _rows_path(out: Path, index: int) -> Path:
    return out / "shards" / f"{index:05d}.jsonl"
