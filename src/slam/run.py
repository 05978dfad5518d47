"""A stage, its settings and its inputs → a folder with `run.json`, written last: its presence means "done".

Every stage writes one folder. While it works the folder holds `started.json`; when it ends, `run.json`
takes its place. Both carry one fingerprint — of the stage, its settings, its inputs' fingerprints and the
version of slam — so the same command goes on with an interrupted run, does nothing when the run is done,
and refuses a folder that holds something else.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from slam import __version__, world
from slam.errors import InputError, MismatchError

RUN_FILE = "run.json"
STARTED_FILE = "started.json"
_PATIENCE_SECONDS = 0.2
_BEGINNINGS = (".slam-", f".{STARTED_FILE}.")  # of the names of files that a stage makes before all others
LIBRARIES = ("torch", "transformers", "numpy", "safetensors", "soundfile", "soxr", "scikit-learn")

Results = dict[str, Any]


class Unfinished(Exception):  # noqa: N818 - nothing went wrong
    """A stage has done its part, and other processes have theirs to do before the folder is done."""


C = TypeVar("C")  # a stage's settings: a frozen dataclass whose inputs are marked with `source()`


@dataclass(frozen=True)
class Run:
    """A finished stage: what it was, what it was made from, what it cost and what came out."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]  # input → fingerprint
    fingerprint: str
    slam_version: str
    python_version: str
    library_versions: dict[str, str]
    machine: str
    seconds: float  # of work, over all the sittings it took
    peak_memory_bytes: int  # largest resident set of any sitting
    results: dict[str, Any]


def source(default: Any = None, *, required: bool = False) -> Any:
    """A dataclass field that names an input: a path, a tuple of paths or a table of paths."""
    if required:
        return field(metadata={"source": True})
    return field(default=default, metadata={"source": True})


def effort(default: Any) -> Any:
    """A dataclass field that says how the work is done, never what comes out: no part of the fingerprint.

    Args:
        default: its default, or a function that finds it.
    """
    if callable(default):
        return field(default_factory=default, metadata={"effort": True})
    return field(default=default, metadata={"effort": True})


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` whole or not at all (a sibling file, flushed, then renamed)."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Give a sibling path to write to; on success it replaces `path`, on failure it is removed.

    Args:
        path: what is to be replaced; its folder is made.
        flush: force the content to disk before the rename. Files that a later, flushed one vouches for
            need not pay for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        if flush:
            with partial.open("rb") as handle:
                os.fsync(handle.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error}); make the folder again") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line; blank lines are passed over.

    Raises:
        InputError: the file is missing or cannot be read, or a line is not a JSON object (named by its
            number).
    """
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        rows.append(json_object(line, f"{path}:{number}"))
    return rows


def json_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object that `line` holds.

    Raises:
        InputError: it holds something else; `where` begins the error.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, with or without a byte-order mark.

    Only a line feed ends a line: JSON may hold the other characters at which `str.splitlines` cuts.

    Raises:
        InputError: the file is missing, cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def digest(content: Any) -> str:
    """The fingerprint of JSON-like content: 16 hexadecimal digits of its SHA-256."""
    encoded = json.dumps(content, sort_keys=True, default=str, ensure_ascii=False).encode()
    return hashlib.sha256(encoded).hexdigest()[:16]


def fingerprint_of(path: Path) -> str:
    """The fingerprint of an input: of its run if it has one, else of its files' names, sizes and times.

    Raises:
        InputError: nothing is there, or the stage that makes it has not finished.
    """
    if (path / STARTED_FILE).exists():
        raise InputError(f"{path}: the run that makes this folder has not finished; run it again first")
    run = read_run(path)
    if run is not None:
        return run.fingerprint
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    return digest([(str(p.relative_to(root)), p.stat().st_size, p.stat().st_mtime_ns) for p in files])


def read_run(folder: Path) -> Run | None:
    """The finished run in `folder`, or None if there is none."""
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    known = {f.name for f in fields(Run)}
    if not isinstance(content, dict) or set(content) != known:
        raise InputError(f"{path}: not a run of this version of slam; make the folder again")
    return Run(**content)


def identity(stage: str, config: Any) -> tuple[str, dict[str, Any], dict[str, str]]:
    """`(fingerprint, settings, inputs)` of a stage with these settings; inputs count by content."""
    settings: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if item.metadata.get("source"):
            for name, path in named_sources(item.name, value):
                inputs[name] = fingerprint_of(path)
        elif not item.metadata.get("effort"):
            settings[item.name] = value
    fingerprint = digest([stage, settings, inputs, __version__])
    return fingerprint, json.loads(json.dumps(asdict(config), default=str)), inputs


def named_sources(name: str, value: Any) -> list[tuple[str, Path]]:
    """The paths in an input field: `None`, a path, a tuple of paths or a table of paths."""
    match value:
        case None:
            return []
        case Path():
            return [(name, value)]
        case Mapping():
            return [(f"{name}.{key}", Path(path)) for key, path in value.items()]
        case _:
            return [(f"{name}.{index}", Path(path)) for index, path in enumerate(value)]


def state_of(folder: Path, fingerprint: str) -> str:
    """What `folder` holds for a run of this fingerprint: "done", "started", "new", "other" or "foreign"."""
    run = read_run(folder)
    if run is not None:
        return "done" if run.fingerprint == fingerprint else "other"
    started = folder / STARTED_FILE
    if started.is_file():
        return "started" if read_json(started).get("fingerprint") == fingerprint else "other"
    if not folder.exists():
        return "new"
    # another process that shares the stage may be at its very beginning
    if folder.is_dir() and all(path.name.startswith(_BEGINNINGS) for path in folder.iterdir()):
        return "new"
    return "foreign"


def stage(work: Callable[[C, Path], Results]) -> Callable[[C, Path], Run]:
    """Make `work(config, out) -> results` a stage: one that resumes, is done once and leaves a `Run`.

    Among the processes of `torchrun`, process 0 works and the others wait for its `Run`.
    """
    return _staged(work, together=False)


def joint_stage(work: Callable[[C, Path], Results]) -> Callable[[C, Path], Run]:
    """Make `work` a stage as `stage` does, at which all processes of `torchrun` work together.

    Process 0 alone keeps the folder: the others must not write.
    """
    return _staged(work, together=True)


def _staged(work: Callable[[C, Path], Results], *, together: bool) -> Callable[[C, Path], Run]:
    name = work.__name__.replace("_", "-")

    @functools.wraps(work)
    def perform(config: C, out: Path) -> Run:
        fingerprint, settings, inputs = identity(name, config)
        if world.rank():
            if together and state_of(out, fingerprint) != "done":
                work(config, out)
            return _awaited(out, fingerprint)
        state = _claimable(out, fingerprint)
        if state == "done":
            return _awaited(out, fingerprint)
        existed = out.exists()
        check_writable(out)
        started = out / STARTED_FILE
        before = read_json(started) if state == "started" else {"seconds": 0.0, "peak": 0}
        reset_peak_memory()
        begin = time.perf_counter()

        def spent() -> dict[str, Any]:
            return {
                "stage": name,
                "fingerprint": fingerprint,
                "seconds": before["seconds"] + time.perf_counter() - begin,
                "peak": max(before["peak"], peak_memory()),
            }

        _note(started, {"stage": name, "fingerprint": fingerprint} | before)
        try:
            results = work(config, out)
        except BaseException:
            with suppress(OSError):  # a full disk must not hide the error that it caused
                if any(path != started for path in out.iterdir()):
                    _note(started, spent())
                else:  # nothing to go on with, and other settings may be tried in the same place
                    started.unlink(missing_ok=True)
                    if not existed:
                        out.rmdir()
            raise
        cost = spent()
        run = Run(
            stage=name,
            config=settings,
            inputs=inputs,
            fingerprint=fingerprint,
            slam_version=__version__,
            python_version=platform.python_version(),
            library_versions=library_versions(),
            machine=f"{platform.machine()}, {os.cpu_count()} cores",
            seconds=round(cost["seconds"], 2),
            peak_memory_bytes=cost["peak"],
            results=results,
        )
        write_json(out / RUN_FILE, asdict(run))
        started.unlink(missing_ok=True)  # of processes that share a stage another may have been here
        return run

    return perform


def _note(started: Path, content: dict[str, Any]) -> None:
    """Write `started.json` by way of a file of this process's own: others may share the folder."""
    partial = started.with_name(f".{started.name}.{os.getpid()}.partial")
    try:
        write_json(partial, content)
        partial.replace(started)
    finally:
        partial.unlink(missing_ok=True)


def _claimable(out: Path, fingerprint: str) -> str:
    """The state of a folder that a run of this fingerprint may have: "done", "started" or "new".

    Raises:
        MismatchError: it holds another run.
        InputError: it holds something else.
    """
    state = state_of(out, fingerprint)
    if state == "other":
        raise MismatchError(
            f"{out}: holds a run with other settings or inputs; "
            "choose another --out, or delete the folder first"
        )
    if state == "foreign":
        raise InputError(f"{out}: is not empty and no run of slam; choose another --out")
    return state


def _awaited(out: Path, fingerprint: str) -> Run:
    """The finished run of process 0, once it is there; if it fails, `torchrun` ends all processes."""
    while state_of(out, fingerprint) != "done":
        time.sleep(_PATIENCE_SECONDS)
    run = read_run(out)
    assert run is not None  # noqa: S101 - state_of has just read it
    return run


def check_writable(folder: Path) -> None:
    """Make `folder` and write a file in it, so that a bad --out fails before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=_BEGINNINGS[0]):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot write here ({error.strerror})") from None


def library_versions() -> dict[str, str]:
    """The versions of the libraries that can change a result, as installed."""
    versions = {}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def reset_peak_memory() -> None:
    """Start the kernel's high-water mark anew, where it can be (Linux), so that stages count singly."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The largest resident set in bytes since `reset_peak_memory`, or of the process's whole life."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
