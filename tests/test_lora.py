import sys
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch

import reference_model
import tiny_families
import toy_language
import toy_training
import toy_tuning
from slam.dpo import dpo, preference_task
from slam.errors import ConfigError, MissingExtraError
from slam.lora import add_adapters, merge
from slam.model import SpeechLM, load_lm
from slam.packing import logits, packed, use_packed
from slam.pairs import read_pairs
from slam.preferences import divide, format_pairs
from slam.run import read_run
from slam.training import train
from slam.units import read_units
from toy_training import KilledError, act_at_step, assert_same_run, kill, rows, weights

RANK, ALPHA = 3, 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return toy_tuning.write_folders(tmp_path_factory.mktemp("tuning"))


def config_of(folders, **changes):
    chosen = {"lora_rank": RANK, "lora_alpha": ALPHA, "learning_rate": 2e-2, "samples": 0}
    return toy_tuning.config_of(folders, **chosen | changes)


def pairs_of(folders):
    """Pairs to train on, and pairs held out."""
    pairs = format_pairs(
        read_pairs(read_units(folders / "pairs")), toy_language.VOCABULARY, toy_tuning.CONTEXT
    )
    return divide(pairs, 0.25, 0, folders)


def adapted_lm(folders):
    lm = SpeechLM.load(folders / "lm").lm
    use_packed(lm)
    return lm, add_adapters(lm, rank=RANK, alpha=ALPHA, seed=0)


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    """A tuning by adapters, never killed."""
    out = tmp_path_factory.mktemp("whole") / "tuned"
    dpo(config_of(folders), out)
    return out


def test_only_the_adapters_are_trained_and_merging_changes_no_score(folders, tmp_path):
    lm, adapted = adapted_lm(folders)
    before = {name: weight.detach().clone() for name, weight in lm.named_parameters()}
    config = config_of(folders)
    train(lm, config, preference_task(lm, *pairs_of(folders), config), tmp_path)
    changed = {name for name, weight in lm.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    row = packed(pairs_of(folders)[1].chosen[:5])
    lm.eval()
    with torch.no_grad():
        one = logits(lm, row)
        merge(adapted)
        other = logits(lm, row)
    assert (one - other).abs().max() < 1e-5
    assert not any("lora" in name for name, _ in lm.named_parameters())


def test_the_model_saved_is_a_stock_one_and_differs_by_matrices_of_that_rank(folders, whole):
    base, tuned = (reference_model.load_plainly(folder).state_dict() for folder in (folders / "lm", whole))
    assert base.keys() == tuned.keys()
    moved = 0
    for name, weight in base.items():
        if name.endswith("_proj.weight"):
            assert torch.linalg.matrix_rank(tuned[name] - weight, rtol=1e-3) == RANK, name
            moved += 1
        else:
            assert torch.equal(weight, tuned[name]), name
    assert moved == 14  # of two layers
    assert not (whole / "adapter_config.json").exists()


def test_tuning_by_adapters_raises_the_held_out_preference_accuracy(folders, whole):
    results = read_run(whole).results
    assert results["before"]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert results["after"]["loss"] < 0.8 * results["before"]["loss"]
    assert results["after"]["preference_accuracy"] > results["before"]["preference_accuracy"] + 0.1
    assert results["num_parameters"] == read_run(folders / "lm").results["num_parameters"]
    shapes = [w.shape for n, w in SpeechLM.load(whole).lm.named_parameters() if n.endswith("_proj.weight")]
    assert results["num_trained_parameters"] == sum(RANK * sum(shape) for shape in shapes)
    # of those that are trained, which are all that could move
    moved = [row["weights_moved"] for row in rows(whole) if "loss" in row]
    assert moved == pytest.approx([1.0] * 3, abs=1e-2)
    # what was written of the saved model is true of it
    _, pairs = pairs_of(folders)
    plain = reference_model.load_plainly(whole)
    right = [
        reference_model.document_log_likelihood(plain, better, prompt)
        > reference_model.document_log_likelihood(plain, worse, prompt)
        for better, worse, prompt in zip(pairs.chosen, pairs.rejected, pairs.skipped, strict=True)
    ]
    assert results["after"]["preference_accuracy"] == np.mean(right)


# peft still asks for what transformers has renamed
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_ten_updates_equal_those_of_peft_and_torch_alone(folders, tmp_path):
    """All pairs in each update, so that their order is no matter; the loss written out, pair by pair."""
    config = config_of(
        folders, budget="10 steps", batch_pairs=16, schedule="constant", warmup=0.0, learning_rate=5e-3
    )
    lm, _ = adapted_lm(folders)
    training, held_out = pairs_of(folders)
    training = training.take(range(16))
    train(lm, config, preference_task(lm, training, held_out, config), tmp_path)

    torch.manual_seed(0)
    settings = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )
    plain = reference_model.load_plainly(folders / "lm")
    model = peft.get_peft_model(plain, settings)
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=5e-3, weight_decay=0.0)

    def margin(number):
        prompt = training.skipped[number]
        better, worse = (
            reference_model.token_log_likelihoods(model, side[number])[prompt:].sum()
            for side in (training.chosen, training.rejected)
        )
        return better - worse

    with torch.no_grad(), model.disable_adapter():
        reference = [margin(number) for number in range(16)]
    for _ in range(10):
        for number in range(16):
            loss = -torch.nn.functional.logsigmoid(0.3 * (margin(number) - reference[number])) / 16
            loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 0.5)
        optimizer.step()
        optimizer.zero_grad()
    theirs = {name: w.detach() for name, w in plain.named_parameters() if "lora_" in name}
    ours = {name: w.detach() for name, w in lm.named_parameters() if "lora_" in name}
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=2e-4, rtol=0, msg=name)
        assert weight.any()


def test_a_killed_tuning_resumed_equals_the_one_never_killed(folders, whole, tmp_path, monkeypatch):
    config = config_of(folders, checkpoint_seconds=1e-9)
    with monkeypatch.context() as patch:
        act_at_step(patch, 13, kill)
        with pytest.raises(KilledError):
            dpo(config, tmp_path / "killed")
    held = weights(toy_training.checkpoint(tmp_path / "killed", 13))
    assert held
    assert all("lora_" in name for name in held)
    dpo(config, tmp_path / "killed")
    assert_same_run(whole, tmp_path / "killed")


def test_a_tuning_that_is_stopped_keeps_adapters_and_saves_their_merge(folders, tmp_path):
    config = config_of(folders, patience=1, learning_rate=1e-12)
    dpo(config, tmp_path / "tuned")
    results = read_run(tmp_path / "tuned").results
    assert (results["stopped_by"], results["kept_step"]) == ("patience", 0)
    toy_training.assert_same_tensors(weights(tmp_path / "tuned"), weights(folders / "lm"))


@pytest.mark.parametrize("family", ["gpt2", "opt", "pythia", "llama"])
def test_every_family_takes_adapters_in_all_its_layers_but_the_head(tmp_path, family):
    config = tiny_families.SUPPORTED[family]()
    lm = load_lm(tiny_families.save_base(tmp_path / family, config))
    matrices = {
        id(weight)
        for name, weight in lm.named_parameters()
        if weight.ndim == 2 and not any(word in name for word in ("embed", "wte", "wpe", "lm_head"))
    }
    use_packed(lm)
    documents = [np.arange(9) * 7 % 97, np.arange(5)]
    with torch.no_grad():
        before = logits(lm, packed(documents))
        adapted = add_adapters(lm, rank=2, alpha=4, seed=0)
        assert torch.equal(before, logits(lm, packed(documents)))  # they add nothing yet
    assert sum("lora_A" in name for name, _ in lm.named_parameters()) == len(matrices)
    with torch.no_grad():
        for name, weight in lm.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
        changed = logits(lm, packed(documents))
        merge(adapted)
        assert (changed - before).abs().max() > 1e-2
        torch.testing.assert_close(logits(lm, packed(documents)), changed, atol=1e-4, rtol=1e-4)


def test_without_peft_the_extra_is_named(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'slam\[lora\]'"):
        dpo(config_of(folders), tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize(
    "wrong", [{"lora_rank": 0}, {"lora_alpha": 0}, {"optimizer": "muon"}, {"embeddings_first": 0.1}]
)
def test_settings_that_do_not_go_with_adapters_are_refused(folders, wrong):
    with pytest.raises(ConfigError, match="lora_rank"):
        config_of(folders, **wrong)
    replace(config_of(folders), lora_rank=None)


def test_several_processes_are_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="lora_rank goes with one process"):
        dpo(config_of(folders), tmp_path / "tuned")
