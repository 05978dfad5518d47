import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slam.errors import InputError, MissingExtraError
from slam.run import Unfinished, read_json, read_json_lines
from slam.synthesize import SynthesizeConfig, synthesize
from slam.synthesizers import Speech, Utterance
from slam.text_datasets import TextDataset, open_dataset
from slam.text_plan import plan
from slam.text_sources import TextConfig
from test_synthesize import Beeper

datasets = pytest.importorskip("datasets", reason="slam[hf] is not installed")
ROWS = ["one", "two", "", None, "five", "mute", "seven"]
OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_rows(path: Path, texts: Sequence[str | None] = ROWS, column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({column: text, "n": n}) + "\n" for n, text in enumerate(texts)))
    return path.parent


def config(folder: Path, **more: Any) -> TextConfig:
    return TextConfig(dataset_folder=folder, **more)


def opened(settings: TextConfig, out: Path) -> TextDataset:
    found = open_dataset(settings, out)
    assert found is not None
    return found


def saved(folder: Path, kind: str) -> Path:
    """The rows in one of the forms that a folder may have."""
    data = datasets.Dataset.from_dict({"text": ROWS, "n": list(range(7))})
    if kind == "save_to_disk":
        data.save_to_disk(folder)
    elif kind == "splits saved to disk":
        other = datasets.Dataset.from_dict({"text": ["other"], "n": [0]})
        datasets.DatasetDict({"validation": other, "train": data}).save_to_disk(folder)
    elif kind == "parquet":
        folder.mkdir()
        data.to_parquet(folder / "train-00000.parquet")
    else:
        write_rows(folder / "train.jsonl")
        write_rows(folder / "validation.jsonl", ["other"])
    return folder


@pytest.mark.parametrize("kind", ["save_to_disk", "splits saved to disk", "parquet", "json lines"])
def test_a_folder_s_rows_are_read_in_order_from_any_row_on(kind: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "data", kind)
    found = opened(config(folder), tmp_path)
    rows = [(number, text or "") for number, text in enumerate(ROWS, 1)]
    assert list(found.read(0)) == rows
    for skip in (1, 5, 7, 20):
        assert list(found.read(skip)) == rows[skip:]
    limited = opened(config(folder, limit=3), tmp_path)
    assert list(limited.read(0)) == rows[:3]
    assert list(limited.read(2)) == rows[2:3]
    assert limited.num_rows in (3, None)
    if "split" in kind or "json" in kind:
        assert list(opened(config(folder, dataset_split="validation"), tmp_path).read(0)) == [(1, "other")]


def test_another_column_may_hold_the_text(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "data" / "train.jsonl", ["a", "b"], "story")
    assert list(opened(config(folder, column="story"), tmp_path).read(0)) == [(1, "a"), (2, "b")]


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("json lines", {"column": "story"}, "has no column 'story'; it has text, n"),
        ("save_to_disk", {"column": "story"}, "has no column 'story'; it has text, n"),
        ("json lines", {"dataset_split": "dev"}, "dev.*'train', 'validation'"),
        ("splits saved to disk", {"dataset_split": "dev"}, "no split 'dev'; it has validation, train"),
        ("json lines", {"dataset_config": "big"}, "big"),
    ],
)
def test_what_a_data_set_has_not_is_named(
    kind: str, settings: dict[str, str], reason: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "data", kind)
    with pytest.raises(InputError, match=reason) as caught:
        open_dataset(config(folder, **settings), tmp_path)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_data_set_of_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: cannot be opened"):
        open_dataset(config(tmp_path / "empty"), tmp_path)
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "train.md").write_text("# no table")
    with pytest.raises(InputError, match="archive: "):
        open_dataset(config(tmp_path / "archive"), tmp_path)


def test_a_row_that_breaks_off_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "one"}\n{"text"\n')
    with pytest.raises(InputError, match="cannot be") as caught:
        list(opened(config(tmp_path / "data"), tmp_path).read(0))
    assert "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'slam\[hf\]'"):
        open_dataset(config(tmp_path), tmp_path)


def settings_of(folder: Path, **more: Any) -> SynthesizeConfig:
    given = {"dataset_folder": folder, "synthesizer": "test_synthesize:Beeper"}
    return SynthesizeConfig(**given | {"shard_size": 2, "num_workers": 1} | more)


def test_rows_without_text_and_rows_that_cannot_be_spoken_are_counted(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "data" / "train.jsonl")
    run = synthesize(settings_of(folder, texts={"words": 1}), tmp_path / "out")
    rows = read_json_lines(tmp_path / "out" / "manifest.jsonl")
    assert [row["text"] for row in rows[1:]] == ["one", "two", "five", "seven"]
    assert [row["id"] for row in rows[1:]] == [f"row-000000{n}" for n in (1, 2, 5, 7)]
    assert rows[1]["source"] == "dataset"
    failures = read_json_lines(tmp_path / "out" / "failures.jsonl")
    assert {row["id"]: row["reason"] for row in failures} == {
        "row-0000003": "holds no text",
        "row-0000004": "holds no text",
        "row-0000006": "Beeper could not speak 'mute'",
    }
    assert run.results["num_failures"] == 3


def test_rows_come_after_all_other_texts_and_are_read_from_any_line_on(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "data" / "train.jsonl", ["a", "b", "c", "d"])
    planned = plan(settings_of(folder, texts={"words": 3}), tmp_path)
    whole = list(planned.lines())
    assert [line.text for line in whole[3:]] == ["a", "b", "c", "d"]
    for skip in range(9):
        assert list(planned.lines(skip)) == whole[skip:]


def test_a_data_set_without_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict({"text": []}).to_parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(InputError, match="data: holds no rows"):
        synthesize(settings_of(tmp_path / "data"), tmp_path / "out")


class Mortal(Beeper):
    """A Beeper that dies."""

    left = 0

    def synthesize(self, utterances: Sequence[Utterance], sample_rate: int) -> list[Speech]:
        if not Mortal.left:
            raise KeyboardInterrupt
        Mortal.left -= 1
        return super().synthesize(utterances, sample_rate)


def test_a_run_that_goes_on_neither_reads_nor_speaks_what_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = write_rows(tmp_path / "data" / "train.jsonl", [f"row {n}" for n in range(12)])
    skips: list[int] = []
    read = TextDataset.read

    def noted(self: TextDataset, skip: int) -> Iterator[tuple[int, str]]:
        skips.append(skip)
        return read(self, skip)

    monkeypatch.setattr(TextDataset, "read", noted)
    settings = settings_of(folder, synthesizer="test_text_datasets:Mortal", shard_size=3)
    for left in (7, 4):
        Mortal.left = left
        with pytest.raises(KeyboardInterrupt):
            synthesize(settings, tmp_path / "out")
    Mortal.left = 100
    synthesize(settings, tmp_path / "out")
    assert skips == [0, 6, 9]  # 7 spoken: two shards of 3; 4 more: one shard
    assert Mortal.left == 97
    synthesize(settings_of(folder, shard_size=3), tmp_path / "whole")
    found = [read_json_lines(tmp_path / name / "manifest.jsonl") for name in ("out", "whole")]
    assert found[0] == found[1]
    assert [row["text"] for row in found[0]] == [f"row {n}" for n in range(12)]


class Hub:
    """A stand-in for the hub: two commits of one data set, each in a folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.head, self.asked = OLD, []
        self.folders = {
            commit: write_rows(folder / commit / "train.jsonl", [f"{commit[0]}{n}" for n in range(6)])
            for commit in (OLD, NEW)
        }
        self._build = datasets.load_dataset_builder
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", self._info)
        monkeypatch.setattr(datasets, "load_dataset_builder", self._builder)

    def _info(self, name: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
        assert name == "owner/stories"
        assert timeout
        self.asked.append(revision)
        return SimpleNamespace(sha=self.head if revision in (None, "main") else revision)

    def _builder(self, name: str, config: str | None, *, revision: str) -> Any:
        assert (name, config) == ("owner/stories", None)
        return self._build(str(self.folders[revision]))


def test_the_commit_of_a_data_set_is_settled_once_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = Hub(monkeypatch, tmp_path)
    settings = SynthesizeConfig(
        dataset="owner/stories", synthesizer="test_text_datasets:Mortal", shard_size=2, num_workers=1
    )
    Mortal.left = 3
    with pytest.raises(KeyboardInterrupt):
        synthesize(settings, tmp_path / "out")
    hub.head = NEW  # in the meantime the data set changes
    Mortal.left = 100
    run = synthesize(settings, tmp_path / "out")
    assert run.results["dataset_revision"] == OLD
    rows = read_json_lines(tmp_path / "out" / "manifest.jsonl")
    assert [row["text"] for row in rows] == [f"a{n}" for n in range(6)]
    assert read_json(tmp_path / "out" / "dataset.json") == {"dataset": "owner/stories", "revision": OLD}
    assert hub.asked == [None, OLD]
    assert synthesize(settings, tmp_path / "anew").results["dataset_revision"] == NEW


@pytest.mark.parametrize(("revision", "found"), [(OLD, OLD), ("main", NEW)])
def test_a_named_revision_is_read(
    revision: str, found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = Hub(monkeypatch, tmp_path)
    hub.head = NEW
    data = opened(TextConfig(dataset=f"owner/stories@{revision}"), tmp_path)
    assert data.revision == found
    assert next(data.read(0)) == (1, f"{found[0]}0")
    assert hub.asked == [revision]


def test_shares_of_the_work_read_the_same_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = Hub(monkeypatch, tmp_path)
    settings = {
        "dataset": "owner/stories", "synthesizer": "test_synthesize:Beeper", "shard_size": 2, "num_workers": 1
    }  # fmt: skip
    with pytest.raises(Unfinished):
        synthesize(SynthesizeConfig(**settings, shard="2/2"), tmp_path / "out")
    hub.head = NEW
    synthesize(SynthesizeConfig(**settings, shard="1/2"), tmp_path / "out")
    rows = read_json_lines(tmp_path / "out" / "manifest.jsonl")
    assert [row["text"] for row in rows] == [f"a{n}" for n in range(6)]


def test_a_hub_out_of_reach_is_one_line_that_names_the_way_without_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"owner/stories@main: the hub cannot .*\(dataset_folder\)"
    ) as caught:
        synthesize(SynthesizeConfig(dataset="owner/stories@main"), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
