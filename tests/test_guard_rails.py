from dataclasses import replace

import numpy as np
import pytest
import torch

import reference_model
import tiny_families
import toy_language
import toy_training
import toy_tuning
from slam import guard_rails
from slam.dpo import dpo
from slam.errors import ConfigError, InputError, MismatchError
from slam.guard_rails import Limits, divergence, length_alone, sample
from slam.metrics.auto_bleu import auto_bleu
from slam.metrics.preference import wilson_interval
from slam.model import SpeechLM, load_lm
from slam.packing import log_likelihoods, use_packed
from slam.pairs import read_pairs
from slam.preferences import Preferences, divide, format_pairs
from slam.run import read_run
from slam.shards import open_shards
from slam.units import Vocabulary, read_units
from toy_training import act_at_step, assert_same_run, rows
from toy_tuning import CONTEXT, HARSH, config_of

VOCABULARY = toy_language.VOCABULARY
RISE = 0.6  # nats a token that are too much


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return toy_tuning.write_folders(tmp_path_factory.mktemp("tuning"))


@pytest.fixture(scope="module")
def harsh(folders, tmp_path_factory):
    """A tuning that is watched and never stopped."""
    out = tmp_path_factory.mktemp("harsh") / "tuned"
    dpo(config_of(folders, validation_shards=folders / "shards", **HARSH), out)
    return out


def held_out(folders, **changes):
    config = config_of(folders, **changes)
    pairs = format_pairs(read_pairs(read_units(config.pairs)), VOCABULARY, CONTEXT)
    return divide(pairs, config.held_out_share, config.seed, config.pairs)[1]


def validations(out):
    return [row for row in rows(out) if "validation_loss" in row]


def packing(folder):
    lm = load_lm(str(folder))
    use_packed(lm)
    return lm


# --- what is watched


def test_the_loss_on_shards_is_what_pretraining_ended_with_and_what_plain_transformers_finds(folders, harsh):
    results = read_run(harsh).results
    ended = read_run(folders / "lm").results["final_validation_loss"]
    assert results["before"]["pretraining_loss"] == pytest.approx(ended, abs=1e-5)
    shards = open_shards(folders / "shards", "validation").chunked(CONTEXT)
    documents = [shards[number] for number in range(len(shards))]
    after = reference_model.mean_loss(reference_model.load_plainly(harsh), documents)
    assert results["after"]["pretraining_loss"] == pytest.approx(after, abs=1e-4)
    assert after > ended + 0.05


def plain_divergences(before, after, pairs):
    """KL(after‖before) and KL(before‖after) at every token of both continuations, one document at a time."""
    found = []
    for side in (pairs.chosen, pairs.rejected):
        for document, prompt in zip(side, pairs.skipped, strict=True):
            with torch.no_grad():
                one, other = (
                    reference_model.document_logits(lm, document)[prompt:-1].double().log_softmax(-1)
                    for lm in (after, before)
                )
            forward = (one.exp() * (one - other)).sum(-1)
            reverse = (other.exp() * (other - one)).sum(-1)
            found.append(torch.stack([forward, reverse]))
    return torch.cat(found, dim=1).mean(dim=1).tolist()


def test_the_divergence_from_the_reference_is_exact_in_both_directions(folders, harsh):
    results = read_run(harsh).results
    models = [reference_model.load_plainly(folder) for folder in (folders / "lm", harsh)]
    forward, reverse = plain_divergences(*models, held_out(folders))
    assert forward > 0.01
    assert abs(forward - reverse) > 1e-3  # so that they cannot be taken for each other
    assert results["after"]["kl"] == pytest.approx(forward, rel=1e-3)
    assert results["after"]["reverse_kl"] == pytest.approx(reverse, rel=1e-3)
    assert results["before"]["kl"] == results["before"]["reverse_kl"] == 0.0


def test_the_distributions_kept_are_of_as_many_pairs_as_the_limit_allows(folders, monkeypatch):
    pairs = held_out(folders)
    tokens = pairs.continuation_tokens().sum(axis=0)
    for most, number in ((int(tokens[:3].sum()), 3), (int(tokens[:3].sum()) - 1, 2), (1, 1)):
        monkeypatch.setattr(guard_rails, "_MOST_POSITIONS", most)
        lm, before = packing(folders / "lm"), reference_model.load_plainly(folders / "lm")
        look = divergence(lm, pairs, most_tokens=20)
        with torch.no_grad():
            for model in (lm, before):
                model.model.embed_tokens.weight[::2] *= 1.5 if model is lm else 1.0
        after = reference_model.load_plainly(folders / "lm")
        with torch.no_grad():
            after.model.embed_tokens.weight[::2] *= 1.5
        expected = plain_divergences(before, after, pairs.take(range(number)))
        assert list(look(lambda: None).values()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", ["qwen2-tied", "gpt2", "opt"])
def test_prompts_of_different_lengths_go_on_as_each_does_alone(tmp_path, monkeypatch, family):
    """With a single candidate a draw is no draw: the likeliest unit, boundaries and padding left out."""
    monkeypatch.setattr(guard_rails, "_TOP_K", 1)
    vocabulary = Vocabulary(95)
    base = tiny_families.save_base(tmp_path / family, tiny_families.SUPPORTED[family]())
    lm, plain = packing(base), reference_model.load_plainly(base)
    generator = np.random.default_rng(0)
    prompts = [vocabulary.document(generator.integers(0, 95, n).astype(np.uint16))[:-1] for n in (3, 20, 9)]
    found = sample(lm, vocabulary, prompts, num_units=12, seed=0)
    for prompt, units in zip(prompts, found, strict=True):
        document = [int(token) for token in prompt]
        for _ in range(12):
            with torch.no_grad():
                scores = reference_model.document_logits(plain, document)[-1]
            scores[[vocabulary.pad, vocabulary.bos]] = -torch.inf
            document.append(int(scores.argmax()))
        assert vocabulary.ids(np.array(document[len(prompt) :])).tolist() == units.tolist()


def test_draws_are_the_papers_and_the_same_each_time(folders, monkeypatch):
    lm, plain = packing(folders / "lm"), reference_model.load_plainly(folders / "lm")
    with torch.no_grad():
        for model in (lm, plain):  # surer of itself, so that the temperature matters
            model.model.norm.weight *= 3
    prompt = VOCABULARY.document(np.array([3, 4], np.uint16))[:-1]
    scores = reference_model.document_logits(plain, prompt)[-1]
    monkeypatch.setattr(guard_rails, "_TOP_K", 3)
    state = torch.get_rng_state()
    (*found,) = sample(lm, VOCABULARY, [prompt] * 3000, num_units=1, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    again = sample(lm, VOCABULARY, [prompt] * 3000, num_units=1, seed=1)
    assert np.array_equal(found, again)
    assert not np.array_equal(found, sample(lm, VOCABULARY, [prompt] * 3000, num_units=1, seed=2))
    best = scores[2:].topk(3)
    expected = (best.values / 0.8).softmax(-1)
    counts = np.bincount(np.concatenate(found), minlength=VOCABULARY.num_units)
    assert counts.sum() == counts[best.indices].sum()
    assert (expected - best.values.softmax(-1)).abs().max() > 0.04
    assert counts[best.indices] / 3000 == pytest.approx(expected.detach().numpy(), abs=0.025)
    # and the model attends inside packed documents again
    pairs = held_out(folders)
    expected = [reference_model.document_log_likelihood(plain, document) for document in pairs.chosen]
    assert log_likelihoods(lm, pairs.chosen)[0] == pytest.approx(expected, rel=1e-4)


def test_repetition_is_the_mean_auto_bleu_of_what_the_model_says(folders, harsh):
    """The prompts are cut from their left so that half the context is left for the continuation."""
    results, pairs = read_run(harsh).results, held_out(folders)
    prompts = [
        np.append(document[:1], document[1 : prompt + 1][-(CONTEXT - 1 - 16) :])
        for document, prompt in zip(pairs.chosen[:4], pairs.skipped[:4], strict=True)
    ]
    for folder, when in ((folders / "lm", "before"), (harsh, "after")):
        made = sample(packing(folder), VOCABULARY, prompts, num_units=16, seed=0)
        assert all(len(units) == 16 for units in made)
        assert results[when]["auto_bleu"] == pytest.approx(np.mean([auto_bleu(units, 2) for units in made]))


def test_watching_changes_nothing(folders, harsh, tmp_path):
    dpo(config_of(folders, samples=0, **HARSH), tmp_path / "unwatched")
    assert not any("validation_auto_bleu" in row for row in rows(tmp_path / "unwatched"))
    toy_training.assert_same_tensors(
        toy_training.weights(harsh), toy_training.weights(tmp_path / "unwatched")
    )


def test_before_and_after_are_the_first_and_the_last_validation(harsh):
    results, found = read_run(harsh).results, validations(harsh)
    assert found[0]["step"] == 0
    assert found[-1]["step"] == 30
    for when, row in (("before", found[0]), ("after", found[-1])):
        shown = dict(results[when])
        low, high = shown.pop("preference_accuracy_interval")
        assert {f"validation_{name}": value for name, value in shown.items()} == {
            name: value for name, value in row.items() if name.startswith("validation_")
        }
        assert low <= shown["preference_accuracy"] <= high
        assert len(shown) == 8
    assert results["stopped_by"] is None
    assert results["kept_step"] == 30


# --- when tuning stops


def row_of(*, loss=1.0, repeated=0.2, right=0.5):
    return {
        "validation_pretraining_loss": loss,
        "validation_auto_bleu": repeated,
        "validation_preference_accuracy": right,
    }


@pytest.mark.parametrize(
    ("limits", "found", "stopped_by", "keep"),
    [
        (Limits(max_validation_loss_rise=0.1), [row_of(), row_of(loss=1.09)], None, True),
        (
            Limits(max_validation_loss_rise=0.1),
            [row_of(), row_of(loss=1.11)],
            "max_validation_loss_rise",
            False,
        ),
        (
            Limits(max_validation_loss_rise=0.1),
            [row_of(), row_of(loss=0.5), row_of(loss=1.05)],
            None,
            True,
        ),
        (
            Limits(max_repetition_rise=0.1),
            [row_of(), row_of(repeated=0.31, loss=9)],
            "max_repetition_rise",
            False,
        ),
        (Limits(patience=2), [row_of()], None, True),
        (Limits(patience=2), [row_of(), row_of(right=0.6)], None, True),
        (Limits(patience=2), [row_of(), row_of(right=0.6), row_of(right=0.6)], None, False),
        (
            Limits(patience=2),
            [row_of(), row_of(right=0.6), row_of(), row_of(right=0.6)],
            "patience",
            False,
        ),
        (Limits(patience=2), [row_of(right=0.6), row_of(), row_of(right=0.7)], None, True),
        (Limits(patience=1, max_repetition_rise=0), [row_of(), row_of(right=1.0)], None, True),
    ],
)
def test_a_limit_stops_beyond_it_and_patience_when_it_ends(limits, found, stopped_by, keep):
    verdict = limits.judge(found)
    assert (verdict.stopped_by, verdict.keep) == (stopped_by, keep)


@pytest.fixture(scope="module")
def stopped(folders, tmp_path_factory):
    """A tuning whose loss on other speech rose too far by step 21 of 30."""
    out = tmp_path_factory.mktemp("stopped") / "tuned"
    config = config_of(
        folders, validation_shards=folders / "shards", max_validation_loss_rise=RISE, validations=10, **HARSH
    )
    dpo(config, out)
    return config, out


def test_the_last_weights_that_held_the_limit_are_what_is_saved(folders, stopped):
    _, out = stopped
    results, found = read_run(out).results, validations(out)
    losses = [row["validation_pretraining_loss"] for row in found]
    assert losses[-1] > losses[0] + RISE
    assert all(loss <= losses[0] + RISE for loss in losses[:-1])
    assert results["stopped_by"] == "max_validation_loss_rise"
    assert results["stopped_at_step"] == found[-1]["step"] == results["steps"] < 30
    assert 0 < results["kept_step"] == found[-2]["step"]
    shards = open_shards(folders / "shards", "validation").chunked(CONTEXT)
    documents = [shards[number] for number in range(len(shards))]
    saved = reference_model.mean_loss(reference_model.load_plainly(out), documents)
    assert saved == pytest.approx(losses[-2], abs=1e-4)
    assert results["after"]["pretraining_loss"] == losses[-2]
    assert results["final_validation_pretraining_loss"] == losses[-2]
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize("killed_at", [1, 8, 20])
def test_a_tuning_killed_before_it_stops_is_resumed_to_the_same_weights(
    stopped, tmp_path, monkeypatch, killed_at
):
    """Checkpoints are rarer than validations here, so weights kept after the last one are made anew."""
    config, whole = stopped
    toy_training.Clock(monkeypatch)
    config = replace(config, checkpoint_seconds=1.7)
    with monkeypatch.context() as patch:
        act_at_step(patch, killed_at, toy_training.kill)
        with pytest.raises(toy_training.KilledError):
            dpo(config, tmp_path / "killed")
    checkpoints = tmp_path / "killed" / "checkpoints"
    if killed_at == 20:
        assert {path.name for path in checkpoints.glob("kept-*")} >= {"kept-000000018.safetensors"}
        newest = max(int(path.name) for path in checkpoints.glob("0*"))
        assert newest < 18
    dpo(config, tmp_path / "killed")
    assert_same_run(whole, tmp_path / "killed")
    results = [read_run(folder).results for folder in (whole, tmp_path / "killed")]
    for name in ("before", "after", "stopped_by", "stopped_at_step", "kept_step"):
        assert results[0][name] == results[1][name]


def test_weights_of_a_life_that_was_lost_are_not_taken_for_what_was_kept_last(stopped, tmp_path, monkeypatch):
    """A training on the clock validates at other steps when it is resumed."""
    config, whole = stopped
    with monkeypatch.context() as patch:
        act_at_step(patch, 20, toy_training.kill)
        with pytest.raises(toy_training.KilledError):
            dpo(replace(config, checkpoint_seconds=1e-9), tmp_path / "killed")
    (tmp_path / "killed" / "checkpoints" / "kept-000000019.safetensors").write_bytes(b"of another life")
    dpo(config, tmp_path / "killed")
    assert_same_run(whole, tmp_path / "killed")


def test_weights_that_nothing_needs_are_dropped(stopped, tmp_path, monkeypatch):
    config, _ = stopped
    toy_training.Clock(monkeypatch)
    with monkeypatch.context() as patch:
        act_at_step(patch, 20, toy_training.kill)
        with pytest.raises(toy_training.KilledError):
            dpo(replace(config, checkpoint_seconds=0.4), tmp_path / "killed")
    folder = tmp_path / "killed" / "checkpoints"
    kept = sorted(int(path.stem.removeprefix("kept-")) for path in folder.glob("kept-*"))
    checkpoints = [int(path.name) for path in folder.glob("0*")]
    assert len(kept) <= 1 + len(checkpoints) < 18 // 3
    assert {18} | {min(18, step // 3 * 3) for step in checkpoints} <= set(kept)


def test_damaged_weights_are_named(stopped, tmp_path, monkeypatch):
    config, whole = stopped
    kept = read_run(whole).results["kept_step"]

    def damage():
        (path,) = (tmp_path / "tuned" / "checkpoints").glob(f"kept-*{kept}.safetensors")
        path.write_bytes(path.read_bytes()[:-5])

    act_at_step(monkeypatch, kept + 1, damage)
    with pytest.raises(InputError, match=rf"kept-0+{kept}\.safetensors: damaged"):
        dpo(config, tmp_path / "tuned")


def test_with_patience_the_model_saved_is_the_best_one(folders, tmp_path, capsys):
    """Preferences of the wrong sides: from the first update on the accuracy falls."""
    swapped = [
        (*one[:4], one[5], one[4]) for one in toy_language.counting_pairs(60) if len(one[4]) == len(one[5])
    ]
    right = [(f"r-{one[0]}", *one[1:]) for one in toy_language.counting_pairs(60, seed=5)]
    pairs = toy_language.write_pairs(tmp_path / "pairs", swapped + right)
    config = config_of(folders, pairs=pairs, patience=2, validations=10, budget="60 steps")
    dpo(config, tmp_path / "tuned")
    results, found = read_run(tmp_path / "tuned").results, validations(tmp_path / "tuned")
    accuracies = [row["validation_preference_accuracy"] for row in found]
    best = accuracies.index(max(accuracies))
    assert results["kept_step"] == found[best]["step"]
    assert results["after"]["preference_accuracy"] == accuracies[best]
    assert results["stopped_by"] == ("patience" if len(found) - 1 - best == 2 else None)
    assert results["kept_step"] < results["steps"]
    assert f"the model is that of step {results['kept_step']}" in " ".join(capsys.readouterr().err.split())
    # the file itself says so
    pairs = held_out(folders, pairs=pairs)
    lm = packing(tmp_path / "tuned")
    better, worse = (
        log_likelihoods(lm, side, skipped=pairs.skipped)[0] for side in (pairs.chosen, pairs.rejected)
    )
    assert np.mean(better > worse) == accuracies[best]


# --- what is refused, and what is said


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"max_validation_loss_rise": 0.1}, "needs validation_shards"),
        ({"max_repetition_rise": 0.1, "samples": 0}, "needs samples"),
        ({"max_repetition_rise": -0.1}, "max_repetition_rise = -0.1"),
        ({"max_repetition_rise": float("nan")}, "max_repetition_rise = nan"),
        ({"patience": 0}, "patience = 0"),
        ({"samples": -1}, "samples = -1"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused(folders, wrong, line):
    with pytest.raises(ConfigError, match=line):
        config_of(folders, **wrong)


def test_validation_shards_of_another_tokenizer_are_refused(folders, tmp_path):
    shards = toy_language.write_shards(
        tmp_path / "shards", toy_language.utterances(3), toy_language.utterances(3)
    )
    text = (shards / "shards.json").read_text()
    fingerprint = SpeechLM.load(folders / "lm").tokenizer_fingerprint
    (shards / "shards.json").write_text(text.replace(fingerprint, "f" * 16))
    with pytest.raises(MismatchError, match="encode with the model's tokenizer"):
        dpo(config_of(folders, validation_shards=shards), tmp_path / "tuned")
    (shards / "shards.json").write_text(text)
    tokens = np.load(shards / "validation" / "tokens.npy")
    tokens[3] = 200
    np.save(shards / "validation" / "tokens.npy", tokens)
    with pytest.raises(InputError, match="holds token 200"):
        dpo(config_of(folders, validation_shards=shards), tmp_path / "tuned")


def of_lengths(lengths):
    """Pairs whose continuations have these numbers of units."""
    sides = [[np.zeros(1 + 2 + n + 1, np.uint16) for n in side] for side in zip(*lengths, strict=True)]
    return Preferences(chosen=sides[0], rejected=sides[1], skipped=[2] * len(lengths))


def test_pairs_that_length_alone_tells_apart_are_told(tmp_path, capsys):
    """Ties count one half; half right is chance, and few pairs say nothing."""
    for lengths, accuracy, word in (
        ([(3, 5)] * 30 + [(5, 3)] * 10, 0.75, "shorter side is the better one in 75% of 40"),
        ([(3, 5)] * 10 + [(5, 3)] * 30, 0.25, "longer side is the better one in 75% of 40"),
        ([(3, 5)] * 20 + [(5, 3)] * 20, 0.5, None),
        ([(3, 5)] * 2 + [(4, 4)] * 20, 12 / 22, None),
        ([(3, 5)] * 2, 1.0, None),
    ):
        found = length_alone(of_lengths(lengths), tmp_path)
        said = " ".join(capsys.readouterr().err.split())
        assert found["held_out_length_accuracy"] == pytest.approx(accuracy)
        assert (word is None and not said) or word in said
        low, high = found["held_out_length_interval"]
        assert low < accuracy <= high


def test_the_interval_is_wilsons():
    for right, count in ((0, 7), (15, 20), (431, 1000), (20, 20)):
        z, share = 1.959963984540054, right / count
        centre = (share + z * z / (2 * count)) / (1 + z * z / count)
        reach = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
        assert wilson_interval(share, count) == pytest.approx((centre - reach, centre + reach), abs=1e-12)
