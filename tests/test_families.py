"""What holds of every family that can be trained, from a base on disk to a checkpoint that anyone loads."""

import copy
from pathlib import Path

import pytest
import torch
import transformers

import reference_model
import toy_language
from slam.attention import PACKED
from slam.errors import ConfigError
from slam.model import SpeechLM
from slam.packing import logits, packed, token_log_likelihoods, use_packed
from slam.pretrain import PretrainConfig, pretrain
from slam.run import read_json, read_json_lines
from slam.shards import open_shards
from slam.units import Vocabulary
from tiny_families import (
    CONTEXT,
    GROUPED,
    ROTARY,
    SUPPORTED,
    TABLED,
    THETA,
    VOCABULARY,
    built,
    random_documents,
    save_base,
)

# Mistral attends as they do where it has no window
PACKABLE = SUPPORTED | {"mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=None)}
ROTATED_WIDTHS = {"qwen3": 16, "pythia": 4}  # of a head; else 8
PAPERS_THETA = 10_000.0


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {name: save_base(root / name, config()) for name, config in PACKABLE.items()}


@pytest.fixture(scope="module")
def toy_shards(tmp_path_factory):
    return toy_language.write_shards(
        tmp_path_factory.mktemp("shards"), toy_language.utterances(60), toy_language.utterances(15, seed=1)
    )


def tables(lm):
    """Token embeddings and head: two tensors, or one where they are tied."""
    return list(
        {id(t): t for t in (lm.get_input_embeddings().weight, lm.get_output_embeddings().weight)}.values()
    )


@pytest.mark.parametrize("family", SUPPORTED)
def test_twist_keeps_the_body_bit_for_bit_and_swaps_the_vocabulary(bases, family):
    stock = reference_model.load_plainly(bases[family])
    model = built(bases[family])
    vocabularies = {id(table) for table in tables(model)}
    before = dict(stock.named_parameters())
    assert before.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        if id(weight) in vocabularies:
            assert weight.shape[0] == VOCABULARY.size
            assert (weight != before[name][: VOCABULARY.size]).all()
        else:
            assert torch.equal(weight, before[name]), name
    assert len(vocabularies) == len(tables(stock)) == (1 if stock.config.tie_word_embeddings else 2)


@pytest.fixture(scope="module")
def marked_base(tmp_path_factory):
    """A base, tied or not, each of whose tables has a mean and a spread of its own in each column."""

    def make(family):
        torch.manual_seed(0)
        lm = transformers.AutoModelForCausalLM.from_config(SUPPORTED[family]())
        with torch.no_grad():
            for number, table in enumerate(tables(lm)):
                columns = torch.linspace(-1, 1, table.shape[1])
                table.copy_(columns.roll(number) + (columns + 1.5) * torch.randn_like(table))
        folder = tmp_path_factory.mktemp(f"marked-{family}")
        lm.save_pretrained(folder)
        return str(folder), [table.detach() for table in tables(lm)]

    return make


@pytest.mark.parametrize("family", SUPPORTED)
def test_embeddings_may_start_as_the_first_rows_of_the_text(marked_base, family):
    base, text = marked_base(family)
    found = tables(built(base, embeddings="rows"))
    for rows, before in zip(found, text, strict=True):
        assert torch.equal(rows, before[: VOCABULARY.size])


@pytest.mark.parametrize("family", SUPPORTED)
def test_embeddings_start_with_the_mean_and_spread_of_the_text(marked_base, family):
    base, text = marked_base(family)
    many = Vocabulary(4000)  # for the statistics' sake
    found = tables(built(base, vocabulary=many))
    for rows, before in zip(found, text, strict=True):
        assert rows.shape[0] == many.size
        mean, spread = before.mean(0), before.std(0)
        error = spread / many.size**0.5
        assert ((rows.mean(0) - mean).abs() < 5 * error).all()
        assert ((rows.std(0) / spread - 1).abs() < 0.06).all()  # five standard errors
        assert (rows[: len(before)] != before).all()
    again, other = (tables(built(base, vocabulary=many, seed=seed)) for seed in (0, 1))
    for rows, same, reseeded in zip(found, again, other, strict=True):
        assert torch.equal(rows, same)
        assert (rows != reseeded).any(dim=1).all()


@pytest.mark.parametrize("initialization", ["twist", "random"])
@pytest.mark.parametrize("family", PACKABLE)
def test_a_family_is_packed_rightly(bases, family, initialization):
    model = built(bases[family], initialization=initialization).eval()
    assert model.get_input_embeddings().weight.shape[0] == VOCABULARY.size
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    use_packed(model)
    documents = random_documents([9, 2, 32, 1, 17, 17])
    batch = packed(documents)
    with torch.no_grad():
        alone = torch.cat([reference_model.document_logits(plain, document) for document in documents])
        torch.testing.assert_close(logits(model, batch), alone, atol=1e-5, rtol=1e-4)
    (-token_log_likelihoods(model, batch).sum()).backward()
    expected = reference_model.summed_gradients(plain, documents)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], atol=1e-4, rtol=1e-3)


def dropouts(lm):
    """Every probability of leaving something out: in the settings, and in what was built from them."""
    found = {
        name: value
        for name, value in lm.config.to_dict().items()
        if "drop" in name and isinstance(value, float)
    }
    for name, module in lm.named_modules():
        if isinstance(module, torch.nn.Dropout):
            found[name] = module.p
        found |= {
            f"{name}.{key}": value
            for key, value in vars(module).items()
            if "drop" in key and isinstance(value, float)
        }
    return found


@pytest.mark.parametrize("initialization", ["twist", "random"])
@pytest.mark.parametrize("family", SUPPORTED)
def test_nothing_is_left_to_chance_in_training(bases, family, initialization):
    assert any(dropouts(reference_model.load_plainly(bases[family])).values())
    model = built(bases[family], initialization=initialization).train()
    use_packed(model)
    assert not any(dropouts(model).values())
    batch = packed(random_documents([9, 12]))
    with torch.no_grad():
        assert torch.equal(logits(model, batch), logits(model, batch))


def frequencies(lm):
    """The rotary frequencies that every layer turns by."""
    (found,) = {tuple(b.tolist()) for name, b in lm.named_buffers() if name.endswith("inv_freq")}
    return found


@pytest.mark.parametrize("initialization", ["twist", "random"])
@pytest.mark.parametrize(("theta", "realised"), [(PAPERS_THETA, PAPERS_THETA), (None, THETA)])
@pytest.mark.parametrize("family", ROTARY)
def test_rope_theta_is_what_was_asked_for_and_else_the_bases_own(
    *, bases, tmp_path, family, initialization, theta, realised
):
    width = ROTATED_WIDTHS.get(family, 8)
    expected = pytest.approx([realised ** (-2 * index / width) for index in range(width // 2)], rel=1e-5)
    model = built(bases[family], initialization=initialization, rope_theta=theta)
    assert frequencies(model) == expected
    SpeechLM(model, VOCABULARY, "toy", "0").save(tmp_path)
    assert frequencies(reference_model.load_plainly(tmp_path)) == expected
    assert frequencies(SpeechLM.load(tmp_path).lm) == expected


@pytest.mark.parametrize("initialization", ["twist", "random"])
@pytest.mark.parametrize("family", TABLED)
def test_rope_theta_is_refused_where_there_are_no_rotary_positions(bases, family, initialization):
    with pytest.raises(ConfigError, match=r"^rope_theta = 10000: \w+ has no rotary positions$"):
        built(bases[family], initialization=initialization, rope_theta=PAPERS_THETA)


@pytest.mark.parametrize("family", PACKABLE)
def test_a_context_longer_than_the_base_allows_is_refused(bases, family):
    built(bases[family], context=CONTEXT)
    with pytest.raises(ConfigError, match=r"context 65 is longer than the 64 tokens .*; set context to 64$"):
        built(bases[family], context=CONTEXT + 1)


@pytest.mark.parametrize("family", SUPPORTED)
def test_what_is_saved_after_training_is_a_stock_checkpoint(bases, family, tmp_path):
    model = built(bases[family])
    use_packed(model)
    (-token_log_likelihoods(model, packed(random_documents([9, 12]))).mean()).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    SpeechLM(model, VOCABULARY, "toy", "0123").save(tmp_path)
    stock, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, trust_remote_code=False, output_loading_info=True
    )
    assert not any(loading.values())  # nothing missing, unexpected or of another shape
    assert "auto_map" not in read_json(tmp_path / "config.json")
    assert type(stock).__module__.startswith("transformers.models.")
    assert type(stock) is type(reference_model.load_plainly(bases[family]))
    assert stock.config.vocab_size == VOCABULARY.size
    assert not any(dropouts(stock).values())
    model.set_attn_implementation(PACKED)
    for document in random_documents([20, 1, 32]):
        with torch.no_grad():
            torch.testing.assert_close(
                reference_model.document_logits(stock.eval(), document),
                logits(model.eval(), packed([document])),
                atol=1e-5,
                rtol=1e-4,
            )


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_base_is_trained_into_a_checkpoint_whose_loss_is_the_one_reported(
    bases, toy_shards, family, tmp_path
):
    out = tmp_path / "lm"
    config = PretrainConfig(
        shards=toy_shards,
        base=Path(bases[family]),
        budget="12 steps",
        batch_tokens=160,
        micro_batch_tokens=80,
        context=32,
        learning_rate=3e-3,
        muon_learning_rate=1e-2,
        validations=2,
    )
    results = pretrain(config, out).results
    assert results["steps"] == 12
    stock = reference_model.load_plainly(out)
    shards = open_shards(toy_shards, "validation")
    held_out = [shards[number] for number in range(len(shards))]
    assert results["final_validation_loss"] == pytest.approx(
        reference_model.mean_loss(stock, held_out), rel=1e-5
    )
    rows = read_json_lines(out / "metrics.jsonl")
    untrained = next(row["validation_loss"] for row in rows if "validation_loss" in row)
    assert results["final_validation_loss"] < 0.9 * untrained
