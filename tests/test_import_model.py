import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import toy_language
from foreign_checkpoints import NUM_UNITS, ROPE_THETA, stock, weights_of, write_slamkit, write_stock
from slam.cli import main
from slam.errors import ConfigError, InputError
from slam.import_model import ImportModelConfig, import_model
from slam.import_units import ImportUnitsConfig, import_units
from slam.model import SpeechLM, check_built, read_about
from slam.run import read_json, write_json

# tied Qwen2 in slamkit's layout, resized, saved and run by transformers 4.48.3
GOLDEN = Path(__file__).parent / "golden" / "slamkit-transformers-4.48"
NAMED = {"tokenizer": "mhubert-25hz", "num_units": NUM_UNITS, "frame_rate": 25.0}
IDS = torch.tensor([[1, 5, 19, 2, 2, 21, 1]])


def imported(folder, out, **changes):
    settings = ({} if "tokenizer_from" in changes else NAMED) | changes
    return import_model(ImportModelConfig(model=folder, **settings), out).results


def logits(lm, ids=IDS):
    with torch.inference_mode():
        return lm.eval()(input_ids=ids).logits


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("family", ["qwen2", "qwen2-tied", "llama", "opt"])
def test_slamkit_models_say_what_their_inner_model_says(family, version, tmp_path):
    original = stock(family)
    results = imported(write_slamkit(tmp_path / "theirs", original, version), tmp_path / "ours")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(ours) is type(original)
    assert torch.equal(logits(ours), logits(original))
    assert ours.config.vocab_size == NUM_UNITS + 2
    assert (results["order"], results["num_tokens_left_out"], results["not_run"]) == ("ours", 0, [])
    loaded = SpeechLM.load(tmp_path / "ours")
    check_built(loaded.lm, loaded.vocabulary, None if family == "opt" else ROPE_THETA)
    assert loaded.training[0]["results"]["base"] == "Qwen/Qwen2.5-0.5B"


def test_a_checkpoint_that_transformers_4_48_wrote_says_what_it_said_there(tmp_path):
    imported(GOLDEN, tmp_path / "ours")
    golden = load_file(GOLDEN / "golden-logits.safetensors")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(logits(ours, golden["ids"]), golden["logits"], atol=1e-5, rtol=1e-5)


def test_a_model_in_bf16_and_several_files_is_read_whole(tmp_path):
    original = stock("qwen2")
    with torch.no_grad():
        for weight in original.parameters():
            weight.copy_(weight.bfloat16())
    folder = write_slamkit(tmp_path / "theirs", original, shards=3, dtype=torch.bfloat16)
    results = imported(folder, tmp_path / "ours")
    assert results["kept_as"] == ["bfloat16"]
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert ours.dtype == torch.float32
    assert torch.equal(logits(ours), logits(original))


@pytest.mark.parametrize("family", ["qwen2", "qwen2-tied", "opt"])
def test_another_order_of_tokens_is_mapped(family, tmp_path):
    # <s> 0, <pad> 1, </s> 2, one unused, units from 4, three to fill up
    original = stock(family, vocab_size=4 + NUM_UNITS + 3)
    folder = write_stock(
        tmp_path / "theirs", original, offset=4, pad_token_id=1, bos_token_id=0, eos_token_id=2
    )
    results = imported(folder, tmp_path / "ours")
    assert (results["layout"], results["order"], results["num_tokens_left_out"]) == ("stock", "mapped", 4)
    about = read_about(tmp_path / "ours")
    assert (about.vocabulary.pad, about.vocabulary.bos, about.vocabulary.eos) == (0, 1, 2)
    theirs = torch.tensor([1, 0, 2, *range(4, 4 + NUM_UNITS)])  # by our token
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    ids = torch.tensor([[1, 3, 22, 3, 9, 2]])
    torch.testing.assert_close(logits(ours, ids), logits(original, theirs[ids])[..., theirs])


def test_twist_without_padding_takes_a_token_that_nothing_uses(tmp_path):
    original = stock("llama", vocab_size=3 + NUM_UNITS)
    write_stock(
        tmp_path / "theirs", original, offset=3, pad_token_id=None, bos_token_id=31_999, eos_token_id=2
    )
    imported(tmp_path / "theirs", tmp_path / "ours")
    about = read_about(tmp_path / "ours")
    assert (about.vocabulary.pad, about.vocabulary.bos, about.vocabulary.eos) == (0, 1, 1)
    theirs = torch.tensor([0, 2, *range(3, 3 + NUM_UNITS)])
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(logits(ours), logits(original, theirs[IDS])[..., theirs])


def test_what_asks_for_code_is_passed_over_and_named(tmp_path, monkeypatch):
    folder = write_slamkit(
        tmp_path / "theirs",
        stock("qwen2"),
        auto_map={"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"},
        trust_remote_code=True,
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(folder)
    results = imported(folder, tmp_path / "ours")
    assert results["not_run"] == ["auto_map", "trust_remote_code", "evil.py"]
    assert not (tmp_path / "ran").exists()
    assert "auto_map" not in read_json(tmp_path / "ours" / "config.json")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickles_are_refused_unless_their_tensors_are_asked_for(tmp_path):
    original = stock("opt")
    folder = write_stock(tmp_path / "theirs", original, offset=2)
    (folder / "model.safetensors").unlink()
    torch.save(weights_of(original), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"as pickles only, which could run anything; .*read_pickles"):
        imported(folder, tmp_path / "ours")
    imported(folder, tmp_path / "ours", read_pickles=True)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "ours")), logits(original))
    torch.save(weights_of(original) | {"x": Evil(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="it was not run"):
        imported(folder, tmp_path / "again", read_pickles=True)
    assert not (tmp_path / "ran").exists()


def test_the_tokenizer_is_a_folders_or_the_one_that_imported_units_have(tmp_path):
    folder = write_slamkit(tmp_path / "theirs", stock("qwen2"))
    (tmp_path / "f.jsonl").write_text('{"file_name": "a", "units": [1, 2], "duration": [1, 1]}\n')
    units = import_units(ImportUnitsConfig(files=(tmp_path / "f.jsonl",), **NAMED), tmp_path / "units")
    imported(folder, tmp_path / "named")
    imported(folder, tmp_path / "taken", tokenizer_from=tmp_path / "units")
    imported(folder, tmp_path / "known", frame_rate=None, fingerprint="f" * 16)
    expected = units.results["tokenizer_fingerprint"]
    assert read_about(tmp_path / "named").tokenizer_fingerprint == expected
    assert read_about(tmp_path / "taken").tokenizer_fingerprint == expected
    assert read_about(tmp_path / "known").tokenizer_fingerprint == "f" * 16
    other = toy_language.write_units(tmp_path / "other", {"a": [1, 2]})
    with pytest.raises(InputError, match="has 22 tokens, units from 2; the tokenizer has 12 units"):
        imported(folder, tmp_path / "wrong", tokenizer_from=other)
    assert not (tmp_path / "wrong").exists()


INNER = {  # damage → what changes in the inner config
    "unknown inner model": {"model_type": "evil"},
    "fewer layers": {"num_hidden_layers": 1},
    "more layers": {"num_hidden_layers": 3},
    "other width": {"hidden_size": 64},
    "no rotary base": {"rope_theta": None},
}


def damaged(folder, damage):
    weights, config = folder / "model.safetensors", read_json(folder / "config.json")
    if damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-50])
    else:
        inner = config["base_config"] | INNER[damage] if damage in INNER else None
        write_json(folder / "config.json", config | {"base_config": inner})


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        ("no config", "config.json: cannot be read"),
        ("no weights", r"holds no weights \(model.safetensors is missing\)"),
        ("cut weights", "it is damaged"),
        ("no inner config", "no base is downloaded"),
        ("unknown inner model", "transformers has no model 'evil'"),
        ("fewer layers", "has strange weights, 12, the first model.layers.1"),
        ("more layers", "lacks weights, 12, the first model.layers.2"),
        ("other width", "its weights are not those of a qwen2"),
        ("no rotary base", r"says no rotary base \(rope_theta\)"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(damage, line, tmp_path):
    folder = write_slamkit(tmp_path / "theirs", stock("qwen2"))
    damaged(folder, damage)
    with pytest.raises(InputError, match=line) as caught:
        imported(folder, tmp_path / "ours")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_a_missing_shard_is_named_and_none_outside_the_folder_is_read(tmp_path):
    folder = write_slamkit(tmp_path / "theirs", stock("qwen2"), shards=3)
    lost = folder / "model-00002-of-00003.safetensors"
    lost.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InputError, match=r"model-00002-of-00003\.safetensors: is missing"):
        imported(folder, tmp_path / "ours")
    index = read_json(folder / "model.safetensors.index.json")
    places = {
        name: "../elsewhere.safetensors" if place == lost.name else place
        for name, place in index["weight_map"].items()
    }
    write_json(folder / "model.safetensors.index.json", index | {"weight_map": places})
    with pytest.raises(InputError, match="is no file of this folder"):
        imported(folder, tmp_path / "ours")


def test_frequencies_that_an_old_checkpoint_kept_are_held_against_what_was_built(tmp_path):
    original = stock("llama")
    folder = write_stock(tmp_path / "theirs", original, offset=2)
    weights = weights_of(original) | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": original.model.rotary_emb.inv_freq.clone()
    }
    save_file(weights, folder / "model.safetensors")
    imported(folder, tmp_path / "ours")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] *= 1.1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match="its rotary base 7000 did not take"):
        imported(folder, tmp_path / "again")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": None}, "one of them"),
        ({"hub_model": "a/b"}, "one of them"),
        ({"revision": "main"}, "goes with hub_model"),
        ({"num_units": None}, "num_units: the model does not say which tokenizer it speaks"),
        ({"fingerprint": "f"}, "not both"),
        ({"tokenizer_from": Path("x")}, "brings its own tokenizer, num_units, frame_rate"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes, line):
    with pytest.raises(ConfigError, match=line):
        ImportModelConfig(**{"model": Path("m")} | NAMED | changes)


def test_the_command_is_called_import_too(tmp_path, capsys):
    folder = write_slamkit(tmp_path / "theirs", stock("qwen2"))
    words = ["--tokenizer", "t", "--num-units", str(NUM_UNITS), "--frame-rate", "25"]
    main(["import", str(folder), *words, "--out", str(tmp_path / "ours")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "ours")
    shutil.rmtree(folder)
    with pytest.raises(SystemExit) as left:
        main(["import-model", "--model", str(folder), *words, "--out", str(tmp_path / "none")])
    assert left.value.code == 2
    assert json.loads((tmp_path / "ours" / "run.json").read_text())["stage"] == "import-model"
