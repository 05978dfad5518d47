import gzip
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slam.errors import InputError
from slam.run import write_json_lines
from slam.text_plan import PlanConfig, plan
from slam.text_sources import count_texts, read_text_pairs, read_texts

PAIR = {"id": "a", "benchmark": "b", "kind": "k", "prompt": "One", "chosen": "two.", "rejected": "six."}


def texts_of(path: Path, column: str = "text", limit: int | None = None) -> list[str]:
    texts = [" ".join(text.split()) for text in read_texts(path, column, limit)]
    assert count_texts(path, column, limit) == len(texts)
    return texts


def packed(content: str, suffix: str) -> bytes:
    return gzip.compress(content.encode()) if suffix == ".gz" else content.encode()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_lines_and_rows_are_read_packed_or_not(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a.txt{suffix}").write_bytes(packed("One.\r\n\n  \nTwo\u2028still two.\n", suffix))
    assert texts_of(tmp_path / f"a.txt{suffix}") == ["One.", "Two still two."]
    rows = '{"story": "A\\nB", "text": 7}\n\n{"story": "C"}\n'
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed(rows, suffix))
    assert texts_of(tmp_path / f"a.jsonl{suffix}", "story") == ["A B", "C"]


def test_a_folder_s_files_are_read_in_order_and_others_left(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("three\nfour\n")
    (tmp_path / "deep" / "c.jsonl").write_text('{"text": "five"}\n')
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    (tmp_path / "notes.md").write_text("no text of this\n")
    assert texts_of(tmp_path) == ["one", "two", "three", "four", "five"]
    assert texts_of(tmp_path, limit=3) == ["one", "two", "three"]


def test_of_a_folder_that_a_stage_wrote_only_the_manifest_is_read(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "manifest.jsonl", [{"text": "said"}])
    write_json_lines(tmp_path / "shards" / "00000.jsonl", [{"text": "said"}])
    assert texts_of(tmp_path) == ["said"]


def test_what_comes_after_the_limit_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\nnot JSON\n')
    assert texts_of(tmp_path / "a.jsonl", limit=2) == ["one", "two"]
    with pytest.raises(InputError, match=r"a\.jsonl:3: not JSON"):
        count_texts(tmp_path / "a.jsonl", "text", None)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt.gz", b"plain", "damaged"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n' * 999, mtime=0)[:40], "damaged"),
        ("a.jsonl", b'[1]\n{"text": "one"}\n', "a.jsonl:1: expected a JSON object, got list"),
        ("a.jsonl", b'{"text": "one"}\n\n{"text": "  "}\n', 'a.jsonl:3: has no "text"'),
        ("a.jsonl", b'{"text": null}\n', 'a.jsonl:1: has no "text"'),
        ("a.txt", None, "cannot be read"),
    ],
)
def test_bad_files_are_named(name: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        count_texts(tmp_path / name, "text", None)
    assert str(tmp_path / name) in str(caught.value)


def test_a_folder_without_texts_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    with pytest.raises(InputError, match=r"holds no text \(\.txt, "):
        count_texts(tmp_path, "text", None)


@given(
    num_lines=st.integers(1, 9), limit=st.none() | st.integers(1, 12), skip=st.integers(0, 14), data=st.data()
)
def test_lines_read_from_the_middle_are_those_of_the_whole(
    num_lines: int,
    limit: int | None,
    skip: int,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    blanks = data.draw(st.lists(st.integers(0, num_lines), max_size=3))
    lines = [f"line {n}" for n in range(num_lines)]
    for at in blanks:
        lines.insert(at, "  ")
    (folder / "a.txt").write_text("\n".join(lines))
    config = PlanConfig(text=folder / "a.txt", limit=limit, texts={"words": 3}, voices=("a", "b", "c"))
    planned = plan(config, folder)
    whole = list(planned.lines())
    assert planned.num_lines == len(whole) == min(num_lines, limit or num_lines) + 3
    assert list(planned.lines(skip)) == whole[skip:]
    assert {line.id for line in whole[:-3]} == {f"line-{n + 1:07d}" for n in range(len(whole) - 3)}


def test_text_pairs_are_read_with_what_is_known_of_them(tmp_path: Path) -> None:
    more = PAIR | {"id": "b-2", "prompt": "", "voice": "bf_emma", "reason": "r", "story": None, "index": 3}
    write_json_lines(tmp_path / "text-pairs.jsonl", [PAIR, more])
    one, other = read_text_pairs(tmp_path)
    assert (one.id, one.prompt, one.chosen, one.rejected) == ("a", "One", "two.", "six.")
    assert (one.voice, one.reason, one.story) == (None, "", None)
    assert (other.prompt, other.voice, other.reason) == ("", "bf_emma", "r")
    assert (one.item, one.cluster, one.groups) == (None, None, {})


def test_what_a_text_pair_shares_with_others_is_kept(tmp_path: Path) -> None:
    shared = {"item": "i", "cluster": "c", "groups": {"paradigm": "x"}}
    write_json_lines(tmp_path / "text-pairs.jsonl", [PAIR | shared])
    (pair,) = read_text_pairs(tmp_path)
    assert (pair.item, pair.cluster, pair.groups) == ("i", "c", {"paradigm": "x"})
    (row,) = plan(PlanConfig(pairs_from=tmp_path), tmp_path).pairs
    assert (row.item, row.cluster, row.groups) == ("i", "c", {"paradigm": "x"})


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "holds no pairs"),
        ([PAIR, PAIR], "row 2: a second pair named 'a'"),
        ([PAIR | {"chosen": " "}], 'row 1: has no "chosen"'),
        ([PAIR | {"rejected": 3}], 'row 1: has no "rejected"'),
        ([PAIR | {"voice": 3}], "row 1: voice = 3: expected text"),
        ([PAIR | {"groups": {"a": 1}}], "row 1: groups = {'a': 1}: expected a table of texts"),
        ([PAIR | {"groups": "a"}], "row 1: groups = 'a': expected a table of texts"),
        ([PAIR | {"cluster": 3}], "row 1: cluster = 3: expected text"),
        ([PAIR | {"id": "../up"}], "cannot name a file"),
        ([PAIR | {"id": ".."}], "cannot name a file"),
    ],
)
def test_bad_text_pairs_are_named(rows: Sequence[dict[str, object]], reason: str, tmp_path: Path) -> None:
    write_json_lines(tmp_path / "text-pairs.jsonl", list(rows))
    with pytest.raises(InputError, match=reason):
        read_text_pairs(tmp_path)


def test_a_folder_without_text_pairs_says_who_writes_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="slam build-pairs"):
        read_text_pairs(tmp_path)


def test_a_pair_named_as_one_of_the_grammar_is_refused(tmp_path: Path) -> None:
    name = plan(PlanConfig(pairs={"swuggy": 1}), tmp_path).pairs[0].id
    write_json_lines(tmp_path / "text-pairs.jsonl", [PAIR | {"id": name}])
    with pytest.raises(InputError, match="one of the grammar, too"):
        plan(PlanConfig(pairs={"swuggy": 1}, pairs_from=tmp_path), tmp_path)


def test_pairs_whose_names_meet_in_a_voice_are_refused(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "text-pairs.jsonl", [PAIR, PAIR | {"id": "a-ann", "voice": "bob"}])
    assert len(plan(PlanConfig(pairs_from=tmp_path, voices=("ann",)), tmp_path).pairs) == 2
    with pytest.raises(InputError, match="two pairs are named 'a-ann'"):
        plan(PlanConfig(pairs_from=tmp_path, voices=("ann",), every_voice=True), tmp_path)
