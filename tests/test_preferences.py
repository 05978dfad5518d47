from dataclasses import replace

import numpy as np
import pytest

import toy_language
from slam.dpo import dpo
from slam.errors import InputError
from slam.pairs import Pair, read_pairs
from slam.preferences import comparable_pairs
from slam.run import read_run
from slam.units import Units, read_units
from toy_tuning import config_of


def units(*ids):
    return Units(np.array(ids, np.uint16), np.ones(len(ids), np.uint16), 25.0)


def pair(name, prompt, chosen, rejected):
    return Pair(name, "set", "kind", units(*prompt), units(*chosen), units(*rejected))


def test_pairs_whose_sides_are_the_same_units_are_left_out(tmp_path):
    """However long each was said: durations are no part of what the model learns."""
    slow = replace(units(4, 5), durations=np.array([7, 2], np.uint16))
    pairs = [
        pair("a", [1], [4, 5], [4, 6]),
        replace(pair("b", [1], [4, 5], []), rejected=slow),
        pair("c", [1], [4, 5], [4, 5, 6]),
        pair("d", [1], [4], [4]),
    ]
    assert [one.id for one in comparable_pairs(pairs, tmp_path)] == ["a", "c"]


def test_when_nothing_can_be_preferred_that_is_said(tmp_path):
    with pytest.raises(InputError, match="both sides of every pair are the same units"):
        comparable_pairs([pair("a", [1], [4, 5], [4, 5])], tmp_path)


def test_a_pair_without_a_prompt_is_named(tmp_path):
    pairs = [pair("a", [1], [4], [5]), pair("b", [], [4], [5]), pair("c", [], [4], [6])]
    with pytest.raises(InputError, match=r"2 of 3 pairs have no units before .* the first 'b'; leave them"):
        comparable_pairs(pairs, tmp_path)


def test_tuning_counts_the_pairs_left_out_and_refuses_bare_ones(tmp_path):
    toy_language.write_lm(tmp_path / "lm")
    pairs = toy_language.counting_pairs(12)
    same = [(f"same-{one[0]}", *one[1:4], one[4], one[4]) for one in pairs[:3]]
    toy_language.write_pairs(tmp_path / "pairs", pairs + same)
    config = config_of(tmp_path, budget="10 steps", validations=0, samples=0)
    dpo(config, tmp_path / "tuned")
    results = read_run(tmp_path / "tuned").results
    kept = [one for one in read_pairs(read_units(tmp_path / "pairs")) if not one.id.startswith("same")]
    assert results["num_equal_pairs"] == 3
    assert results["num_pairs"] + results["num_held_out_pairs"] == len(kept) == 12

    bare = [("bare", "set", "kind", [], one[4], one[5]) for one in pairs[:1]]
    toy_language.write_pairs(tmp_path / "bare", pairs + bare)
    with pytest.raises(InputError, match=r"1 of 13 pairs have no units before their sides part.*'bare'"):
        dpo(replace(config, pairs=tmp_path / "bare"), tmp_path / "other")
    assert not (tmp_path / "other").exists()
