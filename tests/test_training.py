import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

import reference_model
import toy_language
import toy_training
from slam.budget import TrainingConfig, learning_rate_share
from slam.errors import ConfigError, InputError, MismatchError
from slam.packing import use_packed
from slam.pretrain import next_token_task, pretrain
from slam.run import read_json_lines, read_run
from slam.shards import Batches, open_shards, write_split
from slam.training.engine import ready
from slam.training.optimizers import make_optimizers, update
from toy_training import (
    Clock,
    KilledError,
    act_at_step,
    assert_same_run,
    assert_same_tensors,
    checkpoint,
    follow,
    kill,
    rows,
    spoil_loss,
    tamper,
    weights,
)

EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return toy_training.write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def settings_of(shards):
    return toy_training.config_of(shards, checkpoint_seconds=3600.0)


@pytest.fixture(scope="module")
def unkilled(settings_of, tmp_path_factory):
    out = tmp_path_factory.mktemp("unkilled") / "lm"
    pretrain(settings_of, out)
    return out


def resumed(config, out, monkeypatch):
    """The same command again, with nothing in its way."""
    monkeypatch.undo()
    pretrain(config, out)
    return out


def stopped_before(step, config, out, monkeypatch):
    """The checkpoint of a run that a signal stops before update `step`, and nothing else disturbs."""
    with monkeypatch.context() as patch:
        act_at_step(patch, step, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit):
            pretrain(config, out)
    return checkpoint(out, step)


# What a budget buys


def test_a_time_budget_stops_on_time_and_the_rate_has_followed_the_clock(settings_of, tmp_path, monkeypatch):
    Clock(monkeypatch)  # 16 updates a second
    config = replace(settings_of, budget="3s", floor=0.1, schedule="linear", warmup=0.0)
    run = pretrain(config, tmp_path / "lm")
    assert run.results["training_seconds"] == 3.0
    assert run.results["steps"] == 48
    found = [row["learning_rate"] for row in rows(tmp_path / "lm") if "loss" in row]
    each = config.learning_rate * (1 - 0.9 * np.arange(48) / 48)
    assert found == pytest.approx([part.mean() for part in np.split(each, [10, 20, 30, 40])])


@pytest.mark.parametrize(
    ("budget", "steps"), [("3s or 20 steps", 20), ("1s or 20 steps", 16), ("20 steps or 1k tokens", 14)]
)
def test_whichever_limit_comes_first_ends_the_training_with_the_rate_decayed(
    *, settings_of, tmp_path, monkeypatch, budget, steps
):
    Clock(monkeypatch)
    run = pretrain(replace(settings_of, budget=budget, schedule="linear", floor=0.0), tmp_path / "lm")
    assert run.results["steps"] == steps
    last = [row for row in rows(tmp_path / "lm") if "loss" in row][-1]
    assert last["learning_rate"] < 0.3 * settings_of.learning_rate


def test_validation_and_checkpoints_cost_no_budget(settings_of, tmp_path, monkeypatch):
    runs = []
    for name, validations, checkpoint_seconds in (("few", 1, 3600.0), ("many", 12, 1e-9)):
        Clock(monkeypatch)
        config = replace(
            settings_of, budget="2s", validations=validations, checkpoint_seconds=checkpoint_seconds
        )
        runs.append(pretrain(config, tmp_path / name).results)
    few, many = runs
    assert few["steps"] == many["steps"] == 32
    assert few["training_seconds"] == many["training_seconds"] == 2.0
    assert 0 < few["overhead_seconds"] < many["overhead_seconds"]  # told beside it


def test_a_resumed_training_goes_on_with_the_clock_where_it_stopped(settings_of, tmp_path, monkeypatch):
    config = replace(settings_of, budget="2s", checkpoint_seconds=1e-9)
    whole, out = tmp_path / "whole", tmp_path / "lm"
    Clock(monkeypatch)
    pretrain(config, whole)
    act_at_step(monkeypatch, 21, kill)
    with pytest.raises(KilledError):
        pretrain(config, out)
    monkeypatch.undo()
    Clock(monkeypatch)
    assert pretrain(config, out).results["training_seconds"] == 2.0
    assert rows(out) == rows(whole)  # seconds and tokens a second too
    assert_same_tensors(weights(out), weights(whole))


def test_a_spent_clock_buys_not_one_step_more(settings_of, tmp_path, monkeypatch):
    config = replace(settings_of, budget="1s")
    Clock(monkeypatch)
    monkeypatch.setattr("slam.model.SpeechLM.save", lambda *_: kill())
    with pytest.raises(KilledError):
        pretrain(config, tmp_path / "lm")
    monkeypatch.undo()
    Clock(monkeypatch)
    assert pretrain(config, tmp_path / "lm").results["steps"] == 16


def test_a_token_budget_is_spent_and_hardly_overspent(settings_of, tmp_path):
    run = pretrain(replace(settings_of, budget="1k tokens"), tmp_path / "lm")
    assert 1000 <= run.results["tokens"] < 1000 + settings_of.batch_tokens


def test_a_clock_that_buys_under_ten_updates_is_one_clear_line_and_leaves_room_for_another_budget(
    settings_of, tmp_path, monkeypatch
):
    out = tmp_path / "lm"
    Clock(monkeypatch, tick=1.0)
    config = replace(settings_of, budget="5s", checkpoint_seconds=1e-9)
    with pytest.raises(ConfigError, match=r"'5s': buys about 5 updates, fewer than 10") as caught:
        pretrain(config, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert pretrain(replace(config, budget="12s"), out).results["steps"] == 12


def test_a_token_budget_too_small_is_refused_before_anything_is_written(settings_of, tmp_path, monkeypatch):
    monkeypatch.setattr("slam.training.loop.ready", lambda *_: pytest.fail("the training was begun"))
    with pytest.raises(ConfigError, match=r"'400 tokens': buys about \d updates, fewer than 10"):
        pretrain(replace(settings_of, budget="400 tokens"), tmp_path / "lm")
    assert not (tmp_path / "lm").exists()


# What an update is


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
    config = replace(settings_of, budget="10 steps")
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
    (row,) = [row for row in rows(tmp_path / "lm") if "loss" in row]
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
        settings_of, budget="150 steps", batch_tokens=400, micro_batch_tokens=400, learning_rate=1e-2
    )
    run = pretrain(config, tmp_path / "lm")
    unigram = np.log(toy_language.NUM_UNITS)
    assert run.results["final_validation_loss"] < 0.5 * unigram


def test_bf16_products_train_fp32_weights_to_nearly_the_same_loss(settings_of, tmp_path):
    found = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        run = pretrain(replace(settings_of, precision=precision), out)
        logged = [row for row in rows(out) if "loss" in row]
        found[precision] = [row["loss"] for row in logged] + [run.results["final_validation_loss"]]
        assert {tensor.dtype for tensor in weights(out).values()} == {torch.float32}
        # kept in bf16, weights would not feel most of such small steps
        assert all(row["weights_moved"] > 0.99 for row in logged if "weights_moved" in row)
    assert found["bf16"] == pytest.approx(found["fp32"], rel=1e-2)
    assert found["bf16"] != found["fp32"]


# Who updates which weights


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_optimizer_lowers_the_loss_and_resumes_exactly(settings_of, tmp_path, monkeypatch, optimizer):
    config = replace(settings_of, optimizer=optimizer, checkpoint_seconds=1e-9)
    whole, out = tmp_path / "whole", tmp_path / "lm"
    pretrain(config, whole)
    act_at_step(monkeypatch, 17, kill)
    with pytest.raises(KilledError):
        pretrain(config, out)
    assert_same_run(resumed(config, out, monkeypatch), whole)
    losses = [row["validation_loss"] for row in rows(out) if "validation_loss" in row]
    assert losses[-1] < losses[0] - 0.2


def small_qwen2(*, tied):
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=14,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return Qwen2ForCausalLM(config)


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_bodys_matrices_adamw_the_rest_and_no_weight_is_left_or_taken_twice(tied):
    lm = small_qwen2(tied=tied)
    adamw, muon = make_optimizers(lm, TrainingConfig(budget="1h", optimizer="muon"))
    taken = {
        name: {id(w) for group in optimizer.param_groups for w in group["params"]}
        for name, optimizer in (("adamw", adamw), ("muon", muon))
    }
    expected = {"adamw": set(), "muon": set()}
    for name, weight in lm.named_parameters():
        is_body = name.startswith("model.layers.") and weight.ndim == 2
        expected["muon" if is_body else "adamw"].add(id(weight))
    assert taken == expected
    count = sum(len(group["params"]) for optimizer in (adamw, muon) for group in optimizer.param_groups)
    assert count == len(list(lm.parameters()))
    assert (isinstance(adamw, torch.optim.AdamW), isinstance(muon, torch.optim.Muon)) == (True, True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_updates_are_those_of_torchs_own_optimizers(optimizer, tied):
    config = TrainingConfig(
        budget="1h",
        optimizer=optimizer,
        learning_rate=3e-3,
        muon_learning_rate=2e-2,
        weight_decay=0.1,
        betas=(0.8, 0.95),
    )
    lm, plain = small_qwen2(tied=tied), small_qwen2(tied=tied)
    ours = make_optimizers(lm, config)
    of_muon = {
        name
        for name, weight in plain.named_parameters()
        if optimizer == "muon" and name.startswith("model.layers.") and weight.ndim == 2
    }
    for number, rate in enumerate((0.5, 1.0)):  # the second sees the first one's moments
        generator = torch.Generator().manual_seed(number)
        for one, other in zip(lm.parameters(), plain.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        update(ours, rate, body=True)
        if not number:
            theirs = {
                name: torch.optim.Muon([w], weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
                if name in of_muon
                else torch.optim.AdamW([w], betas=(0.8, 0.95), weight_decay=0.1 if w.ndim > 1 else 0.0)
                for name, w in plain.named_parameters()
            }
        for name, single in theirs.items():
            single.param_groups[0]["lr"] = rate * (2e-2 if name in of_muon else 3e-3)
            single.step()
    for (name, one), other in zip(lm.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_a_step_of_muon_is_as_large_as_one_of_adamw():
    lm = small_qwen2(tied=True)
    optimizers = make_optimizers(lm, TrainingConfig(budget="1h", optimizer="muon", muon_learning_rate=1.0))
    before = {name: weight.detach().clone() for name, weight in lm.named_parameters()}
    for weight in lm.parameters():
        weight.grad = torch.randn_like(weight)
    update(optimizers, 1.0, body=True)
    for name, weight in lm.named_parameters():
        if name.startswith("model.layers.") and weight.ndim == 2:
            rms = float((weight.detach() - before[name]).square().mean().sqrt())
            assert rms == pytest.approx(0.2, rel=0.4), (
                name
            )  # Liu et al., 2025: AdamW's usual root mean square


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_embeddings_first_leaves_the_body_as_it_was_for_that_share_of_the_budget(
    *, settings_of, tmp_path, monkeypatch, optimizer
):
    config = replace(
        settings_of,
        budget="20 steps",
        embeddings_first=0.5,
        optimizer=optimizer,
        weight_decay=0.1,
        warmup=0.0,
        checkpoint_seconds=1e-9,
    )
    first = toy_language.new_toy_lm(seed=config.seed, context=config.context)
    before = {name: weight.detach() for name, weight in first.named_parameters()}

    def moved(folder):
        found = weights(folder)
        return {name for name, weight in before.items() if not torch.equal(weight, found[name])}

    out = tmp_path / "lm"
    act_at_step(monkeypatch, 10, kill)
    with pytest.raises(KilledError):
        pretrain(config, out)
    assert moved(checkpoint(out, 10)) == {EMBEDDINGS}
    resumed(config, out, monkeypatch)
    assert moved(out) == set(before)
    early, late = (row["weights_moved"] for row in rows(out) if "weights_moved" in row)
    sampled = {name: min(1024, weight.numel()) for name, weight in before.items()}
    assert early == pytest.approx(sampled[EMBEDDINGS] / sum(sampled.values()))
    assert late > 0.9


# Bad batches


def spoil_gradient(total):
    """The loss stays a number, its gradient is none."""
    total.register_hook(lambda gradient: gradient * math.inf)
    return total


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda total: total * math.nan, r"the loss is nan"),
        (lambda total: total * math.inf, r"the loss is inf"),
        (spoil_gradient, r"gradient norm (nan|inf)"),
    ],
)
def test_a_batch_that_gives_no_number_stops_the_training_with_a_checkpoint_from_before_it(
    *, settings_of, tmp_path, monkeypatch, spoil, says
):
    expected = stopped_before(13, settings_of, tmp_path / "stopped", monkeypatch)
    out = tmp_path / "lm"
    spoil_loss(monkeypatch, {13}, spoil)
    with pytest.raises(InputError, match=says) as caught:
        pretrain(settings_of, out)
    said = str(caught.value)
    assert "\n" not in said
    for part in (str(out), "at step 13", 'on_spike = "skip"', "learning_rate"):
        assert part in said
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["000000013"]
    for name in ("model", "optimizer"):
        kept = load_file(checkpoint(out, 13) / f"{name}.safetensors")
        assert_same_tensors(kept, load_file(expected / f"{name}.safetensors"))
        assert all(tensor.isfinite().all() for tensor in kept.values())
    assert read_run(out) is None


def test_the_same_command_told_to_skip_goes_on_where_a_bad_batch_stopped_it(
    settings_of, tmp_path, monkeypatch
):
    out, at_once = tmp_path / "lm", tmp_path / "at-once"
    skipping = replace(settings_of, on_spike="skip")
    spoil_loss(monkeypatch, {13, 17}, lambda total: total * math.nan)
    with pytest.raises(InputError):
        pretrain(settings_of, out)
    run = pretrain(skipping, out)
    assert run.results["skipped_batches"] == 2
    assert run.results["steps"] == 24
    assert all(tensor.isfinite().all() for tensor in weights(out).values())
    pretrain(skipping, at_once)
    assert_same_run(out, at_once)
    logged = [row for row in rows(out) if "loss" in row]
    assert all(math.isfinite(row["loss"]) for row in logged)


def test_a_skipped_batch_changes_no_weight(settings_of, tmp_path, monkeypatch):
    out = tmp_path / "lm"
    config = replace(settings_of, on_spike="skip", checkpoint_seconds=1e-9)
    spoil_loss(monkeypatch, {13}, lambda total: total * math.nan)
    act_at_step(monkeypatch, 14, kill)
    with pytest.raises(KilledError):
        pretrain(config, out)
    for name in ("model", "optimizer"):
        before, after = (load_file(checkpoint(out, n) / f"{name}.safetensors") for n in (13, 14))
        assert_same_tensors(before, after)


def test_a_loss_that_jumps_is_told_also_right_after_a_resume(settings_of, tmp_path, monkeypatch):
    config = replace(settings_of, budget="40 steps", checkpoint_seconds=1e-9)
    out = tmp_path / "lm"
    act_at_step(monkeypatch, 30, kill)
    with pytest.raises(KilledError):
        pretrain(config, out)
    monkeypatch.undo()
    spoil_loss(monkeypatch, {31}, lambda total: total * 20)
    with pytest.raises(InputError, match=r"the loss jumps to \d+\.\d+ from \d\.\d+ at step 31,.*on_spike"):
        pretrain(config, out)
    run = pretrain(replace(config, on_spike="skip"), out)
    assert run.results["skipped_batches"] == 1
    assert max(row["loss"] for row in rows(out) if "loss" in row) < 5


def test_how_high_a_jump_must_be_is_a_setting(settings_of, tmp_path, monkeypatch):
    config = replace(settings_of, budget="40 steps", spike_deviations=1e6)
    spoil_loss(monkeypatch, {31}, lambda total: total * 20)
    assert pretrain(config, tmp_path / "lm").results["skipped_batches"] == 0


def test_more_than_ten_bad_batches_in_a_row_stop_the_training_even_when_told_to_skip(
    settings_of, tmp_path, monkeypatch
):
    config = replace(settings_of, on_spike="skip")
    scattered = {3, *range(5, 15)}  # ten in a row
    spoil_loss(monkeypatch, scattered, lambda total: total * math.nan)
    assert pretrain(config, tmp_path / "ten").results["skipped_batches"] == 11
    monkeypatch.undo()
    spoil_loss(monkeypatch, scattered | {15}, lambda total: total * math.nan)
    with pytest.raises(InputError, match=r"the loss is nan.*at step 15.*lower learning_rate") as caught:
        pretrain(config, tmp_path / "eleven")
    assert "on_spike" not in str(caught.value)
    assert checkpoint(tmp_path / "eleven", 15).is_dir()


@pytest.mark.parametrize("budget", ["30 steps", "10 steps"])
def test_a_learning_rate_that_breaks_the_model_is_one_clear_error(settings_of, tmp_path, budget):
    config = replace(settings_of, budget=budget, learning_rate=1e30)
    with pytest.raises(InputError, match=r"loss is (nan|inf).*learning_rate") as caught:
        pretrain(config, tmp_path / "lm")
    assert "\n" not in str(caught.value)
    assert read_run(tmp_path / "lm") is None


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_token_outside_the_vocabulary_is_refused_with_its_folder_named(settings_of, tmp_path, split):
    shards = toy_training.write_shards(tmp_path / "shards")
    found = open_shards(shards, split)
    tokens = np.array(found.tokens)
    tokens[5] = toy_language.VOCABULARY.size
    write_split(shards, split, tokens, found.ends)
    with pytest.raises(InputError, match=r"holds token 14, but its vocabulary has 14") as caught:
        pretrain(replace(settings_of, shards=shards), tmp_path / "lm")
    assert str(caught.value).startswith(f"{shards}: ")
    assert "\n" not in str(caught.value)


# Signals


@pytest.mark.parametrize("number", [0, 12, 23])
@pytest.mark.parametrize(
    ("sent", "leaves"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_leaves_a_checkpoint_and_the_resumed_run_equals_the_run_never_stopped(
    *, settings_of, unkilled, tmp_path, monkeypatch, sent, leaves, number
):
    out = tmp_path / "lm"
    act_at_step(monkeypatch, number, lambda: signal.raise_signal(sent))
    with pytest.raises(leaves) as caught:
        pretrain(settings_of, out)
    if leaves is SystemExit:
        assert caught.value.code == 0
    # the update under way is given up: a batch may take longer than a pre-emption waits
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"{number:09d}"]
    assert_same_run(resumed(settings_of, out, monkeypatch), unkilled)


@pytest.mark.parametrize(("step", "row"), [(0, 1), (9, 4), (23, 2)])
def test_a_signal_amid_a_batch_gives_the_batch_up_and_the_resumed_run_equals_the_run_never_stopped(
    *, settings_of, tmp_path, monkeypatch, step, row
):
    config = replace(settings_of, micro_batch_tokens=1)  # a document each
    whole, out = tmp_path / "whole", tmp_path / "lm"
    pretrain(config, whole)
    laid_out = []
    current = follow(monkeypatch)

    def change(task):
        def signalling(numbers, fill):
            laid_out.append(current[0])
            if laid_out.count(step) == row:
                signal.raise_signal(signal.SIGTERM)
            return task.row(numbers, fill)

        return replace(task, row=signalling)

    tamper(monkeypatch, change)
    with pytest.raises(SystemExit) as caught:
        pretrain(config, out)
    assert caught.value.code == 0
    assert laid_out.count(step) == row  # not one more
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"{step:09d}"]
    assert_same_run(resumed(config, out, monkeypatch), whole)


@pytest.mark.parametrize("number", [1, 3, 5])  # at the first step, on the way, at the end
def test_a_signal_amid_validation_gives_it_up_and_the_resumed_run_equals_the_run_never_stopped(
    *, settings_of, unkilled, tmp_path, monkeypatch, number
):
    out = tmp_path / "lm"
    begun, polls = [], []

    def change(task):
        def validate(poll):
            begun.append(number)

            def polled():
                polls.append(len(begun))
                if polls.count(number) == 2:
                    signal.raise_signal(signal.SIGTERM)
                poll()

            return task.validate(polled)

        return replace(task, validate=validate)

    tamper(monkeypatch, change)
    with pytest.raises(SystemExit) as caught:
        pretrain(settings_of, out)
    assert caught.value.code == 0
    assert polls.count(number) == 2  # of about six
    assert polls.count(1) > 2 or number == 1
    assert_same_run(resumed(settings_of, out, monkeypatch), unkilled)


def started(words, out):
    """`slam pretrain` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "slam", "pretrain", *map(str, words), "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, log, text):
    """Until the log holds a text."""
    deadline = time.monotonic() + 90
    while not (log.is_file() and text in log.read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_busy_with_a_batch_of_minutes_ends_well_within_ten_seconds_of_sigterm(tmp_path):
    # documents enough that one update, a document at a time, takes minutes
    documents = toy_language.utterances(1000) * 25
    shards = toy_language.write_shards(tmp_path / "shards", documents, documents[:5])
    words = ["--shards", shards, "--budget", "1000 steps"]
    words += ["--batch-tokens", 10_000_000, "--micro-batch-tokens", 1]
    out = tmp_path / "lm"
    with started(words, out) as process:
        wait_for(process, out / "metrics.jsonl", "validation_loss")
        time.sleep(1.0)  # into the update: nothing is written before it ends
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, said = process.communicate(timeout=60)
        took = time.monotonic() - began
    assert process.returncode == 0
    assert took < 10
    assert "Traceback" not in said
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["000000000"]
    assert json.loads((out / "started.json").read_text())["seconds"] > 0
    assert not (out / "run.json").exists()


def test_ctrl_c_on_the_command_line_leaves_a_checkpoint_and_status_130(settings_of, tmp_path):
    words = ["--shards", settings_of.shards, "--budget", "100000 steps", "--batch-tokens", "80"]
    words += ["--architecture.hidden-size", "32", "--architecture.num-heads", "2"]
    out = tmp_path / "lm"
    with started(words, out) as process:
        wait_for(process, out / "metrics.jsonl", '"step": 10,')
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert any((out / "checkpoints").glob("0*"))
    assert not (out / "run.json").exists()


def test_a_speech_lm_of_the_same_units_is_trained_on_and_not_started_anew(shards, tmp_path):
    first = tmp_path / "first"
    learnt = pretrain(toy_training.config_of(shards, budget="60 steps", learning_rate=1e-2), first).results
    pretrain(
        toy_training.config_of(shards, base=first, budget="10 steps", learning_rate=1e-6), tmp_path / "second"
    )
    begin = read_json_lines(tmp_path / "second" / "metrics.jsonl")[0]
    assert begin["validation_loss"] == pytest.approx(learnt["final_validation_loss"], abs=1e-5)


def test_a_speech_lm_of_other_units_is_no_base(shards, tmp_path):
    pretrain(toy_training.config_of(shards), tmp_path / "first")
    about = tmp_path / "first" / "slam.json"
    written = json.loads(about.read_text())
    about.write_text(json.dumps(written | {"tokenizer_fingerprint": "f" * 16}))
    with pytest.raises(MismatchError, match="encode with the base's tokenizer"):
        pretrain(toy_training.config_of(shards, base=tmp_path / "first"), tmp_path / "second")
    # from its architecture alone, or from a text LM, there is nothing to mix up
    pretrain(
        toy_training.config_of(shards, base=tmp_path / "first", initialization="random"), tmp_path / "random"
    )
    about.write_text(json.dumps(written | {"tokenizer_fingerprint": "f" * 16, "tokenizer": "text-words"}))
    pretrain(toy_training.config_of(shards, base=tmp_path / "first"), tmp_path / "twist")
