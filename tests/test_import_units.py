import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from slam.encode import EncodeConfig, encode
from slam.errors import ConfigError, InputError, MismatchError
from slam.generate import GenerateConfig, find_prompts
from slam.import_units import ImportUnitsConfig, import_units
from slam.pack import PackConfig, pack
from slam.run import read_json, read_json_lines
from slam.shards import open_shards
from slam.units import Units, UnitsFolder, deduplicate, finish_units, read_units, shard_path, write_shard

NAMED = {"tokenizer": "mhubert-25hz", "num_units": 500, "frame_rate": 25.0}


def features(name: str, units: list[int], duration: list[int] | None = None) -> dict[str, Any]:
    """A line as the toolkit's extract_features writes it."""
    row: dict[str, Any] = {"units": units, "duration": [1] * len(units) if duration is None else duration}
    return row | {"file_name": name}


def tokens(name: str, units: list[int]) -> dict[str, Any]:
    """A line as the toolkit's prepare_tokens writes it."""
    return {"file_name": name, "audio_repr": "".join(f"<Un{unit}>" for unit in units)}


def write(path: Path, rows: list[Any]) -> Path:
    """Each row a line; bytes as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def imported(folder: Path, rows: list[Any], **settings: Any) -> UnitsFolder:
    path = write(folder / "in.jsonl", rows)
    import_units(ImportUnitsConfig(files=(path,), **(NAMED | settings)), folder / "out")
    return read_units(folder / "out")


RUNS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 70_000)), max_size=12)


@settings(max_examples=30, deadline=None)
@given(st.lists(RUNS, min_size=1, max_size=5), st.integers(1, 3))
def test_features_give_back_every_frame(
    tmp_path_factory: pytest.TempPathFactory, utterances: list[list[tuple[int, int]]], shard_size: int
) -> None:
    rows = [
        features(f"/data/{n}.flac", *map(list, zip(*u, strict=True)))
        if u
        else features(f"/data/{n}.flac", [])
        for n, u in enumerate(utterances)
    ]
    units = imported(tmp_path_factory.mktemp("import"), rows, shard_size=shard_size)
    assert units.names == tuple(f"/data/{n}.flac" for n in range(len(utterances)))
    for index, runs in enumerate(utterances):
        frames = reference.expanded(runs)
        found = units[index]
        assert found.expand().tolist() == frames
        # as if the frames had been encoded here: runs merged, and cut where a duration is too long
        assert list(
            zip(found.ids.tolist(), found.known_durations.tolist(), strict=True)
        ) == reference.run_lengths(frames)


def test_features_are_described_and_counted(tmp_path: Path) -> None:
    rows = [
        features("a.flac", [7, 3, 499], [2, 1, 5]),
        features("b.flac", []),
        features("c.flac", [4, 4, 4, 1])
        | {"text": "more than is needed", "split_sentence": [["a", 0.0, 0.1]]},
    ]
    path = write(tmp_path / "in.jsonl", rows)
    run = import_units(ImportUnitsConfig(files=(path,), **NAMED), tmp_path / "out")
    fingerprint = run.results.pop("tokenizer_fingerprint")
    assert run.results == {
        "num_utterances": 3,
        "num_empty": 1,
        "num_failures": 0,
        "failures": [],
        "num_units": 5,
        "num_merged": 2,
        "seconds_of_speech": 12 / 25,
        "tokenizer": "mhubert-25hz",
    }
    units = read_units(tmp_path / "out")
    assert (units.tokenizer, units.tokenizer_fingerprint) == ("mhubert-25hz", fingerprint)
    assert (units.vocabulary.num_units, units.frame_rate) == (500, 25.0)
    assert read_json_lines(shard_path(tmp_path / "out", 0).with_suffix(".jsonl")) == [
        {"id": "a.flac", "num_units": 3, "seconds": 0.32},
        {"id": "b.flac", "num_units": 0, "seconds": 0.0},
        {"id": "c.flac", "num_units": 2, "seconds": 0.16},
    ]


def test_tokens_give_ids_without_durations(tmp_path: Path) -> None:
    units = imported(
        tmp_path, [tokens("a", [17, 3, 499]), tokens("b", []), tokens("c", [5, 5, 6])], shard_size=2
    )
    assert units.durations is None
    assert [units[index].ids.tolist() for index in range(3)] == [[17, 3, 499], [], [5, 6]]
    assert all(units[index].durations is None for index in range(3))
    assert read_json(tmp_path / "out" / "run.json")["results"]["num_merged"] == 1
    assert read_json(tmp_path / "out" / "run.json")["results"]["seconds_of_speech"] is None


def test_whoever_needs_durations_says_that_there_are_none(tmp_path: Path) -> None:
    units = imported(tmp_path, [tokens("a", [17, 3, 499])])
    config = GenerateConfig(prompts=units.path, models={"m": tmp_path}, prompt_seconds=1.0)
    for ask in (
        units[0].expand,
        lambda: units.by_name()["a"].split(1),
        lambda: find_prompts(units, config),
    ):
        with pytest.raises(InputError, match="these units carry no durations") as caught:
            ask()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [features, tokens])
def test_what_is_imported_is_packed_as_what_is_encoded(make: Any, tmp_path: Path) -> None:
    utterances = [[17, 3, 499], [5], [0, 1, 0, 2]]
    imported(tmp_path, [make(str(n), units) for n, units in enumerate(utterances)])
    pack(PackConfig(train=(tmp_path / "out",), validation=(tmp_path / "out",)), tmp_path / "packed")
    shards = open_shards(tmp_path / "packed", "train")
    assert shards.tokens.tolist() == [t for units in utterances for t in (1, *(u + 2 for u in units), 1)]
    assert shards.tokenizer_fingerprint == read_units(tmp_path / "out").tokenizer_fingerprint


def test_files_are_joined_in_order(tmp_path: Path) -> None:
    one = write(tmp_path / "1.jsonl", [features("a", [1]), features("b", [2])])
    two = write(tmp_path / "2.jsonl", [features("c", [3])])
    import_units(ImportUnitsConfig(files=(two, one), **NAMED), tmp_path / "out")
    units = read_units(tmp_path / "out")
    assert units.names == ("c", "a", "b")
    assert units.ids.tolist() == [3, 1, 2]


BAD_LINES = [
    (b"not json", "JSON is malformed"),
    (b'{"file_name": "x", "units": [1', "truncated"),
    (b"[1, 2]", "Expected object, got array"),
    (b'{"file_name": "\xff", "units": [1], "duration": [1]}', "utf-8"),
    (b'{"file_name": "x", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion"),
    ({"units": [1], "duration": [1]}, "file_name"),
    (features("", [1]), "file_name"),
    (features("x", [1]) | {"file_name": 3}, "Expected str, got int"),
    ({"file_name": "x"}, 'has neither "units" .* nor "audio_repr"'),
    (features("x", [1, -1]), r"Expected int >= 0 - at \$.units\[1\]"),
    (features("x", [1, 500]), "unit 500 is outside a vocabulary of 500 units"),
    (features("x", [70_000]), "Expected int <= 65535"),
    (features("x", [10**30]), "Expected int <= 65535"),
    (features("x", [2**63]), "Expected int <= 65535"),
    (b'{"file_name": "x", "duration": [1], "units": [' + b"9" * 5_000 + b"]}", "out of range"),
    (features("x", [1.0]), "Expected int, got float"),
    (features("x", ["1"], [1]), "Expected int, got str"),
    (features("x", [True]), "Expected int, got bool"),
    (features("x", [None]), "Expected int, got null"),
    ({"file_name": "x", "units": "12", "duration": [1, 1]}, "Expected array, got str"),
    (features("x", [1, 2], [1]), "1 durations for 2 units"),
    (features("x", [1, 2], [1, 0]), r"Expected int >= 1 - at \$.duration\[1\]"),
    (features("x", [1, 2], [1, -3]), r"Expected int >= 1"),
    (features("x", [1, 2], [1, 2.5]), "Expected int, got float"),
    (features("x", [1, 2], [2**31, 2**31]), "lasts 4294967296 frames"),
    (features("x", [1], [2**40]), "Expected int <= 2147483648"),
    ({"file_name": "x", "units": [1]}, "has no durations, and the lines before have them"),
    (tokens("x", [1]), "has no durations, and the lines before have them"),
    (features("first", [1]), "'first' was given before, in .*in.jsonl:1"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_malformed_line_is_named_by_its_number(line: Any, reason: str, tmp_path: Path) -> None:
    rows = [features("first", [1]), b"", b"  ", line, features("last", [2])]
    with pytest.raises(InputError, match=reason) as caught:
        imported(tmp_path, rows, shard_size=1)
    assert str(caught.value).startswith(f"{tmp_path / 'in.jsonl'}:4: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "out").exists()
    # counted and listed where a share of them is let through
    units = imported(tmp_path, rows, max_failures=0.34)
    assert units.names == ("first", "last")
    (failure,) = read_json_lines(tmp_path / "out" / "failures.jsonl")
    assert (failure["file"], failure["line"]) == (str(tmp_path / "in.jsonl"), 4)
    results = read_json(tmp_path / "out" / "run.json")["results"]
    assert results["num_failures"] == 1
    assert results["failures"] == [str(caught.value)]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("<Un1><text>hello", "'<text>hello'"),
        ("<Un1> <Un2>", "' <Un2>'"),
        ("<Un-1>", "'<Un-1>'"),
        ("<Un1", "'<Un1'"),
        ("<Un\u0663>", "<Un"),
        ("<Un" + "9" * 5_000 + ">", "'<Un9+'"),
        ("<Un500>", "unit 500 is outside"),
    ],
)
def test_tokens_of_something_else_are_refused(text: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"in\.jsonl:2: .*{named}"):
        imported(tmp_path, [tokens("a", [1]), {"file_name": "b", "audio_repr": text}])


def test_durations_that_start_late_are_refused_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r":2: has durations, and the lines before have none"):
        imported(tmp_path, [tokens("a", [1]), features("b", [1])])


def test_more_malformed_lines_than_let_through_fail_the_stage(tmp_path: Path) -> None:
    rows = [features("a", [1]), b"{", b"{", features("d", [2])]
    with pytest.raises(InputError, match=r"2 of 4 lines are malformed, the first: .*in\.jsonl:2: "):
        imported(tmp_path, rows, max_failures=0.4)
    assert [row["line"] for row in read_json_lines(tmp_path / "out" / "failures.jsonl")] == [2, 3]
    assert not (tmp_path / "out" / "shards").exists()
    with pytest.raises(InputError, match="holds no units"):
        read_units(tmp_path / "out")


def test_a_file_of_nothing_but_malformed_lines_is_no_surprise(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 of 2 lines are malformed"):
        imported(tmp_path, [b"{", b"["], max_failures=0.5)


def test_an_utterance_in_two_files_is_refused(tmp_path: Path) -> None:
    files = tuple(write(tmp_path / f"{n}.jsonl", [features(f"{n}", [1]), features("b", [2])]) for n in (1, 2))
    with pytest.raises(InputError, match=r"2\.jsonl:2: 'b' was given before, in .*1\.jsonl:2"):
        import_units(ImportUnitsConfig(files=files, **NAMED), tmp_path / "out")


def test_an_interrupted_import_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [features(str(n), [n, n + 1]) for n in range(5)]

    def stop(folder: Path, index: int, *shard: Any) -> None:
        if index == 1:
            raise KeyboardInterrupt
        write_shard(folder, index, *shard)

    monkeypatch.setattr("slam.import_units.write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        imported(tmp_path, rows, shard_size=2)
    monkeypatch.undo()
    config = ImportUnitsConfig(files=(tmp_path / "in.jsonl",), shard_size=2, **NAMED)
    import_units(config, tmp_path / "out")
    units = read_units(tmp_path / "out")
    assert units.names == tuple("01234")
    assert units.ids.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


@pytest.mark.parametrize("content", [b"", b"\n  \n"])
def test_a_file_without_lines_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"in\.jsonl: holds no units"):
        import_units(ImportUnitsConfig(files=(tmp_path / "in.jsonl",), **NAMED), tmp_path / "out")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name, reason in (("none.jsonl", "no such file"), ("folder", "cannot be read")):
        with pytest.raises(InputError, match=rf"{name}: {reason}"):
            import_units(ImportUnitsConfig(files=(tmp_path / name,), **NAMED), tmp_path / "out")


def test_line_ends_and_a_byte_order_mark_of_another_system_are_read(tmp_path: Path) -> None:
    rows = [b"\xef\xbb\xbf" + json.dumps(features("a", [1])).encode() + b"\r", features("b\u2028", [2])]
    assert imported(tmp_path, rows).names == ("a", "b\u2028")


def test_units_of_the_same_name_join_and_others_are_refused(tmp_path: Path) -> None:
    made = {}
    for key, changed in {
        "one": {},
        "two": {"frame_rate": 25},
        "name": {"tokenizer": "other"},
        "units": {"num_units": 501},
        "rate": {"frame_rate": 50.0},
    }.items():
        (tmp_path / key).mkdir()
        made[key] = imported(tmp_path / key, [features("a", [1, 2]), features("b", [3, 4])], **changed)
    assert len({units.tokenizer_fingerprint for units in made.values()}) == 4
    pack(PackConfig(train=(made["one"].path, made["two"].path)), tmp_path / "packed")
    for key in ("name", "units", "rate"):
        with pytest.raises(MismatchError, match="use one tokenizer"):
            pack(PackConfig(train=(made["one"].path, made[key].path)), tmp_path / key / "packed")


def test_units_join_those_of_a_tokenizer_that_is_here(
    toy_units: Path, toy_recordings: Path, tmp_path: Path
) -> None:
    here = read_units(toy_units)
    rows = [
        features(name, here[n].ids.tolist(), here[n].known_durations.tolist())
        for n, name in enumerate(here.names)
    ]
    path = write(tmp_path / "in.jsonl", rows)
    config = ImportUnitsConfig(files=(path,), tokenizer_from=toy_units)
    import_units(config, tmp_path / "out")
    units = read_units(tmp_path / "out")
    assert (units.tokenizer, units.tokenizer_fingerprint) == (here.tokenizer, here.tokenizer_fingerprint)
    assert (units.vocabulary, units.frame_rate, units.names) == (here.vocabulary, here.frame_rate, here.names)
    np.testing.assert_array_equal(units.ids, here.ids)
    np.testing.assert_array_equal(units.durations, here.durations)
    pack(PackConfig(train=(tmp_path / "out",), validation=(toy_units,)), tmp_path / "packed")
    # more is encoded by the tokenizer that came with them
    again = EncodeConfig(audio=toy_recordings, tokenizer_from=tmp_path / "out", num_workers=1)
    encode(again, tmp_path / "more")
    np.testing.assert_array_equal(read_units(tmp_path / "more").ids, here.ids)


def test_a_folder_with_only_a_tokenizer_or_only_units_will_do(
    tiny_tokenizer_folder: Path, toy_units: Path, tmp_path: Path
) -> None:
    (tmp_path / "fitted").mkdir()
    (tmp_path / "fitted" / "tokenizer").symlink_to(tiny_tokenizer_folder)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "units.json").write_bytes((toy_units / "units.json").read_bytes())
    about = read_json(tiny_tokenizer_folder / "tokenizer.json")
    path = write(tmp_path / "in.jsonl", [features("a", [1, 2])])
    for name, fingerprint in (
        ("fitted", about["fingerprint"]),
        ("bare", read_units(toy_units).tokenizer_fingerprint),
    ):
        out = tmp_path / f"{name}-out"
        import_units(ImportUnitsConfig(files=(path,), tokenizer_from=tmp_path / name), out)
        assert read_units(out).tokenizer_fingerprint == fingerprint
        assert (out / "tokenizer" / "tokenizer.json").is_file() == (name == "fitted")


def test_a_tokenizer_that_does_not_fit_its_units_is_refused(toy_units: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "tokenizer").mkdir(parents=True)
    path = write(tmp_path / "in.jsonl", [features("a", [1, 2])])
    config = ImportUnitsConfig(files=(path,), tokenizer_from=source)
    with pytest.raises(InputError, match="source: holds neither units nor a tokenizer"):
        import_units(config, tmp_path / "out")
    (source / "units.json").write_bytes((toy_units / "units.json").read_bytes())
    about = read_json(toy_units / "tokenizer" / "tokenizer.json")
    (source / "tokenizer" / "tokenizer.json").write_text(json.dumps(about | {"fingerprint": "0" * 16}))
    with pytest.raises(
        MismatchError, match=r"source: its units are of the tokenizer .* 0+; the folder was changed"
    ):
        import_units(config, tmp_path / "out")
    (source / "tokenizer" / "tokenizer.json").write_text('["a"]')
    with pytest.raises(InputError, match=r"tokenizer\.json: does not describe a tokenizer"):
        import_units(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_unit_outside_the_tokenizer_of_a_folder_is_refused(toy_units: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [features("a", [12])])
    with pytest.raises(InputError, match=r"in\.jsonl:1: unit 12 is outside a vocabulary of 12 units"):
        import_units(ImportUnitsConfig(files=(path,), tokenizer_from=toy_units), tmp_path / "out")


def test_the_same_command_is_done_once(tmp_path: Path) -> None:
    imported(tmp_path, [features("a", [1, 2])])
    config = ImportUnitsConfig(files=(tmp_path / "in.jsonl",), **NAMED)
    digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((tmp_path / "out").glob("*.json"))]
    import_units(config, tmp_path / "out")
    again = [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((tmp_path / "out").glob("*.json"))]
    assert digests == again


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"files": ()}, "files"),
        ({"shard_size": 0}, "shard_size"),
        ({"max_failures": 1.5}, "max_failures = 1.5"),
        ({"tokenizer": None}, "tokenizer: the files do not say"),
        ({"num_units": None, "frame_rate": None}, "frame_rate, num_units: the files do not say"),
        ({"tokenizer": ""}, "tokenizer: is empty"),
        ({"num_units": 1}, "num_units = 1"),
        ({"num_units": 70_000}, "num_units = 70000"),
        ({"frame_rate": 0.0}, "frame_rate = 0.0"),
        ({"frame_rate": float("nan")}, "frame_rate = nan"),
        ({"frame_rate": float("inf")}, "frame_rate = inf"),
        ({"tokenizer_from": Path("x")}, "tokenizer_from brings its own tokenizer, num_units, frame_rate"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ImportUnitsConfig(**{"files": (Path("x"),)} | NAMED | settings)


def test_units_with_and_without_durations_do_not_share_a_shard(tmp_path: Path) -> None:
    known = deduplicate(np.array([1, 1, 2]), 25.0)
    with pytest.raises(InputError, match="no durations"):
        write_shard(tmp_path, 0, [known, Units(known.ids, None, 25.0)], [{"id": "a"}, {"id": "b"}])
    write_shard(tmp_path, 0, [Units(known.ids, None, 25.0)], [{"id": "a"}])
    about = {"num_units": 5, "tokenizer": "t", "fingerprint": "f", "frame_rate": 25.0, "num_shards": 1}
    finish_units(tmp_path, **about)
    with pytest.raises(InputError, match=r"damaged shard \('durations'\)"):
        read_units(tmp_path)
    finish_units(tmp_path, **about, durations=False)
    assert read_units(tmp_path)[0].ids.tolist() == [1, 2]
