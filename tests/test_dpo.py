from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import DPOConfig, DPOTrainer

import reference_model
import toy_language
import toy_tuning
from slam.budget import learning_rate_share
from slam.dpo import dpo, format_pairs, pair_losses, preference_task
from slam.errors import ConfigError, InputError, MismatchError
from slam.model import SpeechLM
from slam.packing import document_sums, log_likelihoods, packed, token_log_likelihoods, use_packed
from slam.pairs import Pair, read_pairs
from slam.run import read_json_lines, read_run
from slam.training.engine import ready
from slam.units import Units, Vocabulary, read_units

BETA = 0.3
VOCABULARY = toy_language.VOCABULARY


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model that has begun to learn the toy language, and preferences about it."""
    return toy_tuning.write_folders(tmp_path_factory.mktemp("dpo"))


def config_of(folders, **changes):
    return toy_tuning.config_of(folders, **{"beta": BETA, "validations": 2} | changes)


@pytest.fixture(scope="module")
def trl_trainer(folders, tmp_path_factory):
    """TRL on the same pairs, written as words, with the same model as policy and as reference."""
    pairs = read_pairs(read_units(folders / "pairs"))[:6]
    words = {"<pad>": 0, "<s>": 1} | {f"u{unit}": unit + 2 for unit in range(toy_language.NUM_UNITS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    spoken = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106 - no password
        bos_token="<s>",  # noqa: S106 - no password
        eos_token="<s>",  # noqa: S106 - no password
    )

    def said(units):
        return "".join(f" u{unit}" for unit in units.ids)

    rows = [
        {
            "prompt": "<s>" + said(pair.prompt),
            "chosen": said(pair.chosen) + " <s>",
            "rejected": said(pair.rejected) + " <s>",
        }
        for pair in pairs
    ]
    policy, reference = (reference_model.load_plainly(folders / "lm") for _ in range(2))
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            beta=BETA,
            per_device_train_batch_size=len(rows),
            report_to="none",
            use_cpu=True,
            bf16=False,
            max_length=None,
            activation_checkpointing=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=spoken,
    )
    return pairs, trainer


def shaken(lm):
    """Move the policy away from its reference, so that no term of the loss is zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))


# TRL still asks for what transformers has renamed
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(("loss_name", "theirs_is"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_the_loss_and_its_gradient_equal_trls_on_the_same_pairs(
    folders, trl_trainer, monkeypatch, loss_name, theirs_is
):
    pairs, trainer = trl_trainer
    monkeypatch.setattr(trainer, "loss_types", [theirs_is])
    trainer.model.load_state_dict(trainer.ref_model.state_dict())
    (batch,) = trainer.get_train_dataloader()
    batch = {key: value.clone() for key, value in batch.items()}
    ours = SpeechLM.load(folders / "lm").lm
    use_packed(ours)
    formatted = format_pairs(pairs, VOCABULARY, 32)
    rows = {tuple(row[row != 0].tolist()) for row in batch["input_ids"]}
    assert rows == {tuple(map(int, document)) for document in formatted.chosen + formatted.rejected}

    skipped = formatted.skipped * 2
    reference, _ = log_likelihoods(ours, formatted.chosen + formatted.rejected, skipped=skipped)
    shaken(ours)
    shaken(trainer.model)
    trainer.model.eval()
    trainer.model.zero_grad()
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()

    row = packed(formatted.chosen + formatted.rejected)
    sums = document_sums(token_log_likelihoods(ours, row), row.lengths, skipped)
    counts = torch.tensor(formatted.continuation_tokens().ravel()).float()
    config = config_of(folders, loss=loss_name)
    loss = pair_losses(sums, torch.tensor(reference).float(), counts, config).mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), rel=1e-4)
    assert abs(float(loss.detach()) - np.log(2)) > 1e-3  # not the point at which every loss agrees
    gradients = dict(trainer.model.named_parameters())
    for name, weight in ours.named_parameters():
        cosine = torch.nn.functional.cosine_similarity(weight.grad.ravel(), gradients[name].grad.ravel(), 0)
        assert cosine > 0.9999, name
        assert float(weight.grad.norm()) == pytest.approx(float(gradients[name].grad.norm()), rel=1e-3)


@pytest.mark.parametrize(
    ("loss_name", "beta", "smoothing"),
    [("ipo", 0.5, 0.0), ("simpo", 2.0, 0.0), ("orpo", 1.0, 0.0), ("dpo", BETA, 0.2)],
)
def test_every_loss_raises_the_held_out_preference_accuracy(folders, tmp_path, loss_name, beta, smoothing):
    config = config_of(
        folders, loss=loss_name, beta=beta, label_smoothing=smoothing, budget="30 steps", learning_rate=3e-3
    )
    dpo(config, tmp_path / "tuned")
    rows = read_json_lines(tmp_path / "tuned" / "metrics.jsonl")
    found = [row for row in rows if "validation_loss" in row]
    assert found[-1]["validation_preference_accuracy"] > found[0]["validation_preference_accuracy"] + 0.1
    assert found[-1]["validation_loss"] < found[0]["validation_loss"]
    # the two sides' ratios to the model as it was: none at first, then the better side's is the higher
    assert found[0]["validation_chosen_log_ratio"] == pytest.approx(0, abs=1e-5)
    assert found[-1]["validation_chosen_log_ratio"] > found[-1]["validation_rejected_log_ratio"]


def test_smoothed_labels_go_with_dpo_alone(folders):
    with pytest.raises(ConfigError, match="label_smoothing"):
        config_of(folders, loss="ipo", label_smoothing=0.1)
    with pytest.raises(ConfigError, match="label_smoothing"):
        config_of(folders, label_smoothing=0.5)


def test_the_first_step_starts_from_the_untouched_model_as_reference(folders, tmp_path):
    """Policy and reference are the same model then, so each pair's loss is log 2 and its margin 0."""
    dpo(config_of(folders, budget="10 steps", learning_rate=1e-12), tmp_path / "tuned")
    rows = read_json_lines(tmp_path / "tuned" / "metrics.jsonl")
    assert rows[0]["validation_loss"] == pytest.approx(np.log(2), abs=1e-6)
    (training,) = [row for row in rows if "loss" in row]
    assert training["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert training["reward_margin"] == pytest.approx(0, abs=1e-5)


def test_what_validation_reports_is_what_plain_transformers_finds(folders, tmp_path):
    config = config_of(folders)
    results = dpo(config, tmp_path / "tuned").results
    before = reference_model.load_plainly(folders / "lm")
    after = reference_model.load_plainly(tmp_path / "tuned")
    pairs = format_pairs(read_pairs(read_units(folders / "pairs")), VOCABULARY, 32)
    held_out = np.random.default_rng(config.seed).permutation(80)[:20]
    margins, right = [], []
    for number in held_out:
        sides = [pairs.chosen[number], pairs.rejected[number]]
        skipped = pairs.skipped[number]
        old, new = (
            [reference_model.document_log_likelihood(lm, side, skipped) for side in sides]
            for lm in (before, after)
        )
        margins.append((new[0] - old[0]) - (new[1] - old[1]))
        right.append(new[0] > new[1])
    expected = np.mean(np.logaddexp(0, -BETA * np.array(margins)))
    assert results["final_validation_loss"] == pytest.approx(expected, abs=1e-4)
    assert results["final_validation_preference_accuracy"] == pytest.approx(np.mean(right))


def test_tuning_raises_the_held_out_preference_accuracy(folders, tmp_path):
    run = dpo(config_of(folders, budget="60 steps"), tmp_path / "tuned")
    rows = read_json_lines(tmp_path / "tuned" / "metrics.jsonl")
    before = rows[0]["validation_preference_accuracy"]
    assert run.results["final_validation_preference_accuracy"] > before
    assert run.results["final_validation_preference_accuracy"] > 0.9
    assert run.results["final_validation_loss"] < 0.5 * np.log(2)


def test_a_killed_tuning_resumed_equals_the_one_never_killed(folders, tmp_path, monkeypatch):
    config = config_of(folders, checkpoint_seconds=1e-9)
    dpo(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("slam.model.SpeechLM.save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dpo(replace(config, budget="30 steps"), tmp_path / "killed")
    # back to a checkpoint in the middle
    newest = max((tmp_path / "killed" / "checkpoints").glob("0*"))
    (newest / "state.json").unlink()
    dpo(config, tmp_path / "killed")
    one, other = (reference_model.load_plainly(tmp_path / name).state_dict() for name in ("whole", "killed"))
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def test_the_chosen_sides_own_loss_holds_its_likelihood_up(folders, tmp_path):
    finals = {}
    for weight in (0.0, 5.0):
        out = tmp_path / f"tuned-{weight}"
        dpo(config_of(folders, sft_weight=weight, budget="40 steps"), out)
        tuned = SpeechLM.load(out).lm
        use_packed(tuned)
        pairs = format_pairs(read_pairs(read_units(folders / "pairs")), VOCABULARY, 32)
        sums, _ = log_likelihoods(tuned, pairs.chosen, skipped=pairs.skipped)
        finals[weight] = sums.mean()
    assert finals[5.0] > finals[0.0]


def test_the_chosen_sides_own_loss_is_its_mean_over_its_tokens(folders, tmp_path):
    """At the first step the preference part is log 2, so what is left is the weighted mean loss."""
    config = config_of(folders, budget="10 steps", learning_rate=1e-12, sft_weight=2.0, batch_pairs=60)
    dpo(config, tmp_path / "tuned")
    (row,) = [row for row in read_json_lines(tmp_path / "tuned" / "metrics.jsonl") if "loss" in row]
    pairs = format_pairs(read_pairs(read_units(folders / "pairs")), VOCABULARY, 32)
    training = np.random.default_rng(config.seed).permutation(80)[20:]
    plain = reference_model.load_plainly(folders / "lm")
    own = [
        -reference_model.document_log_likelihood(plain, pairs.chosen[n], pairs.skipped[n])
        / (len(pairs.chosen[n]) - 1 - pairs.skipped[n])
        for n in training
    ]
    assert row["loss"] == pytest.approx(np.log(2) + 2.0 * np.mean(own), rel=1e-4)


def units(length, first=0):
    ids = (np.arange(first, first + length) % 50).astype(np.uint16)
    return Units(ids, np.ones(length, np.uint16), 25.0)


@settings(max_examples=60)
@given(
    prompt=st.integers(0, 40),
    chosen=st.integers(1, 15),
    rejected=st.integers(1, 15),
    context=st.integers(17, 40),
)
def test_a_long_prompt_is_cut_from_its_left_and_sides_stay_whole(prompt, chosen, rejected, context):
    pair = Pair("one", "set", "kind", units(prompt), units(chosen, 7), units(rejected, 9))
    vocabulary = Vocabulary(50)
    formatted = format_pairs([pair], vocabulary, context)
    (skipped,) = formatted.skipped
    for document, side in ((formatted.chosen[0], pair.chosen), (formatted.rejected[0], pair.rejected)):
        assert len(document) <= context
        assert document[0] == vocabulary.bos
        assert document[-1] == vocabulary.eos
        said = vocabulary.ids(document)
        assert said[skipped:].tolist() == side.ids.tolist()
        assert said[:skipped].tolist() == pair.prompt.ids[prompt - skipped :].tolist()
    # nothing is cut that need not be
    assert skipped == min(prompt, context - max(chosen, rejected) - 2)


def test_a_continuation_longer_than_the_context_is_refused():
    pair = Pair("long one", "set", "kind", units(3), units(31), units(4))
    with pytest.raises(InputError, match=r"'long one'.*31 units does not fit a context of 32"):
        format_pairs([pair], Vocabulary(50), 32)
    format_pairs([pair], Vocabulary(50), 33)


def test_pairs_of_another_tokenizer_are_refused(folders, tmp_path):
    other = toy_language.write_pairs(tmp_path / "other", toy_language.counting_pairs(5), fingerprint="f" * 16)
    with pytest.raises(MismatchError, match="encode with the model's tokenizer"):
        dpo(config_of(folders, pairs=other), tmp_path / "tuned")
    assert read_run(tmp_path / "tuned") is None


def test_too_few_pairs_to_keep_some_apart_are_refused(folders, tmp_path):
    one = toy_language.write_pairs(tmp_path / "one", toy_language.counting_pairs(1))
    with pytest.raises(InputError, match="1 pairs are too few"):
        dpo(config_of(folders, pairs=one), tmp_path / "tuned")


@pytest.mark.parametrize(
    "wrong", [{"beta": 0.0}, {"batch_pairs": 0}, {"held_out_share": 1.0}, {"sft_weight": -1.0}]
)
def test_settings_that_cannot_be_meant_are_refused(folders, wrong):
    with pytest.raises(ConfigError):
        config_of(folders, **wrong)


def test_the_papers_schedule_falls_with_the_root_of_the_share_spent():
    rates = [learning_rate_share("inverse-sqrt", share, warmup=0.1, floor=0.0) for share in (0.1, 0.4, 0.9)]
    assert rates == pytest.approx([1.0, 0.5, 1 / 3])


def test_a_row_of_one_shape_hands_its_graph_nothing_but_tensors_that_differs(folders):
    """Else every row would be compiled anew; and a budget of tokens means the same in either kind of row."""
    pairs = format_pairs(read_pairs(read_units(folders / "pairs")), VOCABULARY, 32)
    lm = SpeechLM.load(folders / "lm").lm
    use_packed(lm)
    config = config_of(folders, micro_batch_tokens=512)
    task = preference_task(lm, pairs, pairs.take([0]), config)
    engine = ready(lm, config, task)
    seen, tokens = set(), []

    def module(row, _positions, _targets, _starts, *others):
        seen.add(others)
        return torch.zeros(row.shape[1], requires_grad=True)

    for fill in (task.fill(512), None):
        one = replace(engine, fill=fill, module=module)
        batches = (np.arange(6), np.arange(6, 14))
        tokens += [float(one.gradients(one.micro_batches(i), len(i))["num_tokens"]) for i in batches]
        if fill is not None:
            assert seen == {(fill.longest, (), ())}
    assert tokens[:2] == tokens[2:]


def test_a_process_without_pairs_adds_gradients_of_zero(folders):
    """A last batch may hold fewer pairs than there are processes."""
    pairs = format_pairs(read_pairs(read_units(folders / "pairs")), VOCABULARY, 32)
    lm = SpeechLM.load(folders / "lm").lm
    use_packed(lm)
    config = config_of(folders)
    engine = ready(lm, config, preference_task(lm, pairs, pairs.take([0]), config))
    found = engine.gradients([np.zeros(0, np.int64)], 1)
    assert {name: float(value) for name, value in found.items()} == dict.fromkeys(found, 0.0)
    assert all(not weight.grad.any() for weight in lm.parameters())
