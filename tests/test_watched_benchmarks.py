import pytest

import toy_language
import toy_training
from slam.errors import ConfigError, InputError, MismatchError
from slam.evaluate import EvaluateConfig, evaluate
from slam.pretrain import pretrain
from slam.report import ReportConfig, report
from slam.run import read_json, read_json_lines, read_run, write_json_lines


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Shards, pairs of two benchmarks, a training that watches them and one that does not."""
    root = tmp_path_factory.mktemp("watched")
    toy_training.write_shards(root / "shards")
    pairs = toy_language.counting_pairs(40)
    pairs += [(f"b{p[0]}", "other", *p[2:]) for p in toy_language.counting_pairs(8, seed=5)]
    toy_language.write_pairs(root / "pairs", pairs)
    pretrain(config_of(root), root / "watched")
    pretrain(toy_training.config_of(root / "shards"), root / "unwatched")
    return root


def config_of(root, **changes):
    chosen = {"benchmarks": (root / "pairs",), "benchmark_pairs": 12}
    return toy_training.config_of(root / "shards", **chosen | changes)


def test_each_validation_has_an_accuracy_of_each_benchmark(folders):
    rows = [r for r in read_json_lines(folders / "watched" / "metrics.jsonl") if "validation_loss" in r]
    assert len(rows) == 5  # four, and the one at the end
    for row in rows:
        assert 0 <= row["validation_accuracy_counting"] <= 1
        # of eight pairs, ties of one half included
        assert (16 * row["validation_accuracy_other"]).is_integer()
        assert (24 * row["validation_accuracy_counting"]).is_integer()
    found = read_run(folders / "watched").results
    assert found["final_validation_accuracy_counting"] == rows[-1]["validation_accuracy_counting"]


def test_the_last_accuracy_is_that_of_the_saved_model_on_all_pairs(folders, tmp_path):
    pretrain(config_of(folders, benchmark_pairs=500), tmp_path / "lm")
    config = EvaluateConfig(models={"lm": tmp_path / "lm"}, benchmarks=(folders / "pairs",))
    evaluate(config, tmp_path / "scores")
    scored = {
        row["benchmark"]: row["value"]
        for row in read_json(tmp_path / "scores" / "results.json")
        if row["metric"] == "accuracy"
    }
    found = read_run(tmp_path / "lm").results
    for name, value in scored.items():
        assert found[f"final_validation_accuracy_{name}"] == pytest.approx(value)


def test_a_watched_training_is_the_one_that_was_not_watched(folders):
    one, other = (toy_training.weights(folders / name) for name in ("watched", "unwatched"))
    toy_training.assert_same_tensors(one, other)


def test_the_report_draws_what_was_watched(folders, tmp_path):
    report(ReportConfig(runs={"watched": folders / "watched"}), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "counting: accuracy in %" in page
    assert "other: accuracy in %" in page
    report(ReportConfig(runs={"unwatched": folders / "unwatched"}), tmp_path / "plain")
    assert "accuracy in %" not in (tmp_path / "plain" / "report.html").read_text()


def test_pairs_of_another_tokenizer_are_refused_before_training(folders, tmp_path):
    toy_language.write_pairs(tmp_path / "pairs", toy_language.counting_pairs(3), fingerprint="f" * 16)
    with pytest.raises(MismatchError, match="encode with the model's tokenizer"):
        pretrain(config_of(folders, benchmarks=(tmp_path / "pairs",)), tmp_path / "lm")
    assert not (tmp_path / "lm").exists()


def test_recordings_are_refused(folders, tmp_path):
    toy_language.write_pairs(tmp_path / "pairs", toy_language.counting_pairs(3))
    (tmp_path / "pairs" / "units.json").unlink()
    write_json_lines(tmp_path / "pairs" / "manifest.jsonl", [{"id": "a", "audio": "a.wav"}])
    with pytest.raises(InputError, match="holds recordings; encode them first"):
        pretrain(config_of(folders, benchmarks=(tmp_path / "pairs",)), tmp_path / "lm")


def test_no_pairs_are_no_setting(folders):
    with pytest.raises(ConfigError, match="benchmark_pairs = 0"):
        config_of(folders, benchmark_pairs=0)
