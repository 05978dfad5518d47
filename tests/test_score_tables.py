import pytest

from slam.published import METRICS, comparable, read_published
from slam.score_tables import below_floors, floors_of, markdown, tables


def row(model, benchmark, value, *, metric="accuracy", protocol="slam", n=100):
    return {
        "model": model, "benchmark": benchmark, "protocol": protocol, "metric": metric,
        "value": value, "low": value - 0.05, "high": value + 0.05, "n": n,
    }  # fmt: skip


def floor(benchmark, name, value, fingerprint="f"):
    return {"benchmark": benchmark, "floor": name, "value": value, "tokenizer_fingerprint": fingerprint}


RESULTS = [
    row("a", "sblimp-dev", 0.58),
    row("a", "sblimp-dev", 0.613, metric="accuracy_macro"),
    row("a", "sblimp-dev", 0.56, protocol="slam+sum"),
    row("a", "mine", 0.7, n=40),
    row("b", "sblimp-dev", 0.66),
    row("b", "sblimp-dev", 0.67, metric="accuracy_macro"),
    row("b", "sblimp-dev", 0.5, protocol="slam+sum"),
]
FLOORS = [
    floor("sblimp-dev", "length", 0.52),
    floor("sblimp-dev", "unigram", 0.6),
    floor("mine", "length", 0.5),
]


def test_each_protocol_and_average_has_a_table_of_its_own():
    found = tables(RESULTS)
    assert [(one.protocol, one.metric) for one in found] == [
        ("slam", "accuracy"), ("slam", "accuracy_macro"), ("slam+sum", "accuracy")
    ]  # fmt: skip
    assert found[0].models == ["a", "b"]
    assert [name for name, _ in found[0].rows] == ["sblimp-dev", "mine"]
    assert found[0].rows[1][1][1] is None  # b was not scored on it
    assert found[1].rows[0][1][0]["value"] == 0.613


def test_a_model_whose_interval_reaches_a_floor_is_named():
    said = below_floors(RESULTS, FLOORS)
    assert len(said) == 1
    assert said[0].startswith("a on sblimp-dev: 58.0 (53.0, 63.0) does not clearly beat unigrams alone, 60.0")


def test_of_several_tokenizers_floors_the_highest_counts():
    several = [*FLOORS, floor("mine", "length", 0.6, "g")]
    assert [one["value"] for one in floors_of(several, "mine")] == [0.6]


def test_the_page_in_markdown_holds_every_number_once_where_it_belongs():
    groups = [
        row("a", "sblimp-dev", value, n=50) | {"grouping": "kind", "group": name}
        for name, value in (("binding", 0.5), ("agreement|number", 0.66))
    ]
    comparisons = [
        {"benchmark": "sblimp-dev", "protocol": "slam", "model": "b", "other": "a",
         "difference": 0.08, "low": 0.01, "high": 0.15, "p": 0.02, "n": 100}
    ]  # fmt: skip
    page = markdown(RESULTS, groups, comparisons, FLOORS, {"slam": "one", "slam+sum": "other"})
    lines = page.splitlines()
    assert "| sblimp-dev | 100 | 58.0 (53.0, 63.0) | 66.0 (61.0, 71.0) | 52.0 | 60.0 |" in lines
    assert "| mine | 40 | 70.0 (65.0, 75.0) |  | 50.0 |  |" in lines
    assert "| sblimp-dev | 100 | 61.3 (56.3, 66.3) | 67.0 (62.0, 72.0) |" in lines
    assert "| sblimp-dev | slam | b | a | 8.0 (1.0, 15.0) | 0.0200 |" in lines
    assert "| agreement\\|number | 50 | 66.0 (61.0, 71.0) |" in lines
    # every row has as many cells as its heading
    sizes = set()
    for line in lines:
        if line.startswith("|"):
            sizes.add(line.replace("\\|", "").count("|"))
        elif sizes:
            assert len(sizes) == 1
            sizes = set()


def test_published_numbers_have_sources_and_are_what_the_papers_print():
    rows = read_published()
    assert len(rows) > 60
    for one in rows:
        assert one.source
        assert one.scores
        for metric, value in one.scores.items():
            assert metric in METRICS
            if metric == "judge":
                assert 1 <= value <= 5
            elif metric == "genppl":
                assert value > 1
            else:
                assert 0 < value < 100
    found = {(one.model, one.source.split(", ")[-1]): one.scores for one in rows}
    slam = found["Slam", "Table 2"]
    assert (slam["sblimp"], slam["ssc"], slam["tsc"], slam["genppl"]) == (58.86, 58.04, 82.04, 62.8)
    assert found["TWIST-7B", "Table 2"]["sblimp"] == 59.0
    assert found["AlignSLM-7B", "Table 3"]["tsc"] == 86.8
    (largest,) = [one for one in rows if one.tokens == "82B" and "sblimp_macro" in one.scores]
    assert largest.scores["sblimp_macro"] - largest.scores["sblimp_micro"] == pytest.approx(2.97)


@pytest.mark.parametrize(
    ("benchmarks", "metrics"),
    [
        (["swuggy-dev", "mine"], ["swuggy"]),
        (["tSC", "sSC"], ["ssc", "tsc"]),
        (["sblimp", "storycloze", "slam-swuggy"], []),
        (["salmon"], [name for name in METRICS if name.startswith("salmon")]),
    ],
)
def test_only_the_fields_own_sets_are_comparable(benchmarks, metrics):
    assert comparable(benchmarks) == metrics
