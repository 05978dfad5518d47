import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import reference_model
import toy_language
from slam.budget import Budget, TrainingConfig, learning_rate_share
from slam.errors import ConfigError, InputError
from slam.packing import use_packed
from slam.pretrain import PretrainConfig, next_token_task, pretrain
from slam.run import read_json_lines, read_run
from slam.shards import Batches, open_shards
from slam.training.loop import ready

LOSSES = ("step", "tokens", "loss", "gradient_norm", "validation_loss")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return toy_language.write_shards(
        folder, toy_language.utterances(120), toy_language.utterances(20, seed=1)
    )


@pytest.fixture(scope="module")
def settings_of(shards):
    return PretrainConfig(
        shards=shards,
        budget="24 steps",
        batch_tokens=80,
        micro_batch_tokens=40,
        context=32,
        validations=4,
        learning_rate=3e-3,
        architecture=toy_language.ARCHITECTURE,
        checkpoint_seconds=1e-9,  # after every step
    )


@pytest.fixture(scope="module")
def unkilled(settings_of, tmp_path_factory):
    out = tmp_path_factory.mktemp("unkilled") / "lm"
    pretrain(settings_of, out)
    return out


class KilledError(Exception):
    """Stands for a process that is no more: nothing of the project catches it."""


@pytest.fixture
def at_step(monkeypatch):
    """Do something when the data of a step is asked for."""
    starting_at = Batches.starting_at

    def arrange(number, act):
        def tampered(self, first):
            for current, batch in enumerate(starting_at(self, first), first):
                if current == number:
                    act()
                yield batch

        monkeypatch.setattr(Batches, "starting_at", tampered)

    yield arrange
    monkeypatch.setattr(Batches, "starting_at", starting_at)


def kill():
    raise KilledError


def figures(out):
    """What of the log does not depend on the clock."""
    return [{key: row[key] for key in LOSSES if key in row} for row in read_json_lines(out / "metrics.jsonl")]


def assert_same_run(out, other):
    first, second = (load_file(folder / "model.safetensors") for folder in (out, other))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
    assert figures(out) == figures(other)


def resumed(config, out, monkeypatch):
    monkeypatch.undo()
    pretrain(config, out)
    return out


@pytest.mark.parametrize("number", [0, 1, 7, 10, 13, 20, 23])
def test_a_killed_run_resumed_equals_the_run_never_killed(
    *, settings_of, unkilled, at_step, tmp_path, monkeypatch, number
):
    out = tmp_path / "lm"
    at_step(number, kill)
    with pytest.raises(KilledError):
        pretrain(settings_of, out)
    assert read_run(out) is None
    assert_same_run(resumed(settings_of, out, monkeypatch), unkilled)


def test_a_run_killed_again_and_again_still_equals_the_run_never_killed(
    settings_of, unkilled, at_step, tmp_path, monkeypatch
):
    out = tmp_path / "lm"
    for number in (3, 11, 12, 19):
        at_step(number, kill)
        with pytest.raises(KilledError):
            pretrain(settings_of, out)
    assert_same_run(resumed(settings_of, out, monkeypatch), unkilled)


@pytest.mark.parametrize("number", [0, 12, 23])
@pytest.mark.parametrize(
    ("sent", "leaves"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_leaves_a_checkpoint_and_the_resumed_run_equals_the_run_never_stopped(
    *, settings_of, unkilled, at_step, tmp_path, monkeypatch, sent, leaves, number
):
    config = replace(settings_of, checkpoint_seconds=3600.0)  # only the signal writes one
    out = tmp_path / "lm"
    at_step(number, lambda: signal.raise_signal(sent))
    with pytest.raises(leaves) as caught:
        pretrain(config, out)
    if leaves is SystemExit:
        assert caught.value.code == 0
    # the update under way is given up: a batch may take longer than a pre-emption waits
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"{number:09d}"]
    assert_same_run(resumed(config, out, monkeypatch), unkilled)


def test_a_run_killed_after_its_last_checkpoint_equals_the_run_never_killed(
    settings_of, unkilled, tmp_path, monkeypatch
):
    out = tmp_path / "lm"
    monkeypatch.setattr("slam.model.SpeechLM.save", lambda *_: kill())
    with pytest.raises(KilledError):
        pretrain(settings_of, out)
    assert_same_run(resumed(settings_of, out, monkeypatch), unkilled)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def _of_another_model(path):
    save_file({"another": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", _cut),
        ("optimizer.safetensors", _cut),
        ("optimizer.safetensors", os.remove),
        ("state.json", _cut),
        ("model.safetensors", _of_another_model),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    *, settings_of, unkilled, at_step, tmp_path, monkeypatch, capsys, file, damage
):
    out = tmp_path / "lm"
    at_step(15, kill)
    with pytest.raises(KilledError):
        pretrain(settings_of, out)
    newest = max((out / "checkpoints").glob("0*"))
    assert newest.name == "000000015"
    damage(newest / file)
    capsys.readouterr()
    resumed(settings_of, out, monkeypatch)
    said = capsys.readouterr().err.replace("\n", "")
    assert "damaged checkpoint" in said
    assert newest.name in said
    assert_same_run(out, unkilled)


def test_a_finished_run_keeps_no_checkpoint_and_is_not_made_twice(settings_of, unkilled, at_step):
    at_step(0, kill)
    assert not (unkilled / "checkpoints").exists()
    assert pretrain(settings_of, unkilled).results["steps"] == 24


def test_resuming_keeps_the_clock(settings_of, at_step, tmp_path, monkeypatch):
    config = replace(settings_of, budget="1s")
    out = tmp_path / "lm"
    at_step(30, lambda: time.sleep(0.5))
    monkeypatch.setattr("slam.model.SpeechLM.save", lambda *_: kill())
    with pytest.raises(KilledError):
        pretrain(config, out)
    monkeypatch.undo()
    before = read_json_lines(out / "metrics.jsonl")[-1]
    run = pretrain(config, out)
    assert before["seconds"] >= 1.0
    assert run.results["steps"] == before["step"]  # the budget was spent: not one step more


def test_a_time_budget_stops_on_time_with_the_rate_at_its_floor(settings_of, tmp_path):
    config = replace(settings_of, budget="1.5s", floor=0.1, checkpoint_seconds=3600.0, schedule="linear")
    run = pretrain(config, tmp_path / "lm")
    assert 1.5 <= run.results["training_seconds"] < 2.5
    rates = [r["learning_rate"] for r in read_json_lines(tmp_path / "lm" / "metrics.jsonl") if "loss" in r]
    assert max(rates) <= config.learning_rate
    assert 0.1 * config.learning_rate <= rates[-1] < 0.3 * config.learning_rate


def test_a_token_budget_is_spent_and_hardly_overspent(settings_of, tmp_path):
    run = pretrain(replace(settings_of, budget="1k tokens"), tmp_path / "lm")
    assert 1000 <= run.results["tokens"] < 1000 + settings_of.batch_tokens


def test_a_batch_has_the_same_gradients_however_it_is_split(settings_of):
    training = open_shards(settings_of.shards, "train")
    items = np.arange(9)
    documents = [training[number] for number in items]
    found = []
    for size in (1, 60, 10_000):
        lm = toy_language.new_toy_lm()
        use_packed(lm)
        config = replace(settings_of, micro_batch_tokens=size)
        engine = ready(lm, config, next_token_task(lm, training, training, config))
        micro_batches = engine.micro_batches(items)
        weight = sum(len(document) - 1 for document in documents)
        loss = engine.gradients(micro_batches, weight)["loss"]
        found.append((len(micro_batches), float(loss), [weight.grad.clone() for weight in lm.parameters()]))
    assert [number for number, _, _ in found] == [9, found[1][0], 1]
    assert 1 < found[1][0] < 9
    for _, loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][1], rel=1e-6)
        for one, other in zip(gradients, found[0][2], strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    # and they are those of the mean over all predicted tokens
    plain = toy_language.new_toy_lm()
    total = sum(
        torch.nn.functional.cross_entropy(
            reference_model.document_logits(plain, document)[:-1],
            torch.tensor(document[1:].astype(np.int64)),
            reduction="sum",
        )
        for document in documents
    )
    (total / sum(len(document) - 1 for document in documents)).backward()
    for one, other in zip(found[0][2], plain.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, atol=1e-6, rtol=1e-4)


def test_training_equals_a_plain_loop_over_single_documents(settings_of, tmp_path):
    config = replace(settings_of, budget="10 steps", checkpoint_seconds=3600.0)
    pretrain(config, tmp_path / "lm")
    training = open_shards(config.shards, "train")
    order = Batches(training.lengths, config.batch_tokens, config.seed).starting_at(0)
    batches = [[training[number] for number in next(order)] for _ in range(10)]
    plain = toy_language.new_toy_lm(seed=config.seed, context=config.context)
    rates = [
        config.learning_rate
        * learning_rate_share(config.schedule, number / 10, warmup=config.warmup, floor=config.floor)
        for number in range(10)
    ]
    losses = reference_model.train(plain, batches, rates, betas=config.betas, clip=config.clip)
    (row,) = [row for row in read_json_lines(tmp_path / "lm" / "metrics.jsonl") if "loss" in row]
    assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert row["tokens"] == sum(len(document) for batch in batches for document in batch)
    trained = reference_model.load_plainly(tmp_path / "lm")
    document = training[0]
    with torch.no_grad():
        torch.testing.assert_close(
            reference_model.document_logits(trained, document),
            reference_model.document_logits(plain.eval(), document),
            atol=1e-3,
            rtol=1e-3,
        )


def test_the_validation_loss_is_that_of_the_saved_model(unkilled, settings_of):
    plain = reference_model.load_plainly(unkilled)
    held_out = open_shards(settings_of.shards, "validation")
    documents = [held_out[number] for number in range(len(held_out))]
    total = sum(reference_model.document_log_likelihood(plain, document) for document in documents)
    expected = -total / sum(len(document) - 1 for document in documents)
    assert read_run(unkilled).results["final_validation_loss"] == pytest.approx(expected, abs=1e-5)


def test_a_model_learns_what_can_be_known_of_the_language(settings_of, tmp_path):
    config = replace(
        settings_of,
        budget="150 steps",
        batch_tokens=400,
        micro_batch_tokens=400,
        learning_rate=1e-2,
        checkpoint_seconds=3600.0,
    )
    run = pretrain(config, tmp_path / "lm")
    unigram = np.log(toy_language.NUM_UNITS)
    assert run.results["final_validation_loss"] < 0.5 * unigram


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_optimizer_lowers_the_loss_and_resumes_exactly(
    settings_of, at_step, tmp_path, monkeypatch, optimizer
):
    config = replace(settings_of, optimizer=optimizer)
    whole, out = tmp_path / "whole", tmp_path / "lm"
    pretrain(config, whole)
    at_step(17, kill)
    with pytest.raises(KilledError):
        pretrain(config, out)
    assert_same_run(resumed(config, out, monkeypatch), whole)
    losses = [row["validation_loss"] for row in figures(out) if "validation_loss" in row]
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("budget", ["30 steps", "10 steps"])
def test_a_loss_that_is_not_finite_is_one_clear_error(settings_of, tmp_path, budget):
    config = replace(settings_of, budget=budget, learning_rate=1e30)
    with pytest.raises(InputError, match=r"loss is (nan|inf).*learning_rate") as caught:
        pretrain(config, tmp_path / "lm")
    assert "\n" not in str(caught.value)
    assert read_run(tmp_path / "lm") is None


def test_the_log_has_its_columns_and_tensorboard_the_same_numbers(unkilled):
    rows = read_json_lines(unkilled / "metrics.jsonl")
    training = [row for row in rows if "loss" in row]
    validation = [row for row in rows if "validation_loss" in row]
    columns = {"step", "tokens", "seconds", "loss", "gradient_norm", "learning_rate", "tokens_per_second"}
    assert [frozenset(row) - columns for row in training] == [{"weights_moved"}, {"weights_moved"}, set()]
    assert [row["weights_moved"] > 0.9 for row in training[:2]] == [True, True]
    assert {frozenset(row) for row in validation} == {
        frozenset({"step", "tokens", "seconds", "validation_loss"})
    }
    assert [row["step"] for row in training][:2] == [10, 20]
    assert [row["step"] for row in validation] == [0, 6, 12, 18, 24]
    events = EventAccumulator(str(unkilled / "tensorboard")).Reload()
    shown = {event.step: event.value for event in events.Scalars("validation_loss")}
    assert shown == pytest.approx({row["step"]: row["validation_loss"] for row in validation})
    assert [event.step for event in events.Scalars("loss")] == [row["step"] for row in training]


def test_ctrl_c_on_the_command_line_is_status_130_and_sigterm_status_0(settings_of, tmp_path):
    words = ["--shards", str(settings_of.shards), "--budget", "100000 steps", "--batch-tokens", "80"]
    words += ["--architecture.hidden-size", "32", "--architecture.num-heads", "2"]
    for sent, status in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        out = tmp_path / sent.name
        with subprocess.Popen(
            [sys.executable, "-m", "slam", "pretrain", *words, "--out", str(out)],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            deadline = time.monotonic() + 60
            log = out / "metrics.jsonl"
            while not (log.is_file() and '"step": 10,' in log.read_text()):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(sent)
            _, said = process.communicate(timeout=30)
        assert process.returncode == status
        assert "Traceback" not in said
        assert any((out / "checkpoints").glob("0*"))
        assert json.loads((out / "started.json").read_text())["seconds"] > 0
        assert not (out / "run.json").exists()


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("24h", Budget(seconds=86_400.0)),
        ("90s", Budget(seconds=90.0)),
        ("1.5 min", Budget(seconds=90.0)),
        ("1d", Budget(seconds=86_400.0)),
        ("1.4B tokens", Budget(tokens=1_400_000_000)),
        ("2 M tokens", Budget(tokens=2_000_000)),
        ("500 steps", Budget(steps=500)),
        ("3k steps", Budget(steps=3000)),
    ],
)
def test_a_budget_is_a_number_with_its_unit(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["24:00", "5", "", "h", "-3h", "1.4B", "1e9 tokens", "5 hours ago", "nan s"])
def test_what_names_no_budget_is_refused(text):
    with pytest.raises(ConfigError, match="write a number with its unit"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["0 steps", "0h", "0.0s", "0.2 tokens"])
def test_a_budget_of_nothing_is_refused(text):
    with pytest.raises(ConfigError, match="buys nothing"):
        Budget.parse(text)


@given(
    schedule=st.sampled_from(["cosine", "linear", "constant", "inverse-sqrt"]),
    warmup=st.floats(0, 0.9),
    floor=st.floats(0, 0.9),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=9),
)
def test_the_rate_rises_in_warm_up_then_never_rises_and_never_leaves_its_bounds(
    schedule, warmup, floor, shares
):
    points = sorted(shares)
    rates = [learning_rate_share(schedule, share, warmup=warmup, floor=floor) for share in points]
    for (share, rate), (later, after) in zip(
        zip(points, rates, strict=True), zip(points[1:], rates[1:], strict=True), strict=False
    ):
        assert 0 <= rate <= 1 + 1e-9
        if later < warmup:
            assert after >= rate
        elif share >= warmup:
            assert after <= rate + 1e-9
            assert after >= floor - 1e-9


@given(warmup=st.floats(0, 0.9), floor=st.floats(0, 0.9), schedule=st.sampled_from(["cosine", "linear"]))
def test_the_rate_is_at_its_peak_after_warm_up_and_at_its_floor_at_the_end(warmup, floor, schedule):
    rate = {s: learning_rate_share(schedule, s, warmup=warmup, floor=floor) for s in (0.0, warmup, 1.0)}
    assert rate[warmup] == pytest.approx(1.0)
    assert rate[1.0] == pytest.approx(floor)
    if warmup:
        assert rate[0.0] == 0


@given(spent=st.floats(0, 2), budget=st.floats(1, 1e6))
def test_the_share_spent_is_the_same_in_every_unit_and_never_above_one(spent, budget):
    whole = round(budget)
    amount = spent * whole
    nothing = {"seconds": 0.0, "tokens": 0, "steps": 0}
    for unit, kind in (("seconds", float), ("tokens", int), ("steps", int)):
        share = Budget(**{unit: kind(whole)}).share(**nothing | {unit: amount})
        assert share == pytest.approx(min(1.0, spent))


@settings(max_examples=30)
@given(
    name=st.sampled_from(["learning_rate", "clip", "micro_batch_tokens", "checkpoint_seconds"]),
    value=st.integers(-5, 0),
)
def test_settings_that_cannot_be_meant_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        TrainingConfig(budget="1h", **{name: value})
