"""Folders of benchmark pairs, encoded or as recordings → every utterance's units, by a model's tokenizer.

Recordings are encoded once: their units are kept under the fingerprints of the tokenizer and of the sound, so
that a second model of the same tokenizer, or the same model tomorrow, costs no encoding.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam.encoding import encoder, failed, finish_encoded, inputs_path, write_outcomes
from slam.errors import InputError
from slam.pairs import PAIRS_FILE, PairRow, read_pair_rows
from slam.progress import bar
from slam.protocols import Utterances
from slam.recordings import MANIFEST_FILE, Recording, find_recordings
from slam.run import digest, read_json, read_json_lines, write_json
from slam.tokenizers import ABOUT_FILE, SpeechTokenizer, load_tokenizer
from slam.units import TOKENIZER_FOLDER, UNITS_FILE, UnitsFolder, check_spoken, read_units, shard_path

_SHARD_SIZE = 1000  # recordings
_SOUND_FILE = "sound.json"  # in a cached folder: the digests of its recordings


@dataclass(frozen=True)
class Benchmark:
    """A folder of pairs, of one set or of several."""

    path: Path
    rows: list[PairRow]

    @property
    def is_encoded(self) -> bool:
        """Whether it holds units, and no recordings to encode."""
        return (self.path / UNITS_FILE).is_file()


def open_benchmark(path: Path) -> Benchmark:
    """The pairs of a folder of units or of recordings.

    Raises:
        InputError: it is neither, or holds no pairs.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder of benchmark pairs")
    missing = [name for name in (PAIRS_FILE,) if not (path / name).is_file()]
    if not missing and not any((path / name).is_file() for name in (UNITS_FILE, MANIFEST_FILE)):
        missing = [f"{UNITS_FILE} or {MANIFEST_FILE}"]
    if missing:
        raise InputError(
            f"{path}: holds no benchmark pairs ({missing[0]} is missing); give a folder that "
            "`slam import-benchmark`, `slam synthesize` or `slam encode` wrote"
        )
    return Benchmark(path, read_pair_rows(path))


def utterances(rows: Sequence[PairRow], units: UnitsFolder, where: Path) -> list[Utterances]:
    """The units of both sides of each pair.

    Raises:
        InputError: a pair names an utterance that the units do not have.
    """
    by_name = units.by_name()
    for row in rows:
        for name in (row.chosen, row.rejected):
            if name not in by_name:
                raise InputError(f"{where}: pair {row.id!r} names the utterance {name!r}, which is not here")
    return [Utterances(row, by_name[row.chosen], by_name[row.rejected]) for row in rows]


@dataclass(frozen=True)
class Encoders:
    """The tokenizers at hand, and where what they make is kept."""

    folders: Mapping[str, Path]  # fingerprint → a folder with the tokenizer
    named: str | None  # the tokenizer's name, where it is not a built-in one
    cache: Path
    num_workers: int

    def units(self, benchmark: Benchmark, name: str, fingerprint: str) -> UnitsFolder:
        """The units of a benchmark by the tokenizer of this fingerprint, encoded now if they never were.

        Args:
            benchmark: encoded, or recordings.
            name: the tokenizer's, for the line that says that it is missing.
            fingerprint: of the model's tokenizer.

        Raises:
            InputError: the tokenizer was not given, or a recording cannot be encoded.
            MismatchError: the benchmark was encoded by another one.
        """
        if benchmark.is_encoded:
            units = read_units(benchmark.path)
            spoken = (units.tokenizer, units.tokenizer_fingerprint)
            check_spoken(spoken, (name, fingerprint), benchmark.path)
            return units
        if fingerprint not in self.folders:
            known = f"; given: {', '.join(self.folders)}" if self.folders else ""
            raise InputError(
                f"{benchmark.path}: holds recordings, and the model's tokenizer, {name} {fingerprint}, is "
                f"needed to encode them{known}; give tokenizer_from, a folder that `slam encode` or "
                "`slam fit-units` wrote with it"
            )
        return self._encoded(benchmark, fingerprint)

    def _encoded(self, benchmark: Benchmark, fingerprint: str) -> UnitsFolder:
        from filelock import FileLock

        needed = {name for row in benchmark.rows for name in (row.chosen, row.rejected)}
        found = sorted(find_recordings(benchmark.path), key=lambda one: one.id)
        recordings = [one for one in found if one.id in needed]
        if absent := needed - {one.id for one in recordings}:
            raise InputError(
                f"{benchmark.path}: a pair names the utterance {min(absent)!r}, which is not here"
            )
        sound = sound_digests(benchmark.path, recordings, self.num_workers)
        kept = self.cache / fingerprint / digest(sound)
        try:
            kept.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{kept}: cannot write here ({error.strerror}); choose another cache") from None
        with FileLock(kept / ".lock"):
            if not (kept / UNITS_FILE).is_file():
                self._encode(benchmark, recordings, self.folders[fingerprint], kept)
                write_json(kept / _SOUND_FILE, sound)
        return read_units(kept)

    def _encode(self, benchmark: Benchmark, recordings: Sequence[Recording], folder: Path, out: Path) -> None:
        """Encode recordings into `out`, shard by shard, so that an interrupted run goes on."""
        from threadpoolctl import threadpool_limits

        tokenizer: SpeechTokenizer = load_tokenizer(folder, named=self.named)
        shards = [recordings[i : i + _SHARD_SIZE] for i in range(0, len(recordings), _SHARD_SIZE)]
        with (
            bar(f"encoding {benchmark.path.name}", len(recordings)) as progress,
            threadpool_limits(1),
            ThreadPoolExecutor(self.num_workers) as workers,
        ):
            at_work = encoder(tokenizer, workers, whole=True)
            for index, shard in enumerate(shards):
                if not shard_path(out, index).is_file():
                    outcomes = dict(at_work.outcomes(shard))
                    write_outcomes(out, index, [outcomes[number] for number in range(len(shard))])
                progress.advance(len(shard))
        lost = [
            row for index in range(len(shards)) for row in failed(read_json_lines(inputs_path(out, index)))
        ]
        if lost:
            for index in range(len(shards)):  # mended files have other digests, but these may be waited for
                shard_path(out, index).unlink(missing_ok=True)
            raise InputError(
                f"{benchmark.path}: {len(lost)} of {len(recordings)} recordings cannot be encoded, the "
                f"first: {lost[0]['reason']}; mend them, or leave their pairs out"
            )
        finish_encoded(out, len(shards), tokenizer)


def tokenizers_in(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders of units or of tokenizers → fingerprint of each one's tokenizer → where it is kept.

    Raises:
        InputError: a folder holds no tokenizer.
    """
    found: dict[str, Path] = {}
    about: dict[str, Any]
    for folder in folders:
        inside = folder / TOKENIZER_FOLDER
        place = inside if (inside / ABOUT_FILE).is_file() else folder
        about = read_json(place / ABOUT_FILE) if (place / ABOUT_FILE).is_file() else {}
        if "fingerprint" not in about:  # a language model's folder has a file of that name too
            raise InputError(
                f"{folder}: holds no speech tokenizer; give a folder that `slam encode` or `slam fit-units` "
                "wrote"
            )
        found[str(about["fingerprint"])] = place
    return found


def sound_digests(folder: Path, recordings: Sequence[Recording], num_workers: int) -> list[tuple[str, str]]:
    """Id and SHA-256 of each recording's file, by id.

    What the manifest says is believed as long as the file has the size and the time that were noted with it.

    Raises:
        InputError: a file cannot be read.
    """
    manifest = folder / MANIFEST_FILE
    noted = {row["id"]: row for row in read_json_lines(manifest)} if manifest.is_file() else {}

    def of(recording: Recording) -> tuple[str, str]:
        row = noted.get(recording.id, {})
        try:
            stat = recording.path.stat()
            if (row.get("bytes"), row.get("modified_ns")) == (stat.st_size, stat.st_mtime_ns) and row.get(
                "sha256"
            ):
                return recording.id, str(row["sha256"])
            return recording.id, _hashed(recording.path)
        except OSError as error:
            raise InputError(f"{recording.path}: cannot be read ({error.strerror})") from None

    with ThreadPoolExecutor(num_workers) as workers:
        return sorted(workers.map(of, recordings))


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_cache() -> Path:
    """Where units are kept: `$SLAM_CACHE`, or `slam` in the user's cache folder."""
    given = os.environ.get("SLAM_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slam"
