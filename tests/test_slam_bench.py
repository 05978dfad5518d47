"""The recipe of slam-bench, from a few rows of text to sound that `slam evaluate` opens."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from slam.benchmark_units import open_benchmark
from slam.recipe import load_recipe
from slam.run import read_json_lines
from slam.stages import STAGES
from slam.stories.vocabulary import ALL_WORDS

RECIPE = Path(__file__).parent.parent / "recipes" / "slam-bench.toml"
VOICES = ("en-us", "en-us+f3", "en-gb-x-rp+m3", "en-gb-x-rp+f2")
SMALL = ("swuggy.num_pairs_each=8", "sblimp.num_pairs_each=3")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_data(folder: Path) -> None:
    """What the recipe reads, a few rows of each."""
    (folder / "text").mkdir(parents=True)
    (folder / "pairs").mkdir()
    words = sorted(ALL_WORDS)
    (folder / "text" / "word-frequencies.txt").write_text("".join(f"{word} 1\n" for word in words))
    entries = "".join(f"{word} X\n" for word in words).encode()
    (folder / "text" / "cmudict.dict.gz").write_bytes(gzip.compress(entries))
    write_rows(
        folder / "pairs" / "blimp.jsonl.gz",
        [
            {"UID": f"p{n % 2}", "linguistics_term": "order",
             "sentence_good": f"The {word} sings well.", "sentence_bad": f"Sings the {word} well."}
            for n, word in enumerate(("fox", "dog", "king", "girl", "cat", "bird", "cook", "boy"))
        ],
    )  # fmt: skip
    write_rows(
        folder / "pairs" / "hellaswag.jsonl.gz",
        [
            {"context": f"A man has {n} apples. he", "label": n % 4,
             "endings": ["eats them.", "sells them.", "throws some.", "sits on one."]}
            for n in range(8)
        ],
    )  # fmt: skip
    names = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn")
    told = (
        "Once there was {0}. The child had a ball. It was red. One day {0} lost it. Then {0} went {1} alone."
    )
    places = ("home", "away", "south", "north", "west", "east")
    stories = [{"story": told.format(*pair)} for pair in zip(names, places, strict=True)]
    write_rows(folder / "text" / "child-stories.jsonl.gz", stories)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader", reason="slam[espeak] is not installed")
    folder = tmp_path_factory.mktemp("slam-bench")
    write_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe = load_recipe(RECIPE, overrides=SMALL)
        for step in recipe.steps:
            STAGES[step.stage].perform(step.config, step.out)
    return folder / "work" / "slam-bench"


def test_each_set_is_a_folder_that_evaluate_opens(made: Path) -> None:
    for name in ("swuggy", "sblimp", "storycloze", "topic-storycloze"):
        benchmark = open_benchmark(made / f"{name}-speech")
        assert {row.benchmark for row in benchmark.rows} == {f"slam-{name}"}
        sounds = {row["id"]: row["audio"] for row in read_json_lines(benchmark.path / "manifest.jsonl")}
        for row in benchmark.rows:
            assert (benchmark.path / sounds[row.chosen]).suffix == ".flac"
            assert (benchmark.path / sounds[row.rejected]).is_file()


def test_words_and_sentences_are_asked_by_every_voice(made: Path) -> None:
    for name in ("swuggy", "sblimp"):
        rows = open_benchmark(made / f"{name}-speech").rows
        asked = Counter(row.item for row in rows)
        assert set(asked.values()) == {4}
        assert Counter(row.groups["voice"] for row in rows) == dict.fromkeys(VOICES, len(asked))
        assert {(row.chosen_start, row.rejected_start) for row in rows} == {(0.0, 0.0)}
    assert {row.groups["paradigm"] for row in rows} <= {"p0", "p1"}
    assert {row.kind for row in rows} == {"order"}


def test_stories_know_where_their_endings_begin(made: Path) -> None:
    for name in ("storycloze", "topic-storycloze"):
        rows = open_benchmark(made / f"{name}-speech").rows
        assert all(row.chosen_start and row.rejected_start for row in rows)
        assert all(row.cluster for row in rows)
    # whole sentences before the seam are the same samples on both sides
    assert all(row.chosen_start == row.rejected_start for row in rows)
    assert Counter(row.cluster for row in rows).keys() == {"couple-0", "couple-1", "couple-2"}


def test_the_sound_of_better_sides_is_as_often_longer_as_shorter(made: Path) -> None:
    for name in ("swuggy", "sblimp", "storycloze", "topic-storycloze"):
        folder = made / f"{name}-speech"
        seconds = {row["id"]: row["seconds"] for row in read_json_lines(folder / "manifest.jsonl")}
        longer: dict[str, list[float]] = {}
        for row in open_benchmark(folder).rows:
            longer.setdefault(row.item or row.id, []).append(seconds[row.chosen] - seconds[row.rejected])
        means = [round(100 * sum(some) / len(some)) for some in longer.values()]
        assert sum(mean > 0 for mean in means) == sum(mean < 0 for mean in means), name
