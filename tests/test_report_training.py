import json
import shutil

import numpy as np
import pytest

import toy_tuning
from browser import chromium
from slam.dpo import dpo
from slam.report import ReportConfig, report
from slam.run import read_run
from test_report import Read
from toy_training import rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tuning that was watched in every way and stopped."""
    root = toy_tuning.write_folders(tmp_path_factory.mktemp("tuning"))
    config = toy_tuning.config_of(
        root,
        validation_shards=root / "shards",
        max_validation_loss_rise=0.3,
        learning_rate=5e-3,
        schedule="constant",
        beta=0.05,
        validations=10,
    )
    dpo(config, root / "tuned")
    return root


def page_of(runs, out):
    report(ReportConfig(runs=runs), out)
    return (out / "report.html").read_text()


def changed(folders, tmp_path, **results):
    """A copy of the tuning whose results say something else."""
    shutil.copytree(folders / "tuned", tmp_path / "other")
    content = json.loads((tmp_path / "other" / "run.json").read_text())
    content["results"] |= results
    (tmp_path / "other" / "run.json").write_text(json.dumps(content))
    return tmp_path / "other"


def number(cell):
    return float(cell.split()[0].replace("\N{MINUS SIGN}", "-"))


def test_what_tuning_changed_stands_on_the_page_before_and_after(folders, tmp_path):
    page = page_of({"lm": folders / "lm", "tuned": folders / "tuned"}, tmp_path / "out")
    results = read_run(folders / "tuned").results
    found = {row[0]: row[2:] for row in Read(page).rows if len(row) == 4}
    assert found["tuned"] == ["before", "after"]
    for label, name, scale, digits in (
        ("held-out preference accuracy", "preference_accuracy", 100, 1),
        ("held-out preference loss", "loss", 1, 3),
        ("better side over the model before", "chosen_log_ratio", 1, 2),
        ("worse side over the model before", "rejected_log_ratio", 1, 2),
        ("KL to the model before", "kl", 1, 4),
        ("pre-training validation loss", "pretraining_loss", 1, 3),
        ("auto-BLEU-2 of samples", "auto_bleu", 100, 1),
    ):
        for cell, when in zip(found[label], ("before", "after"), strict=True):
            assert number(cell) == pytest.approx(scale * results[when][name], abs=0.5001 * 10**-digits)
    low, high = (f"{100 * bound:.1f}" for bound in results["after"]["preference_accuracy_interval"])
    assert found["held-out preference accuracy"][1].endswith(f"({low}\N{EN DASH}{high})")
    assert "60 pairs trained on, 20 held out;" in page
    assert results["stopped_by"] in page
    assert f"The model is that of step {results['kept_step']}." in page
    assert "win by length alone" not in page


def test_what_was_not_watched_has_no_line(folders, tmp_path):
    before, after = (dict(read_run(folders / "tuned").results[when]) for when in ("before", "after"))
    for shown in (before, after):
        del shown["pretraining_loss"], shown["auto_bleu"]
    other = changed(folders, tmp_path, before=before, after=after, stopped_by=None, kept_step=12, steps=12)
    page = page_of({"tuned": other}, tmp_path / "out")
    assert "KL to the model before" in page
    for word in ("auto-BLEU", "pre-training validation loss", "Stopped early", "is that of step"):
        assert word not in page


def test_pairs_that_length_tells_apart_are_warned_of(folders, tmp_path):
    about = {
        "num_equal_pairs": 7,
        "held_out_length_accuracy": 0.81,
        "held_out_length_interval": [0.7, 0.9],
    }
    page = page_of({"tuned": changed(folders, tmp_path, **about)}, tmp_path / "out")
    assert "81.0 %" in page
    assert "a model could win by length alone" in page
    assert "7 left out because their sides are the same units" in page


def test_the_accuracy_is_drawn_beside_the_loss(folders, tmp_path):
    page_of({"tuned": folders / "tuned"}, tmp_path / "out")
    validated = [
        row["validation_preference_accuracy"] for row in rows(folders / "tuned") if "loss" not in row
    ]
    assert np.ptp(validated) > 0
    with chromium(tmp_path / "profile") as tab:
        tab.open(tmp_path / "out" / "report.html", 1100, 900)
        drawings = tab.evaluate(
            """[...document.querySelectorAll('#curves svg')].map(one => {
                const box = one.getBoundingClientRect();
                return [box.left, box.top, box.width, one.querySelectorAll('use').length]; })"""
        )
        assert tab.complaints == []
        for width in (1100, 400):
            tab.open(tmp_path / "out" / "report.html", width, 900)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
    (left, top, width, _), (right, other_top, other_width, dots) = drawings
    assert top == other_top
    assert left + width <= right
    assert width == other_width > 400
    assert dots >= len(validated)
