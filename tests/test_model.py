import logging
import shutil

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

import toy_language
from slam.errors import ConfigError, InputError, MismatchError
from slam.model import SpeechLM, check_built, read_about
from slam.run import read_json, write_json
from slam.unit_tokenizer import save_unit_tokenizer
from slam.units import Vocabulary
from tiny_families import GROUPED, SUPPORTED, THETA, VOCABULARY, built, save_base


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {name: save_base(root / name, SUPPORTED[name]()) for name in ("qwen2", "qwen2-tied", "llama")}


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


def test_a_saved_model_says_what_its_tokens_mean(bases, tmp_path):
    SpeechLM(built(bases["qwen2"]), VOCABULARY, "toy", "0123").save(tmp_path)
    assert read_json(tmp_path / "slam.json") == {
        "num_units": 20,
        "pad": 0,
        "bos": 1,
        "eos": 1,
        "tokenizer": "toy",
        "tokenizer_fingerprint": "0123",
        "training": [],
    }
    for name in ("config.json", "generation_config.json"):
        written = read_json(tmp_path / name)
        assert (written["pad_token_id"], written["bos_token_id"], written["eos_token_id"]) == (0, 1, 1)
    loaded = SpeechLM.load(tmp_path)
    assert loaded.vocabulary == VOCABULARY
    loaded.check_tokenizer("other name", "0123", tmp_path)
    with pytest.raises(MismatchError, match="encode with the model's tokenizer"):
        loaded.check_tokenizer("toy", "4567", tmp_path)


def test_an_older_slam_json_is_read_and_one_that_says_nothing_is_refused(tmp_path):
    toy_language.write_lm(tmp_path)
    about = read_json(tmp_path / "slam.json")
    del about["training"]
    write_json(tmp_path / "slam.json", about)
    assert read_about(tmp_path).training == ()
    for damage in ({"num_units": 12}, ["a"]):
        write_json(tmp_path / "slam.json", damage)
        with pytest.raises(InputError, match="does not describe a speech LM"):
            read_about(tmp_path)


@pytest.mark.parametrize("family", SUPPORTED)
def test_units_are_spelled_by_stock_transformers_whatever_the_family(family, bases, tmp_path):
    base = bases.get(family) or save_base(tmp_path / "base", SUPPORTED[family]())
    SpeechLM(built(base), VOCABULARY, "toy", "0123").save(tmp_path)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 1)
    assert (len(tokenizer), lm.config.vocab_size) == (VOCABULARY.size, VOCABULARY.size)
    spelled = "".join(f"<u{unit}>" for unit in range(20))
    assert tokenizer(spelled).input_ids == [1, *range(2, 22)]
    assert tokenizer(spelled, add_special_tokens=False).input_ids == list(range(2, 22))
    assert tokenizer("<u3> <u17>").input_ids == [1, 5, 19]
    assert tokenizer.decode([1, 5, 19, 1], skip_special_tokens=True) == "<u3><u17>"
    batch = tokenizer(["<u3><u17>", "<u4>"], padding=True, return_tensors="pt")
    said = lm.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    alone = lm.generate(**tokenizer("<u4>", return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert said[1, 1 : 1 + alone.shape[1]].tolist() == alone[0].tolist()


def test_a_beginning_that_is_not_the_end_has_a_name_of_its_own(tmp_path):
    save_unit_tokenizer(tmp_path, Vocabulary(3, pad=0, bos=2, eos=1))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, config=Qwen2Config())
    assert tokenizer("<u0></s>").input_ids == [2, 3, 1]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 2, 1)


def test_the_rotary_base_stands_where_either_generation_of_transformers_looks(bases, tmp_path):
    SpeechLM(built(bases["llama"], rope_theta=7_000.0), VOCABULARY, "toy", "0").save(tmp_path)
    config = read_json(tmp_path / "config.json")
    assert (config["rope_theta"], config["rope_parameters"]["rope_theta"]) == (7_000.0, 7_000.0)
    assert "rope_scaling" not in config
    check_built(SpeechLM.load(tmp_path).lm, VOCABULARY, 7_000.0)


@pytest.mark.parametrize("family", ["scaled llama", "pythia"])
def test_more_than_a_rotary_base_is_stated_twice_and_read_back_once(family, tmp_path):
    scaling = {"rope_type": "linear", "factor": 2.0}
    config = (
        SUPPORTED["pythia"]()
        if family == "pythia"
        else transformers.LlamaConfig(**GROUPED, rope_parameters=scaling | {"rope_theta": 500.0})
    )
    lm = built(save_base(tmp_path / "base", config))
    SpeechLM(lm, VOCABULARY, "toy", "0").save(tmp_path / "lm")
    written = read_json(tmp_path / "lm" / "config.json")
    if family == "pythia":  # as transformers 4 wrote GPT-NeoX
        assert (written["rotary_pct"], written["rotary_emb_base"]) == (0.25, THETA)
    else:
        assert (written["rope_theta"], written["rope_scaling"]) == (500.0, scaling)
    again = SpeechLM.load(tmp_path / "lm").lm
    found, expected = ([b for n, b in one.named_buffers() if n.endswith("inv_freq")] for one in (again, lm))
    assert expected
    assert expected
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_weights_gathered_from_elsewhere_are_saved_in_place_of_the_models(tmp_path):
    model = toy_language.new_toy_lm()
    gathered = {name: weight.detach() + 1 for name, weight in model.named_parameters()}
    SpeechLM(model, toy_language.VOCABULARY, "toy", "0").save(tmp_path, dict(gathered))
    for name, weight in SpeechLM.load(tmp_path).lm.named_parameters():
        assert torch.equal(weight, gathered[name]), name


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before_it(tmp_path, monkeypatch):
    toy_language.write_lm(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = toy_language.new_toy_lm(seed=1)

    def fill_the_disk(folder, **_):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(model, "save_pretrained", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        toy_language.write_lm(tmp_path, model)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


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


def test_a_hub_that_is_tried_again_says_nothing_of_it():
    """Else the one line of what fails in the end would stand below a dozen lines of retries."""
    assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
