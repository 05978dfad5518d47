from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import reference_model
import toy_language
from slam.errors import ConfigError, InputError, MismatchError
from slam.evaluate import EvaluateConfig, evaluate
from slam.pairs import read_pair_rows, write_pair_rows
from slam.run import read_json, read_json_lines, read_run

COLUMNS = {"model", "benchmark", "protocol", "metric", "value", "low", "high", "n"}


def mixed_pairs():
    """Three benchmarks, one of two kinds, and two pairs whose sides are the same."""
    pairs = toy_language.counting_pairs(24, seed=1, benchmark="counting")
    pairs += [
        (f"b{pair[0]}", *pair[1:]) for pair in toy_language.counting_pairs(15, seed=2, benchmark="other")
    ]
    generator = np.random.default_rng(3)
    for number in range(20):
        # no unit follows itself: units on disk are deduplicated
        lengths = generator.integers(2, 9, 2)
        sides = [np.cumsum(generator.integers(1, 12, n)) % toy_language.NUM_UNITS for n in lengths]
        pairs.append((f"noise-{number}", "noise", "noise", [], *sides))
    for number in range(3):
        same = toy_language.count(number, 5, 4 + number)
        pairs.append((f"tie-{number}", "ties", "tie", [2, 3], same, same))
    return pairs


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    toy_language.write_pairs(root / "pairs", mixed_pairs())
    for seed in (0, 1):
        lm = toy_language.new_toy_lm(seed)
        with torch.no_grad():
            for weight in lm.parameters():
                weight.mul_(4 if weight.ndim > 1 else 1)
        toy_language.write_lm(root / f"lm-{seed}", lm)
    return root


def config_of(folders, **changes):
    chosen = {
        "models": {"first": folders / "lm-0", "second": folders / "lm-1"},
        "benchmarks": (folders / "pairs",),
    }
    return EvaluateConfig(**chosen | changes)


@pytest.fixture(scope="module")
def scored(folders):
    evaluate(config_of(folders), folders / "scores")
    return folders / "scores"


def values(folder):
    return {
        (row["model"], row["benchmark"]): row["value"]
        for row in read_json(folder / "results.json")
        if row["metric"] == "accuracy"
    }


def documents_of(pairs):
    vocabulary = toy_language.VOCABULARY
    return [
        tuple(vocabulary.document(np.concatenate([prompt, side]).astype(int)) for side in sides)
        for _, _, _, prompt, *sides in pairs
    ]


@pytest.mark.parametrize(("name", "folder"), [("first", "lm-0"), ("second", "lm-1")])
def test_accuracies_equal_those_of_plain_transformers(folders, scored, name, folder):
    plain = reference_model.load_plainly(folders / folder)
    every = mixed_pairs()
    for benchmark in ("counting", "other", "noise", "ties"):
        documents = documents_of([pair for pair in every if pair[1] == benchmark])
        assert values(scored)[name, benchmark] == pytest.approx(reference_model.accuracy(plain, documents))


def test_each_pairs_scores_are_means_over_all_tokens_after_the_first(folders, scored):
    plain = reference_model.load_plainly(folders / "lm-0")
    rows = {row["id"]: row for row in read_json_lines(scored / "items.jsonl") if row["model"] == "first"}
    for pair, documents in zip(mixed_pairs(), documents_of(mixed_pairs()), strict=True):
        for side, document in zip(("chosen", "rejected"), documents, strict=True):
            expected = reference_model.document_log_likelihood(plain, document) / (len(document) - 1)
            assert rows[pair[0]][side] == pytest.approx(expected, abs=1e-5)


def test_the_table_has_exactly_its_columns_and_counts_its_pairs(scored):
    rows = read_json(scored / "results.json")
    assert {frozenset(row) for row in rows} == {frozenset(COLUMNS)}
    plain = [row for row in rows if row["metric"] == "accuracy"]
    assert [(row["model"], row["benchmark"]) for row in plain] == [
        (model, benchmark)
        for model in ("first", "second")
        for benchmark in ("counting", "other", "noise", "ties")
    ]
    assert [row["n"] for row in plain[:4]] == [24, 15, 20, 3]
    assert {row["protocol"] for row in rows} == {"slam"}
    for row in rows:
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1


def test_scores_by_kind_add_up_to_the_benchmarks(scored):
    groups = [row for row in read_json(scored / "groups.json") if row["grouping"] == "kind"]
    for row in read_json(scored / "results.json"):
        kinds = [
            one for one in groups if (one["model"], one["benchmark"]) == (row["model"], row["benchmark"])
        ]
        assert sum(kind["n"] for kind in kinds) == row["n"]
        if row["metric"] == "accuracy":
            total = sum(kind["n"] * kind["value"] for kind in kinds)
            assert total == pytest.approx(row["n"] * row["value"])
        else:  # the mean over kinds, which only a benchmark of several has
            assert row["metric"] == "accuracy_macro"
            assert row["value"] == pytest.approx(np.mean([kind["value"] for kind in kinds]))
            assert len(kinds) > 1


def test_a_pair_whose_sides_are_the_same_counts_one_half_in_any_batch(folders, scored, tmp_path):
    assert values(scored)["first", "ties"] == 0.5
    for most_tokens in (1, 37):
        out = tmp_path / str(most_tokens)
        evaluate(config_of(folders, most_tokens=most_tokens), out)
        assert values(out)["first", "ties"] == 0.5


@pytest.mark.parametrize("most_tokens", [1, 50, 100_000])
def test_scores_do_not_depend_on_how_many_tokens_are_scored_at_once(folders, scored, tmp_path, most_tokens):
    evaluate(config_of(folders, most_tokens=most_tokens), tmp_path / "scores")
    assert values(tmp_path / "scores") == values(scored)
    before, after = (read_json_lines(folder / "items.jsonl") for folder in (scored, tmp_path / "scores"))
    for one, other in zip(before, after, strict=True):
        assert one["chosen"] == pytest.approx(other["chosen"], abs=1e-5)


def test_swapping_the_sides_gives_one_minus_each_value(folders, scored, tmp_path):
    swapped = [(*pair[:4], pair[5], pair[4]) for pair in mixed_pairs()]
    toy_language.write_pairs(tmp_path / "pairs", swapped)
    evaluate(config_of(folders, benchmarks=(tmp_path / "pairs",)), tmp_path / "scores")
    before, after = (read_json_lines(folder / "items.jsonl") for folder in (scored, tmp_path / "scores"))
    assert [row["value"] for row in after] == [1 - row["value"] for row in before]


def test_a_benchmark_in_two_folders_is_refused(folders, tmp_path):
    toy_language.write_pairs(tmp_path / "more", toy_language.counting_pairs(3))
    with pytest.raises(InputError, match=r"'counting'.*evaluate one of them"):
        evaluate(config_of(folders, benchmarks=(folders / "pairs", tmp_path / "more")), tmp_path / "scores")


def test_benchmarks_of_several_folders_stand_in_one_table(folders, tmp_path):
    toy_language.write_pairs(tmp_path / "more", toy_language.counting_pairs(3, benchmark="more"))
    run = evaluate(config_of(folders, benchmarks=(folders / "pairs", tmp_path / "more")), tmp_path / "scores")
    assert {name for _, name in values(tmp_path / "scores")} == {"counting", "other", "noise", "ties", "more"}
    assert run.results["num_pairs"] == len(mixed_pairs()) + 3


def test_broken_weights_are_one_clear_error_and_no_table(folders, tmp_path):
    toy_language.write_lm(tmp_path / "lm")
    path = tmp_path / "lm" / "model.safetensors"
    weights = load_file(path)
    name = next(key for key in weights if key.endswith("down_proj.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"weights .*broken") as caught:
        evaluate(config_of(folders, models={"broken": tmp_path / "lm"}), tmp_path / "scores")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "scores" / "results.json").exists()
    assert read_run(tmp_path / "scores") is None


def test_a_score_that_is_not_a_number_names_its_pair(folders, tmp_path, monkeypatch):
    def some(_, pairs, **__):
        values = [tuple(np.full(len(side) - 1, -1.0, np.float32) for side in pair) for pair in pairs]
        values[3][1][0] = -np.inf
        return values

    monkeypatch.setattr("slam.pair_scoring.pair_values", some)
    with pytest.raises(InputError, match=r"pair 'pair-3'.*not a number"):
        evaluate(config_of(folders), tmp_path / "scores")


def test_pairs_of_another_tokenizer_are_refused(folders, tmp_path):
    toy_language.write_pairs(tmp_path / "pairs", toy_language.counting_pairs(3), fingerprint="f" * 16)
    with pytest.raises(MismatchError, match="encode with the model's tokenizer"):
        evaluate(config_of(folders, benchmarks=(tmp_path / "pairs",)), tmp_path / "scores")


def test_nothing_to_score_is_refused(folders):
    with pytest.raises(ConfigError):
        config_of(folders, models={})
    with pytest.raises(ConfigError):
        config_of(folders, benchmarks=())
    with pytest.raises(ConfigError):
        replace(config_of(folders), most_tokens=0)


def test_another_protocol_is_another_row_beside_the_first(folders, scored, tmp_path):
    run = evaluate(config_of(folders, protocols=("slam", "slam+continuation+sum")), tmp_path / "scores")
    rows = read_json(tmp_path / "scores" / "results.json")
    assert [row for row in rows if row["protocol"] == "slam"] == read_json(scored / "results.json")
    assert {row["protocol"] for row in rows} == {"slam", "slam+continuation+sum"}
    assert set(run.results["protocols"]) == {"slam", "slam+continuation+sum"}
    items = read_json_lines(tmp_path / "scores" / "items.jsonl")
    one, other = (
        {(row["model"], row["id"]): row["chosen"] for row in items if row["protocol"] == name}
        for name in ("slam", "slam+continuation+sum")
    )
    assert one.keys() == other.keys()
    assert one != other


def test_swapped_sides_give_one_minus_every_accuracy(folders, scored, tmp_path):
    swapped = [(*pair[:4], pair[5], pair[4]) for pair in mixed_pairs()]
    toy_language.write_pairs(tmp_path / "pairs", swapped)
    evaluate(config_of(folders, benchmarks=(tmp_path / "pairs",)), tmp_path / "scores")
    before, after = (read_json(folder / "results.json") for folder in (scored, tmp_path / "scores"))
    for one, other in zip(before, after, strict=True):
        assert other["value"] == pytest.approx(1 - one["value"], abs=1e-12)


def test_a_model_that_knows_nothing_scores_one_half_within_its_interval(tmp_path):
    generator = np.random.default_rng(11)
    pairs = []
    for number in range(400):  # both sides from one distribution: nothing tells them apart
        sides = [np.cumsum(generator.integers(1, 12, generator.integers(4, 12))) % 12 for _ in range(2)]
        pairs.append((f"noise-{number}", "noise", "noise", [], *sides))
    toy_language.write_pairs(tmp_path / "pairs", pairs)
    toy_language.write_lm(tmp_path / "lm")
    config = EvaluateConfig(models={"random": tmp_path / "lm"}, benchmarks=(tmp_path / "pairs",))
    evaluate(config, tmp_path / "scores")
    (row,) = read_json(tmp_path / "scores" / "results.json")
    assert row["low"] <= 0.5 <= row["high"]
    for floor in read_json(tmp_path / "scores" / "floors.json"):
        assert 0.45 <= floor["value"] <= 0.58


def test_floors_see_lengths_and_frequent_units(tmp_path, folders):
    generator = np.random.default_rng(12)
    pairs = []
    for number in range(60):
        common, rare = (np.resize(some, 6 + number % 3) for some in ([1, 2], [7, 9, 11, 4, 5, 6, 8, 10]))
        # better sides are always shorter; only in the second set are they of frequent units
        pairs.append((f"l{number}", "length", "all", [], common[: generator.integers(3, 6)], common))
        pairs.append((f"u{number}", "unigram", "all", [], common, rare))
    toy_language.write_pairs(tmp_path / "pairs", pairs)
    evaluate(config_of(folders, benchmarks=(tmp_path / "pairs",)), tmp_path / "scores")
    found = {(row["benchmark"], row["floor"]): row for row in read_json(tmp_path / "scores" / "floors.json")}
    assert found["length", "length"]["value"] == 1.0
    assert found["length", "length"]["direction"] == "shorter"
    assert found["unigram", "length"]["value"] == 0.5
    assert found["unigram", "unigram"]["value"] == 1.0
    # frequencies of speech in which the common units never are
    toy_language.write_units(tmp_path / "speech", {"a": [7, 9, 11, 4, 5, 6, 8, 10] * 9})
    changed = config_of(folders, benchmarks=(tmp_path / "pairs",), unigram_from=(tmp_path / "speech",))
    evaluate(changed, tmp_path / "others")
    found = {(row["benchmark"], row["floor"]): row for row in read_json(tmp_path / "others" / "floors.json")}
    assert found["unigram", "unigram"]["value"] == 0.0


def test_unigrams_of_another_tokenizer_are_refused(tmp_path, folders):
    toy_language.write_units(tmp_path / "speech", {"a": [1, 2]}, fingerprint="f" * 16)
    with pytest.raises(MismatchError, match="leave it out of unigram_from"):
        evaluate(config_of(folders, unigram_from=(tmp_path / "speech",)), tmp_path / "scores")


def test_models_are_compared_on_the_same_pairs(scored):
    found = read_json(scored / "comparisons.json")
    assert [(row["model"], row["other"]) for row in found] == [("second", "first")] * 4
    for row in found:
        one, other = (values(scored)[name, row["benchmark"]] for name in (row["model"], row["other"]))
        assert row["difference"] == pytest.approx(one - other)
        assert 0 < row["p"] <= 1
        assert row["low"] <= row["difference"] <= row["high"]


def test_voices_are_averaged_within_items_and_resampled_with_them(tmp_path, folders):
    pairs = toy_language.counting_pairs(24)
    toy_language.write_pairs(tmp_path / "pairs", pairs)
    rows = [
        replace(row, item=f"item-{number // 4}", groups={"voice": "ABCD"[number % 4]})
        for number, row in enumerate(read_pair_rows(tmp_path / "pairs"))
    ]
    write_pair_rows(tmp_path / "pairs", rows)
    evaluate(config_of(folders, benchmarks=(tmp_path / "pairs",)), tmp_path / "scores")
    found = [row for row in read_json(tmp_path / "scores" / "results.json") if row["model"] == "first"]
    assert [(row["metric"], row["n"]) for row in found] == [
        ("accuracy", 24), ("accuracy_macro", 24), ("accuracy_by_item", 6)
    ]  # fmt: skip
    assert found[2]["value"] == pytest.approx(found[0]["value"])  # as many voices for each item
    voices = [
        row for row in read_json(tmp_path / "scores" / "groups.json")
        if row["model"] == "first" and row["grouping"] == "voice"
    ]  # fmt: skip
    assert [(row["group"], row["n"]) for row in voices] == [(voice, 6) for voice in "ABCD"]
    plain = tmp_path / "plain"
    toy_language.write_pairs(plain / "pairs", pairs)
    evaluate(config_of(folders, benchmarks=(plain / "pairs",)), plain / "scores")
    apart = next(iter(read_json(plain / "scores" / "results.json")))
    assert (apart["low"], apart["high"]) != (found[0]["low"], found[0]["high"])
    assert apart["value"] == found[0]["value"]


def test_a_subset_is_drawn_by_the_seed_from_each_benchmark(folders, tmp_path):
    kept = []
    for seed in (0, 0, 1):
        out = tmp_path / str(len(kept))
        evaluate(config_of(folders, max_pairs=10, seed=seed), out)
        kept.append([row["id"] for row in read_json_lines(out / "items.jsonl") if row["model"] == "first"])
    assert kept[0] == kept[1] != kept[2]
    assert len(kept[0]) == 10 + 10 + 10 + 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocols": ("slam", "slam")}, "each once"),
        ({"protocols": ()}, "at least one"),
        ({"protocols": ("global",)}, "no protocol is called 'global'"),
        ({"max_pairs": 0}, "max_pairs must be at least 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(folders, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        config_of(folders, **changes)
