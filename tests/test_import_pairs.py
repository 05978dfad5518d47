import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slam.errors import ConfigError, InputError
from slam.import_units import ImportUnitsConfig, import_units
from slam.pairs import Pair, read_pair_rows, read_pairs
from slam.run import read_json, read_json_lines
from slam.units import Units, read_units, shard_path

NAMED = {"tokenizer": "mhubert-25hz", "num_units": 500, "frame_rate": 25.0}
PARTS = ("prompt", "chosen", "rejected")
ABOUT = {
    "prompt_path": "audio/0_af_heart_prompt.wav",
    "chosen_path": "audio/0_af_heart_chosen.wav",
    "rejected_path": "audio/0_af_heart_rejected.wav",
    "speaker": "af_heart",
    "prompt_text": "Someone opens the door.",
    "chosen_text": "He walks in.",
    "rejected_text": "He eats it.",
}
FEATURES = {
    "prompt": {"units": [17, 3, 499], "duration": [2, 1, 5]},
    "chosen": {"units": [4, 5], "duration": [3, 1]},
    "rejected": {"units": [4, 6, 7], "duration": [1, 1, 4]},
}
TOKENS = {
    part: {"audio_repr": "".join(f"<Un{u}>" for u in spoken["units"])} for part, spoken in FEATURES.items()
}
BARE = {part: spoken["audio_repr"] for part, spoken in TOKENS.items()}


def imported(folder: Path, rows: list[Any], **more: Any) -> list[Pair]:
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_units(ImportUnitsConfig(files=(folder / "in.jsonl",), **(NAMED | more)), folder / "out")
    return read_pairs(read_units(folder / "out"))


def ids(pair: Pair) -> dict[str, list[int]]:
    return {part: getattr(pair, part).ids.tolist() for part in PARTS}


# as the toolkit writes them: no equal neighbours within a part; parts may begin as others end
RUNS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 300)), min_size=1, max_size=6).map(
    lambda runs: [run for n, run in enumerate(runs) if not n or run[0] != runs[n - 1][0]]
)
PAIRS = st.lists(
    st.tuples(RUNS, RUNS, RUNS).filter(lambda p: [u for u, _ in p[1]] != [u for u, _ in p[2]]), min_size=1
)


@settings(max_examples=30, deadline=None)
@given(PAIRS, st.integers(1, 3), st.booleans())
def test_what_tuning_reads_is_what_the_file_holds(
    tmp_path_factory: pytest.TempPathFactory,
    pairs: list[tuple[list[tuple[int, int]], ...]],
    shard_size: int,
    durations: bool,  # noqa: FBT001
) -> None:
    rows = []
    for pair in pairs:
        spoken = {
            part: {"units": [u for u, _ in runs], "duration": [d for _, d in runs]}
            for part, runs in zip(PARTS, pair, strict=True)
        }
        if not durations:
            spoken = {part: {"units": one["units"]} for part, one in spoken.items()}
        rows.append(spoken)
    found = imported(tmp_path_factory.mktemp("pairs"), rows, shard_size=shard_size)
    assert [ids(pair) for pair in found] == [{part: row[part]["units"] for part in PARTS} for row in rows]
    for pair, row in zip(found, rows, strict=True):
        for part in PARTS:
            units: Units = getattr(pair, part)
            kept = None if units.durations is None else units.durations.tolist()
            assert kept == row[part].get("duration")


@pytest.mark.parametrize("spelled", [TOKENS, BARE, {**TOKENS, "prompt": BARE["prompt"]}])
def test_tokens_hold_the_same_pairs_without_durations(spelled: dict[str, Any], tmp_path: Path) -> None:
    (pair,) = imported(tmp_path, [ABOUT | spelled])
    assert ids(pair) == {part: FEATURES[part]["units"] for part in PARTS}
    assert pair.prompt.durations is pair.chosen.durations is pair.rejected.durations is None
    (row,) = read_pair_rows(tmp_path / "out")
    assert row.chosen_start is row.rejected_start is None  # nobody knows the seconds


def test_rows_and_manifest_tell_what_the_line_told(tmp_path: Path) -> None:
    imported(tmp_path, [ABOUT | FEATURES], benchmark="spoken-swag")
    (row,) = read_pair_rows(tmp_path / "out")
    assert (row.benchmark, row.prompt_units, row.chosen_start, row.rejected_start) == (
        *("spoken-swag", 3),
        *(8 / 25, 8 / 25),  # seconds of the prompt's 2 + 1 + 5 frames
    )
    manifest = read_json_lines(shard_path(tmp_path / "out", 0).with_suffix(".jsonl"))
    assert [one["id"] for one in manifest] == [row.chosen, row.rejected]
    assert [one["text"] for one in manifest] == [
        "Someone opens the door. He walks in.",
        "Someone opens the door. He eats it.",
    ]
    assert all(one["origin"] == ABOUT for one in manifest)
    assert [one["seconds"] for one in manifest] == [12 / 25, 14 / 25]
    results = read_json(tmp_path / "out" / "run.json")["results"]
    assert (results["num_pairs"], results["num_utterances"], results["num_units"]) == (1, 2, 11)
    assert (results["num_merged"], results["num_seam_repeats"]) == (0, 0)


def test_neighbours_are_merged_within_a_part_and_kept_at_the_seam(tmp_path: Path) -> None:
    row = {"prompt": {"units": [1, 1, 2], "duration": [1, 4, 1]}} | {
        "chosen": {"units": [2, 3, 3], "duration": [1, 1, 1]},
        "rejected": {"units": [4], "duration": [9]},
    }
    (pair,) = imported(tmp_path, [row])
    assert ids(pair) == {"prompt": [1, 2], "chosen": [2, 3], "rejected": [4]}
    assert pair.prompt.known_durations.tolist() == [5, 1]
    assert pair.chosen.known_durations.tolist() == [1, 2]
    results = read_json(tmp_path / "out" / "run.json")["results"]
    assert (results["num_merged"], results["num_seam_repeats"]) == (2, 1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (FEATURES | {"prompt": {"units": [], "duration": []}}, "its prompt has no units"),
        (FEATURES | {"rejected": {"units": []}}, "some of its parts have durations, some have none"),
        (FEATURES | {"rejected": {"units": [], "duration": []}}, "its rejected side has no units"),
        (FEATURES | {"rejected": FEATURES["chosen"]}, "its sides are equal"),
        (FEATURES | {"chosen": {"units": [1]}}, "some of its parts have durations, some have none"),
        (FEATURES | {"chosen": {"units": [1], "duration": [1, 2]}}, "chosen: 2 durations for 1 units"),
        (FEATURES | {"chosen": {"units": [500], "duration": [1]}}, "unit 500 is outside a vocabulary of 500"),
        (FEATURES | {"chosen": {"text": "He"}}, 'chosen: has neither "units" .* nor "audio_repr"'),
        (FEATURES | {"chosen": "He walks in."}, "chosen: audio_repr holds 'He walks in.'"),
        (FEATURES | {"chosen": 3}, "Expected .* got int"),
        ({"prompt": TOKENS["prompt"], "chosen": TOKENS["chosen"]}, "missing required field rejected"),
        (TOKENS, "has no durations, and the lines before have them"),
        ({"file_name": "a", "units": [1], "duration": [1]}, "is no pair, and the lines before are pairs"),
    ],
)
def test_a_pair_that_teaches_nothing_is_named_by_its_line(
    line: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    rows = [ABOUT | FEATURES, line, FEATURES]
    with pytest.raises(InputError, match=reason) as caught:
        imported(tmp_path, rows)
    assert str(caught.value).startswith(f"{tmp_path / 'in.jsonl'}:2: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    # counted and listed where a share of them is let through
    assert len(imported(tmp_path, rows, max_failures=0.4)) == 2
    (failure,) = read_json_lines(tmp_path / "out" / "failures.jsonl")
    assert failure["line"] == 2
    results = read_json(tmp_path / "out" / "run.json")["results"]
    assert (results["num_failures"], results["num_pairs"]) == (1, 2)


def test_pairs_after_utterances_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r":2: is a pair, and the lines before are none"):
        imported(tmp_path, [{"file_name": "a", "units": [1], "duration": [1]}, FEATURES])


@pytest.mark.parametrize("name", ["", "a\tb"])
def test_a_set_needs_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match="benchmark"):
        ImportUnitsConfig(files=(Path("x"),), benchmark=name, **NAMED)
