import shutil

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_model
import toy_language
from slam.architecture import Architecture
from slam.errors import ConfigError, InputError, MismatchError
from slam.model import SpeechLM, check_built, new_lm
from slam.packing import (
    PACKED,
    document_sums,
    log_likelihoods,
    logits,
    packed,
    token_log_likelihoods,
    use_packed,
)
from slam.run import read_json
from slam.units import Vocabulary

VOCABULARY = Vocabulary(20)
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
# pad_token_id lies outside the new vocabulary, as in every real text LM
SUPPORTED = {
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED, pad_token_id=90, attention_dropout=0.1),
    "qwen2-tied": lambda: transformers.Qwen2Config(**GROUPED, pad_token_id=90, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=8),
    "llama": lambda: transformers.LlamaConfig(**GROUPED, pad_token_id=90),
    "pythia": lambda: transformers.GPTNeoXConfig(**SIZES, attention_dropout=0.1, hidden_dropout=0.1),
    "mistral-full": lambda: transformers.MistralConfig(**GROUPED, sliding_window=None),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=97,
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=64,
        max_position_embeddings=64,
        layerdrop=0.2,
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}
UNSUPPORTED = {
    "mistral-window": lambda: transformers.MistralConfig(**GROUPED, sliding_window=8),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, head_dim=8),
    "falcon": lambda: transformers.FalconConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    ),
    "bert": lambda: transformers.BertConfig(**SIZES),
    "bloom": lambda: transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4),
    "gpt-neo": lambda: transformers.GPTNeoConfig(
        vocab_size=97,
        hidden_size=32,
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        num_heads=4,
        max_position_embeddings=64,
    ),
}


def base_folder(folder, config, seed=3):
    torch.manual_seed(seed)
    lm = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in lm.parameters():  # the usual 0.02 leaves attention all but uniform
            if weight.ndim > 1:
                weight.mul_(5)
    lm.save_pretrained(folder)
    return str(folder)


def built(base, *, initialization="twist", context=32, rope_theta=None, seed=0):
    return new_lm(
        VOCABULARY,
        base=base,
        initialization=initialization,
        architecture=Architecture(),
        context=context,
        rope_theta=rope_theta,
        seed=seed,
    )


def random_documents(lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(2, VOCABULARY.size, length).astype(np.uint16) for length in lengths]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    every = SUPPORTED | UNSUPPORTED
    return {name: base_folder(root / name, config()) for name, config in every.items()}


@pytest.fixture(scope="module")
def lm(bases):
    model = built(bases["qwen2-tied"])
    use_packed(model)
    return model.eval()


@pytest.fixture(scope="module")
def plain(lm, tmp_path_factory):
    """The same model as `lm`, opened by stock transformers."""
    folder = tmp_path_factory.mktemp("plain")
    SpeechLM(lm, VOCABULARY, "toy", "0").save(folder)
    lm.set_attn_implementation(PACKED)
    return reference_model.load_plainly(folder)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 31), min_size=1, max_size=7), seed=st.integers(0, 1000))
def test_packed_documents_score_as_each_does_alone(lm, plain, lengths, seed):
    documents = random_documents(lengths, seed)
    with torch.no_grad():
        together = logits(lm, packed(documents))
        alone = torch.cat([reference_model.document_logits(plain, document) for document in documents])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(2, 20), min_size=2, max_size=5))
def test_packed_gradients_are_the_sum_of_each_documents(lm, plain, lengths):
    documents = random_documents(lengths)
    (-token_log_likelihoods(lm, packed(documents)).sum()).backward()
    for document in documents:
        targets = torch.tensor(document[1:].astype(np.int64))
        scores = reference_model.document_logits(plain, document)[:-1]
        torch.nn.functional.cross_entropy(scores, targets, reduction="sum").backward()
    expected = dict(plain.named_parameters())
    for name, weight in lm.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name].grad, atol=1e-5, rtol=1e-4)
    lm.zero_grad()
    plain.zero_grad()


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=2, max_size=6),
    which=st.integers(0, 5),
    seed=st.integers(1, 1000),
)
def test_changing_one_document_never_moves_another(lm, lengths, which, seed):
    which %= len(lengths)
    before = random_documents(lengths)
    after = list(before)
    after[which] = random_documents(lengths, seed)[which]
    with torch.no_grad():
        first, second = logits(lm, packed(before)), logits(lm, packed(after))
    moved = (first != second).any(-1).split(lengths)
    for number, document in enumerate(moved):
        assert number == which or not document.any()
    if (before[which] != after[which]).any():
        assert moved[which].any()


def test_no_token_is_asked_to_predict_the_next_document():
    batch = packed([np.array([1, 5, 1]), np.array([1, 6, 7, 1])])
    assert batch.targets.tolist() == [5, 1, -100, 6, 7, 1, -100]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert batch.weight == 5
    assert batch.num_tokens == 7


def test_sums_over_documents_leave_prompts_out():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    assert document_sums(values, [2, 3]).tolist() == [3.0, 28.0]
    assert document_sums(values, [2, 3], [1, 2]).tolist() == [2.0, 16.0]


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=8),
    most_tokens=st.integers(1, 200),
    data=st.data(),
)
def test_log_likelihoods_equal_one_document_at_a_time_in_any_grouping(lm, plain, lengths, most_tokens, data):
    documents = random_documents(lengths, len(lengths))
    skipped = [data.draw(st.integers(0, length - 1)) for length in lengths]
    sums, counts = log_likelihoods(lm, documents, skipped=skipped, most_tokens=most_tokens)
    expected = [
        reference_model.document_log_likelihood(plain, *pair) for pair in zip(documents, skipped, strict=True)
    ]
    np.testing.assert_allclose(sums, expected, atol=1e-4)
    np.testing.assert_array_equal(counts, np.array(lengths) - 1 - np.array(skipped))
    backwards, _ = log_likelihoods(lm, documents[::-1], skipped=skipped[::-1], most_tokens=most_tokens)
    np.testing.assert_allclose(backwards[::-1], sums, atol=1e-4)


def test_log_likelihoods_leave_the_model_in_the_mode_it_was_in(lm):
    for training in (True, False):
        lm.train(training)
        log_likelihoods(lm, random_documents([3]))
        assert lm.training is training


@pytest.mark.parametrize("initialization", ["twist", "random"])
@pytest.mark.parametrize("family", SUPPORTED)
def test_a_family_is_packed_rightly(bases, family, initialization):
    model = built(bases[family], initialization=initialization).eval()
    assert model.get_input_embeddings().weight.shape[0] == VOCABULARY.size
    documents = random_documents([9, 2, 32, 1, 17])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        alone = torch.cat([reference_model.document_logits(model, document) for document in documents])
        use_packed(model)
        together = logits(model, packed(documents))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", SUPPORTED)
def test_nothing_random_is_left_in_training(bases, family):
    model = built(bases[family])
    use_packed(model)
    model.train()
    batch = packed(random_documents([9, 12]))
    with torch.no_grad():
        assert torch.equal(logits(model, batch), logits(model, batch))


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_a_family_that_cannot_be_packed_is_refused_in_one_line(bases, family):
    with pytest.raises(ConfigError) as caught:
        use_packed(built(bases[family]))
    assert "\n" not in str(caught.value)
    assert any(word in str(caught.value) for word in ("choose another base", "window", "caps", "hand"))


def test_a_window_that_no_document_outgrows_is_harmless_and_a_shorter_one_is_refused(tmp_path):
    config = transformers.MistralConfig(**GROUPED, sliding_window=20)
    model = built(base_folder(tmp_path, config))
    use_packed(model)
    assert logits(model, packed(random_documents([20, 20]))).isfinite().all()
    with pytest.raises(ConfigError, match="21 tokens is longer than the window of 20"):
        logits(model, packed(random_documents([21, 5])))


@pytest.mark.parametrize("family", ["qwen2", "qwen2-tied", "llama", "pythia", "opt", "gpt2"])
def test_twist_keeps_the_body_bit_for_bit_and_swaps_the_vocabulary(bases, family):
    stock = reference_model.load_plainly(bases[family])
    model = built(bases[family])
    vocabularies = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    before = dict(stock.named_parameters())
    kept = 0
    for name, weight in model.named_parameters():
        if id(weight) in vocabularies:
            assert weight.shape[0] == VOCABULARY.size
            assert not torch.isin(weight, before[name]).any()
        else:
            assert torch.equal(weight, before[name]), name
            kept += 1
    assert kept == len(before) - len(vocabularies)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == bool(stock.config.tie_word_embeddings)


def test_random_initialisation_takes_the_architecture_and_nothing_else(bases):
    twist, random = (built(bases["llama"], initialization=how) for how in ("twist", "random"))
    other = built(bases["llama"], initialization="random", seed=1)
    again = built(bases["llama"], initialization="random")
    reseeded = dict(other.named_parameters())
    repeated = dict(again.named_parameters())
    for (name, one), (same, two) in zip(twist.named_parameters(), random.named_parameters(), strict=True):
        assert name == same
        assert one.shape == two.shape
        assert torch.equal(two, repeated[name])
        if two.ndim > 1:
            assert not torch.equal(one, two)
            assert not torch.equal(two, reseeded[name])


@pytest.mark.parametrize("family", ["qwen2", "llama", "pythia"])
@pytest.mark.parametrize("initialization", ["twist", "random"])
def test_rope_theta_reaches_the_frequencies(bases, family, initialization):
    model = built(bases[family], initialization=initialization, rope_theta=1234.0)
    (found,) = {tuple(b.tolist()) for name, b in model.named_buffers() if name.endswith("inv_freq")}
    width = 2 * len(found)
    expected = [1234.0 ** (-2 * index / width) for index in range(len(found))]
    assert found == pytest.approx(expected, rel=1e-5)


def test_rope_theta_survives_saving(bases, tmp_path):
    SpeechLM(built(bases["qwen2"], rope_theta=1234.0), VOCABULARY, "toy", "0").save(tmp_path)
    check_built(SpeechLM.load(tmp_path).lm, VOCABULARY, 1234.0)


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_rope_theta_is_refused_where_there_are_no_rotary_positions(bases, family):
    with pytest.raises(ConfigError, match="has no rotary positions"):
        built(bases[family], rope_theta=10_000.0)


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_context_longer_than_the_base_allows_is_refused(bases, family):
    built(bases[family], context=64)
    with pytest.raises(ConfigError, match="context 65 is longer than the 64 tokens"):
        built(bases[family], context=65)


def test_a_document_beyond_a_table_of_positions_is_refused_and_rotary_ones_go_on(bases):
    documents = random_documents([65])
    limited, endless = built(bases["gpt2"]), built(bases["llama"])
    for model in (limited, endless):
        use_packed(model)
    with pytest.raises(InputError, match="65 tokens is longer than the 64 positions"):
        log_likelihoods(limited, documents)
    sums, _ = log_likelihoods(endless, documents)
    assert np.isfinite(sums).all()


def test_what_was_built_is_held_against_what_was_asked_for(bases):
    model = built(bases["qwen2-tied"])
    check_built(model, VOCABULARY)
    with pytest.raises(ConfigError, match="22 token embeddings, its vocabulary 23"):
        check_built(model, Vocabulary(21))
    with pytest.raises(ConfigError, match="did not take"):
        check_built(model, VOCABULARY, 77.0)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(ConfigError, match="tied"):
        check_built(model, VOCABULARY)
    with pytest.raises(ConfigError, match="not fp32"):
        check_built(built(bases["llama"]).to(torch.bfloat16), VOCABULARY)


@pytest.mark.parametrize("family", ["qwen2-tied", "llama", "gpt2"])
def test_a_saved_model_is_a_stock_checkpoint(bases, family, tmp_path):
    model = built(bases[family])
    use_packed(model)
    SpeechLM(model, VOCABULARY, "toy", "0123").save(tmp_path)
    stock, options = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, trust_remote_code=False, output_loading_info=True
    )
    assert not options["missing_keys"]
    assert not options["unexpected_keys"]
    assert "auto_map" not in read_json(tmp_path / "config.json")
    assert type(stock).__module__.startswith("transformers.models.")
    model.set_attn_implementation(PACKED)
    document = random_documents([20])[0]
    with torch.no_grad():
        torch.testing.assert_close(
            reference_model.document_logits(stock, document),
            logits(model.eval(), packed([document])),
            atol=1e-5,
            rtol=1e-4,
        )


def test_a_saved_model_says_what_its_tokens_mean(bases, tmp_path):
    SpeechLM(built(bases["qwen2"]), VOCABULARY, "toy", "0123").save(tmp_path)
    assert read_json(tmp_path / "slam.json") == {
        "num_units": 20,
        "pad": 0,
        "bos": 1,
        "eos": 1,
        "tokenizer": "toy",
        "tokenizer_fingerprint": "0123",
    }
    for name in ("config.json", "generation_config.json"):
        written = read_json(tmp_path / name)
        assert (written["pad_token_id"], written["bos_token_id"], written["eos_token_id"]) == (0, 1, 1)
    loaded = SpeechLM.load(tmp_path)
    assert loaded.vocabulary == VOCABULARY
    loaded.check_tokenizer("other name", "0123", tmp_path)
    with pytest.raises(MismatchError, match="encode with the model's tokenizer"):
        loaded.check_tokenizer("toy", "4567", tmp_path)


def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"slam\.json is missing"):
        SpeechLM.load(tmp_path)


@pytest.mark.parametrize(
    "damage", ["no config", "no weights", "cut weights", "no causal LM", "half the layers"]
)
def test_a_base_that_is_no_causal_lm_is_refused_in_one_line(bases, tmp_path, damage):
    base = tmp_path / "base"
    shutil.copytree(bases["llama"], base)
    weights = base / "model.safetensors"
    if damage == "no config":
        (base / "config.json").unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no causal LM":
        transformers.T5Config().save_pretrained(base)
    else:
        config = transformers.AutoConfig.from_pretrained(base)
        config.num_hidden_layers = 3
        config.save_pretrained(base)
    with pytest.raises(InputError) as caught:
        built(str(base))
    assert str(base) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_speech_lm_whose_weights_lack_a_layer_is_refused(tmp_path):
    toy_language.write_lm(tmp_path)
    config = read_json(tmp_path / "config.json")
    wider = transformers.Qwen2Config.from_dict(config | {"num_hidden_layers": 3, "layer_types": None})
    wider.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"lacks \d+ weights of a causal LM"):
        SpeechLM.load(tmp_path)


def test_without_a_base_a_small_qwen2_of_the_sizes_asked_for_is_made():
    model = toy_language.new_toy_lm(context=48)
    assert isinstance(model, transformers.Qwen2ForCausalLM)
    assert model.config.max_position_embeddings == 48
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 2)
