import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from slam.errors import InputError, MismatchError
from slam.run import (
    RUN_FILE,
    STARTED_FILE,
    atomic_write,
    digest,
    effort,
    fingerprint_of,
    identity,
    read_json,
    read_json_lines,
    read_run,
    replacing,
    source,
    stage,
    state_of,
    write_json_lines,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path | None = source()
    more: tuple[Path, ...] = source(())
    table: dict[str, Path] = source(None)
    number: int = 1
    num_workers: int = effort(lambda: 4)


class BrokenOffError(Exception):
    pass


calls: list[str] = []


@stage
def work(config: Config, out: Path) -> dict[str, object]:
    calls.append("work")
    (out / "first.txt").write_text("first half")
    if config.number == 13 and not (out / "mended").exists():
        time.sleep(0.02)
        (out / "mended").touch()
        raise BrokenOffError
    return {"number": config.number}


@stage
def fail_at_once(config: Config, _out: Path) -> dict[str, object]:
    if config.number:
        raise InputError("wrong from the start")
    return {}


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


def test_a_stage_is_done_once_and_leaves_what_made_it(tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("content")
    run = work(Config(data=data, number=3), tmp_path / "out")
    assert run == work(Config(data=data, number=3), tmp_path / "out") == read_run(tmp_path / "out")
    assert calls == ["work"]
    assert run.stage == "work"
    assert run.results == {"number": 3}
    assert run.config["number"] == 3
    assert run.config["data"] == str(data)
    assert set(run.inputs) == {"data"}
    assert run.peak_memory_bytes > 1e6
    assert run.library_versions["numpy"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["first.txt", RUN_FILE]


def test_an_interrupted_stage_goes_on_and_adds_its_seconds(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(BrokenOffError):
        work(Config(number=13), out)
    assert read_run(out) is None
    spent = read_json(out / STARTED_FILE)["seconds"]
    assert spent >= 0.02
    with pytest.raises(InputError, match="has not finished"):
        fingerprint_of(out)
    started = read_json(out / STARTED_FILE)
    (out / STARTED_FILE).write_text(json.dumps(started | {"seconds": 1000.0, "peak": 10**15}))
    run = work(Config(number=13), out)
    assert 1000 <= run.seconds < 1005
    assert run.peak_memory_bytes == 10**15
    assert not (out / STARTED_FILE).exists()
    assert calls == ["work", "work"]


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    work(Config(number=3), tmp_path / "done")
    with pytest.raises(BrokenOffError):
        work(Config(number=13), tmp_path / "started")
    for name in ("done", "started"):
        with pytest.raises(MismatchError, match="other settings or inputs") as caught:
            work(Config(number=4), tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    assert read_run(tmp_path / "done").results == {"number": 3}


def test_a_folder_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="no run of slam"):
        work(Config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert calls == []


def test_states_are_told_apart(tmp_path: Path) -> None:
    fingerprint, _, _ = identity("work", Config(number=3))
    assert state_of(tmp_path / "out", fingerprint) == "new"
    (tmp_path / "out").mkdir()
    assert state_of(tmp_path / "out", fingerprint) == "new"
    (tmp_path / "out" / "x").touch()
    assert state_of(tmp_path / "out", fingerprint) == "foreign"
    (tmp_path / "out" / STARTED_FILE).write_text(json.dumps({"fingerprint": fingerprint}))
    assert state_of(tmp_path / "out", fingerprint) == "started"
    assert state_of(tmp_path / "out", "0" * 16) == "other"
    work(Config(number=3), tmp_path / "done")
    assert state_of(tmp_path / "done", fingerprint) == "done"
    assert state_of(tmp_path / "done", "0" * 16) == "other"


def test_what_fails_before_it_made_anything_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wrong from the start"):
        fail_at_once(Config(number=1), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="wrong from the start"):
        fail_at_once(Config(number=1), tmp_path / "mine")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
    # so the mistake can be put right in the same place
    assert fail_at_once(Config(number=0), tmp_path / "mine").stage == "fail-at-once"


def test_a_folder_that_cannot_be_written_to_fails_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write here"):
        work(Config(), tmp_path / "file" / "out")
    assert calls == []


def fingerprint(**settings: object) -> str:
    return identity("work", Config(**settings))[0]


def test_the_fingerprint_is_of_stage_settings_and_inputs_but_not_of_effort(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("x")
    folder = tmp_path / "a"
    different = [
        fingerprint(),
        fingerprint(number=2),
        fingerprint(data=folder),
        fingerprint(more=(folder,)),
        fingerprint(table={"key": folder}),
        fingerprint(table={"other": folder}),
        identity("play", Config())[0],
    ]
    assert len(set(different)) == len(different)
    assert fingerprint() == fingerprint(num_workers=1)
    assert identity("work", Config(num_workers=2))[1]["num_workers"] == 2


def test_inputs_count_by_content_not_by_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
    before = fingerprint(data=tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (tmp_path / "a").rename(tmp_path / "moved")
    assert fingerprint(data=tmp_path / "moved") == before == fingerprint(data=tmp_path / "copy")
    assert fingerprint(data=tmp_path / "b") != before
    (tmp_path / "moved" / "y.txt").touch()
    assert fingerprint(data=tmp_path / "moved") != before


def test_a_changed_file_is_another_input(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("one")
    before = fingerprint(data=path)
    path.write_text("two")
    os.utime(path, ns=(1, 1))  # the same size, another time
    assert fingerprint(data=path) != before


def test_the_fingerprint_of_a_run_stands_for_its_folder(tmp_path: Path) -> None:
    run = work(Config(number=3), tmp_path / "out")
    before = fingerprint(data=tmp_path / "out")
    assert fingerprint_of(tmp_path / "out") == run.fingerprint
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert fingerprint(data=tmp_path / "elsewhere") == before
    work(Config(number=4), tmp_path / "out")
    assert fingerprint(data=tmp_path / "out") != before


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: no such file or folder"):
        work(Config(data=tmp_path / "none"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    atomic_write(path, "old")

    def break_off() -> None:
        with replacing(path) as partial:
            partial.write_text("new but not")
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        break_off()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    atomic_write(path, b"new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "text", ["plain", "ein Märchen", "line\u2028separator", "next\x85line", "a\x0bb\x0cc"]
)
def test_json_lines_come_back_whatever_characters_they_hold(text: str, tmp_path: Path) -> None:
    rows = [{"text": text}, {"text": "second"}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    assert read_json_lines(tmp_path / "rows.jsonl") == rows


def test_json_lines_from_elsewhere_may_have_a_mark_returns_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert read_json_lines(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 1}\n{"a": \n', r"rows.jsonl:2: not JSON"),
        (b'{"a": 1}\n\n[1]\n', r"rows.jsonl:3: expected a JSON object, got list"),
        (b"\xff\xfe\n", r"rows.jsonl: not UTF-8"),
    ],
)
def test_a_bad_line_is_named_by_its_number(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_json_lines(tmp_path / "rows.jsonl")


def test_files_that_are_missing_or_no_json_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    for read, name, reason in (
        (read_json, "none.json", "cannot be read"),
        (read_json, "bad.json", "not JSON"),
        (read_json_lines, "none.jsonl", "cannot be read"),
        (read_json, "", "cannot be read"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)


def test_a_run_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text('{"stage": "work"}')
    with pytest.raises(InputError, match="not a run of this version"):
        read_run(tmp_path)


def test_digests_are_of_content_not_of_order() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
    assert len(digest([])) == 16
