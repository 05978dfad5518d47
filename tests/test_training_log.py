import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import toy_training
from slam.errors import InputError, SlamError
from slam.pretrain import pretrain
from slam.run import read_json_lines
from slam.shards import Batches, open_shards
from slam.training import State
from slam.training.log import Log
from toy_training import Clock, KilledError, act_at_step, kill, rows, tamper

OF_EVERY_ROW = {"step", "tokens", "seconds"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return toy_training.write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def settings_of(shards):
    return toy_training.config_of(shards, checkpoint_seconds=3600.0)


@pytest.fixture(scope="module")
def trained(settings_of, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "lm"
    pretrain(settings_of, out)
    return out


def of_training(out):
    return [row for row in rows(out) if "loss" in row]


def of_validation(out):
    return [row for row in rows(out) if "validation_loss" in row]


def batches_of(config, number):
    """Lengths of the documents of each of the first batches."""
    training = open_shards(config.shards, "train")
    order = Batches(training.lengths, config.batch_tokens, config.seed).starting_at(0)
    return [training.lengths[next(order)] for _ in range(number)]


# metrics.jsonl


def test_the_log_has_a_row_every_ten_steps_and_one_for_each_validation(trained):
    columns = OF_EVERY_ROW | {"loss", "gradient_norm", "learning_rate", "tokens_per_second"}
    training, validation = of_training(trained), of_validation(trained)
    assert [row["step"] for row in training] == [10, 20, 24]
    # how many weights an update moves is looked at every tenth step
    assert [set(row) - columns for row in training] == [{"weights_moved"}, {"weights_moved"}, set()]
    assert all(columns <= set(row) for row in training)
    assert all(0.9 < row["weights_moved"] <= 1 for row in training[:2])
    assert [row["step"] for row in validation] == [0, 6, 12, 18, 24]
    assert all(set(row) == OF_EVERY_ROW | {"validation_loss"} for row in validation)
    assert [row["step"] for row in rows(trained)] == sorted(row["step"] for row in rows(trained))


def test_tokens_are_counted_up_and_a_row_is_the_mean_of_its_steps(settings_of, tmp_path, monkeypatch):
    losses = []

    def change(task):
        def loss(values, row, about):
            found = task.loss(values, row, about)
            losses.append(float(found[0].detach()) / row.weight)
            return found

        return replace(task, loss=loss)

    tamper(monkeypatch, change)
    config = replace(settings_of, micro_batch_tokens=10_000)  # a row is a batch
    pretrain(config, tmp_path / "lm")
    sizes = [int(lengths.sum()) for lengths in batches_of(config, 24)]
    training = of_training(tmp_path / "lm")
    assert [row["tokens"] for row in training] == [sum(sizes[:end]) for end in (10, 20, 24)]
    means = [sum(part) / len(part) for part in (losses[:10], losses[10:20], losses[20:])]
    assert [row["loss"] for row in training] == pytest.approx(means)


def test_speed_is_tokens_over_the_seconds_of_training_alone(settings_of, tmp_path, monkeypatch):
    Clock(monkeypatch)  # 1/16 s for an update, and as much for a validation or a checkpoint
    config = replace(settings_of, validations=24, checkpoint_seconds=1e-9)
    run = pretrain(config, tmp_path / "lm")
    sizes = [int(lengths.sum()) for lengths in batches_of(config, 24)]
    training = of_training(tmp_path / "lm")
    assert [row["seconds"] for row in training] == [0.625, 1.25, 1.5]
    assert [row["tokens_per_second"] for row in training] == [
        pytest.approx(16 * sum(part) / len(part)) for part in (sizes[:10], sizes[10:20], sizes[20:])
    ]
    assert run.results["tokens_per_second"] == round(sum(sizes) / 1.5)


def test_mfu_is_the_models_flops_over_what_the_device_could_have_done(settings_of, tmp_path, monkeypatch):
    Clock(monkeypatch)
    peak = 3e9
    monkeypatch.setattr("slam.training.loop.peak_flops", lambda _: peak)
    pretrain(settings_of, tmp_path / "lm")
    # two layers: queries, keys, values and output, 32 by 32; gate, up and down, 32 by 64; a head of 14 tokens
    products = 2 * (4 * 32 * 32 + 3 * 32 * 64) + 14 * 32
    flops = [
        6 * products * lengths.sum() + 6 * 2 * 32 * (lengths**2).sum()
        for lengths in batches_of(settings_of, 24)
    ]
    parts = (flops[:10], flops[10:20], flops[20:])
    expected = [sum(part) / (len(part) / 16) / peak for part in parts]
    assert [row["mfu"] for row in of_training(tmp_path / "lm")] == pytest.approx(expected)


def test_without_a_known_peak_there_is_no_mfu(trained):
    assert not any("mfu" in row or "model_flops" in row for row in rows(trained))


@settings(deadline=None, max_examples=20)
@given(
    steps=st.lists(st.tuples(st.integers(1, 1000), st.floats(0.01, 10)), min_size=1, max_size=35),
    peak=st.floats(1e6, 1e15),
)
def test_speed_and_mfu_of_all_rows_add_up_to_those_of_the_training(tmp_path_factory, steps, peak):
    out = tmp_path_factory.mktemp("log")
    state = State()
    with Log(out, state, peak_flops=peak, wandb=None) as log:
        for tokens, seconds in steps:
            state = replace(
                state, step=state.step + 1, tokens=state.tokens + tokens, seconds=state.seconds + seconds
            )
            log.training(state, {"loss": 1.0, "model_flops": 7.0 * tokens})
        log.flush(state)
    found = read_json_lines(out / "metrics.jsonl")
    assert len(found) == -(-len(steps) // 10)
    spent = [sum(s for _, s in steps[begin : begin + 10]) for begin in range(0, len(steps), 10)]
    total = sum(tokens for tokens, _ in steps)
    assert sum(r["tokens_per_second"] * s for r, s in zip(found, spent, strict=True)) == pytest.approx(total)
    assert sum(r["mfu"] * s for r, s in zip(found, spent, strict=True)) * peak == pytest.approx(7 * total)


def test_a_validation_loss_that_is_no_number_is_one_clear_error(settings_of, tmp_path, monkeypatch):
    tamper(monkeypatch, lambda task: replace(task, validate=lambda _: {"validation_loss": float("nan")}))
    with pytest.raises(InputError, match=r"the validation loss is nan at step 0; lower learning_rate"):
        pretrain(settings_of, tmp_path / "lm")


# TensorBoard


def test_tensorboard_shows_the_figures_of_the_log_also_after_a_resume(settings_of, tmp_path, monkeypatch):
    config = replace(settings_of, checkpoint_seconds=1e-9)
    out = tmp_path / "lm"
    act_at_step(monkeypatch, 15, kill)
    with pytest.raises(KilledError):
        pretrain(config, out)
    monkeypatch.undo()
    pretrain(config, out)
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    for name, logged in (("loss", of_training(out)), ("validation_loss", of_validation(out))):
        shown = {event.step: event.value for event in events.Scalars(name)}
        assert shown == pytest.approx({row["step"]: row[name] for row in logged})


# Weights & Biases


class StandIn:
    """Stands for the package `wandb`: notes what it is told."""

    def __init__(self):
        self.begun, self.sent, self.finished = [], [], 0

    def init(self, **about):
        self.begun.append(about)
        return SimpleNamespace(log=self._log, finish=self._finish)

    def _log(self, figures, step):
        self.sent.append({"step": step} | figures)

    def _finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def sent_of(out):
    """What of the log a service that counts steps by itself is to be told."""
    return [{key: row[key] for key in row if key not in {"tokens", "seconds"}} for row in rows(out)]


def test_weights_and_biases_is_sent_the_figures_of_the_log(settings_of, tmp_path, wandb):
    out = tmp_path / "lm"
    pretrain(replace(settings_of, wandb="a-project"), out)
    (about,) = wandb.begun
    assert about["project"] == "a-project"
    assert about["name"] == "lm"
    assert wandb.sent == sent_of(out)
    assert wandb.finished == 1


def test_nothing_is_sent_unless_it_is_asked_for(settings_of, tmp_path, wandb):
    pretrain(settings_of, tmp_path / "lm")
    assert wandb.begun == wandb.sent == []


def test_a_resumed_training_goes_on_with_its_run_on_weights_and_biases(
    settings_of, tmp_path, monkeypatch, wandb
):
    config = replace(settings_of, wandb="a-project", checkpoint_seconds=1e-9)
    out = tmp_path / "lm"
    with monkeypatch.context() as patch:
        act_at_step(patch, 15, kill)
        with pytest.raises(KilledError):
            pretrain(config, out)
    assert wandb.finished == 1  # what was buffered is sent, however a training ends
    pretrain(config, out)
    first, again = wandb.begun
    assert first["id"] == again["id"]
    assert again["resume"] == "allow"
    assert wandb.sent == sent_of(out)
    pretrain(replace(config, seed=1), tmp_path / "other" / "lm")
    assert wandb.begun[-1]["id"] != first["id"]  # another training, though its folder has the same name


def test_without_the_package_the_line_says_what_to_install_and_another_command_may_use_the_folder(
    settings_of, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(SlamError, match=r"slam\[wandb\]") as caught:
        pretrain(replace(settings_of, wandb="a-project"), tmp_path / "lm")
    assert "\n" not in str(caught.value)
    assert pretrain(replace(settings_of, budget="10 steps"), tmp_path / "lm").results["steps"] == 10


# The progress line


def test_off_a_terminal_lines_tell_how_far_the_training_is(settings_of, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("slam.progress._LINE_SECONDS", 0.0)
    monkeypatch.setattr("slam.training.loop.peak_flops", lambda _: 1e12)
    out = tmp_path / "lm"
    pretrain(settings_of, out)
    said = capsys.readouterr().err.splitlines()
    pattern = re.compile(
        r"training lm: (\d+) %, loss (\d\.\d+), ([\d,]+) tokens/s, MFU \d+%, \d+:\d\d:\d\d left"
    )
    told = [found for line in said if (found := pattern.fullmatch(line))]
    shares = [int(found[1]) for found in told]
    assert shares == sorted(shares)
    assert shares[-1] >= 90
    # the figures are the log's
    losses = {f"{row['loss']:.3f}" for row in of_training(out)}
    speeds = {f"{row['tokens_per_second']:,.0f}" for row in of_training(out)}
    assert {found[2] for found in told} <= losses
    assert {found[3] for found in told} <= speeds


def test_no_line_has_a_gap_before_there_is_a_figure_to_tell(settings_of, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("slam.progress._LINE_SECONDS", 0.0)
    pretrain(settings_of, tmp_path / "lm")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training lm")]
    assert len(said) > 10
    assert not [line for line in said if ", ," in line]


def test_by_default_a_line_comes_once_a_minute(settings_of, tmp_path, capsys):
    pretrain(settings_of, tmp_path / "lm")
    assert "training lm" not in capsys.readouterr().err
