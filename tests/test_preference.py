import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from slam.metrics.preference import (
    bootstrap_mean,
    item_values,
    macro_mean,
    paired_difference,
    preferences,
    wilson_interval,
)


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
    assert 0 <= found.low <= found.value <= found.high <= 1
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
    # a binomial of 200 at 0.95 lies within ± 0.03 nineteen times in twenty
    assert 0.90 <= covered / 200 <= 0.99


def clustered(generator, num_clusters, size):
    """Pairs that stand or fall with their cluster, and the cluster of each."""
    hits = (generator.random(num_clusters) < 0.7).astype(float)
    return np.repeat(hits, size), [f"c{number}" for number in range(num_clusters) for _ in range(size)]


def test_a_clustered_interval_covers_the_truth_where_one_over_pairs_does_not():
    generator = np.random.default_rng(1)
    covered = {"clusters": 0, "pairs": 0}
    for trial in range(100):
        values, clusters = clustered(generator, 60, 5)
        for name, given_clusters in (("clusters", clusters), ("pairs", None)):
            found = bootstrap_mean(values, given_clusters, seed=trial)
            covered[name] += found.low <= 0.7 <= found.high
    assert covered["clusters"] >= 88
    assert covered["pairs"] <= 75


def test_clusters_of_different_size_leave_the_mean_that_over_pairs():
    values, clusters = np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"]
    assert bootstrap_mean(values, clusters).value == 0.75


def test_an_interval_is_as_wide_as_the_binomial_says():
    hits = np.repeat([1.0, 0.0], [700, 300])
    found = bootstrap_mean(hits)
    width = 2 * 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert found.high - found.low == pytest.approx(width, rel=0.1)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_few_pairs_all_right_or_all_wrong_prove_little(value):
    found = bootstrap_mean(np.full(8, value))
    expected = binomtest(round(8 * value), 8).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    in_pairs = bootstrap_mean(np.full(8, value), list("aabbccdd"))
    assert in_pairs.high - in_pairs.low > found.high - found.low


def test_one_cluster_with_hits_and_misses_says_nothing():
    found = bootstrap_mean(np.array([1.0, 0.0, 1.0]), ["a"] * 3)
    assert (found.low, found.high) == (0.0, 1.0)


def test_the_macro_mean_gives_every_kind_the_same_weight():
    values, kinds = np.array([1.0] * 90 + [0.0, 1.0, 0.0, 0.0]), ["big"] * 90 + ["small"] * 4
    found = macro_mean(values, kinds)
    assert found.value == pytest.approx((1 + 0.25) / 2)
    assert found.n == 94
    assert found.low < found.value < found.high


def test_a_macro_interval_covers_the_truth_about_as_often_as_it_says():
    generator, covered = np.random.default_rng(2), 0
    kinds = ["a"] * 40 + ["b"] * 120
    for trial in range(100):
        values = np.concatenate((generator.random(40) < 0.5, generator.random(120) < 0.8)).astype(float)
        found = macro_mean(values, kinds, seed=trial)
        covered += found.low <= 0.65 <= found.high
    assert 88 <= covered <= 100


def test_voices_of_an_item_are_averaged_first():
    values, items = np.array([1.0, 0.0, 1.0, 1.0, 0.0]), ["a", "b", "a", "a", "b"]
    means, firsts = item_values(values, items)
    assert means.tolist() == [1.0, 0.0]
    assert firsts == [0, 1]


def test_a_difference_is_that_of_the_means_and_turns_with_the_models():
    generator = np.random.default_rng(3)
    one, other = ((generator.random(300) < share).astype(float) for share in (0.75, 0.6))
    found, turned = paired_difference(one, other), paired_difference(other, one)
    assert found.value == pytest.approx(one.mean() - other.mean())
    assert turned.value == pytest.approx(-found.value)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=0.02)
    assert found.low <= found.value <= found.high


def test_a_p_value_is_the_sign_tests_where_pairs_only_win_or_lose():
    one, other = np.zeros(200), np.zeros(200)
    one[:30], other[30:45] = 1.0, 1.0
    expected = binomtest(30, 45).pvalue  # the exact McNemar test
    assert paired_difference(one, other).p == pytest.approx(expected, abs=0.01)


def test_chance_differences_are_called_significant_as_often_as_they_should_be():
    generator, called = np.random.default_rng(4), 0
    for trial in range(100):
        values = [clustered(generator, 40, 3) for _ in range(2)]
        called += paired_difference(values[0][0], values[1][0], values[0][1], seed=trial).p < 0.05
    assert called <= 12  # of 100 at 0.05; more than 12 would come once in a thousand times


def test_equal_models_do_not_differ():
    values = np.array([1.0, 0.0, 1.0])
    found = paired_difference(values, values)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_wilsons_interval_is_scipys():
    expected = binomtest(3, 10).proportion_ci(method="wilson")
    assert wilson_interval(0.3, 10) == (expected.low, expected.high)


def test_a_single_pair_that_differs_is_no_evidence():
    found = paired_difference(np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    assert found.p == 1.0
    assert found.value == pytest.approx(1 / 3)
