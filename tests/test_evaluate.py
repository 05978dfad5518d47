from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import reference_model
import toy_language
from slam.errors import ConfigError, InputError, MismatchError
from slam.evaluate import EvaluateConfig, evaluate
from slam.metrics.preference import bootstrap_mean, preferences
from slam.run import read_json, read_json_lines, read_run

COLUMNS = {"model", "benchmark", "metric", "value", "low", "high", "n"}


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
    return {(row["model"], row["benchmark"]): row["value"] for row in read_json(folder / "results.json")}


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
    assert [(row["model"], row["benchmark"]) for row in rows] == [
        (model, benchmark)
        for model in ("first", "second")
        for benchmark in ("counting", "other", "noise", "ties")
    ]
    assert {row["metric"] for row in rows} == {"accuracy"}
    assert [row["n"] for row in rows[:4]] == [24, 15, 20, 3]
    for row in rows:
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1


def test_scores_by_kind_add_up_to_the_benchmarks(scored):
    for row in read_json(scored / "results.json"):
        kinds = [
            kind
            for kind in read_json(scored / "kinds.json")
            if (kind["model"], kind["benchmark"]) == (row["model"], row["benchmark"])
        ]
        assert sum(kind["n"] for kind in kinds) == row["n"]
        total = sum(kind["n"] * kind["value"] for kind in kinds)
        assert total == pytest.approx(row["n"] * row["value"])


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
    def some(_, documents, **__):
        return np.where(np.arange(len(documents)) == 3, -np.inf, -1.0), np.ones(len(documents), np.int64)

    monkeypatch.setattr("slam.packing.log_likelihoods", some)
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


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=30))
def test_a_preference_is_one_a_half_or_nothing(rows):
    chosen, rejected = np.array(rows, float).T
    found = preferences(chosen, rejected)
    assert found.tolist() == [1.0 if c > r else 0.0 if c < r else 0.5 for c, r in rows]
    assert (preferences(rejected, chosen) == 1 - found).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40), st.integers(0, 9))
def test_an_interval_holds_its_mean_and_is_decided_by_its_seed(values, seed):
    found = bootstrap_mean(np.array(values), seed=seed)
    assert found.value == pytest.approx(np.mean(values))
    assert found.n == len(values)
    assert min(values) <= found.low <= found.value <= found.high <= max(values)
    assert found == bootstrap_mean(np.array(values), seed=seed)


def test_other_seeds_give_other_resamples():
    found = {bootstrap_mean(np.random.default_rng(0).random(37), seed=seed).low for seed in range(4)}
    assert len(found) == 4


def test_an_interval_covers_the_true_accuracy_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        found = bootstrap_mean((generator.random(100) < 0.7).astype(float), seed=trial)
        covered += found.low <= 0.7 <= found.high
    assert (
        0.90 <= covered / 200 <= 0.99
    )  # a binomial of 200 at 0.95 lies within ± 0.03 nineteen times in twenty


def test_an_interval_is_as_wide_as_the_binomial_says():
    hits = np.repeat([1.0, 0.0], [700, 300])
    found = bootstrap_mean(hits)
    width = 2 * 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert found.high - found.low == pytest.approx(width, rel=0.1)
