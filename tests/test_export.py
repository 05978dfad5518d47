import re
import shutil

import gguf
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import toy_language
from foreign_checkpoints import NUM_UNITS, stock
from slam.cli import main
from slam.errors import ConfigError, InputError, MismatchError
from slam.evaluate import EvaluateConfig, evaluate
from slam.export import ExportConfig, export
from slam.exports import vllm
from slam.model import SpeechLM, read_about
from slam.run import read_json, write_json
from slam.units import Vocabulary

VOCABULARY = Vocabulary(NUM_UNITS)
IDS = torch.tensor([[1, 5, 19, 2, 2, 21, 1], [1, 3, 3, 4, 20, 9, 7]])


def speech_lm(folder, family="qwen2", **changes):
    """A folder as pretrain leaves one, and the model in it."""
    lm = stock(family, **changes)
    SpeechLM(lm, VOCABULARY, "toy", "0123456789abcdef").save(folder)
    return folder, lm


def exported(model, out, **settings):
    return export(ExportConfig(model=model, **settings), out).results


def logits(lm, ids=IDS):
    with torch.inference_mode():
        return lm.eval()(input_ids=ids).logits.float()


@pytest.mark.parametrize("to", ["transformers", "vllm"])
@pytest.mark.parametrize("family", ["qwen2-tied", "opt"])
def test_a_plain_folder_holds_the_model_its_tokenizer_and_a_card(to, family, tmp_path):
    model, lm = speech_lm(tmp_path / "lm", family)
    results = exported(model, tmp_path / "out", to=to)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again), logits(lm))
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("<u3>").input_ids == [1, 5]
    assert results["checked"]["largest_logit_difference"] == 0
    assert results["checked"]["tokens_spelled_back"] == NUM_UNITS + 1
    assert (tmp_path / "out" / "README.md").is_file()
    assert read_about(tmp_path / "out").tokenizer_fingerprint == "0123456789abcdef"


def test_bf16_is_the_nearest_of_every_weight_and_half_the_bytes(tmp_path):
    model, lm = speech_lm(tmp_path / "lm")
    whole = exported(model, tmp_path / "fp32")
    half = exported(model, tmp_path / "bf16", dtype="bf16")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "bf16", dtype="auto")
    for name, weight in lm.named_parameters():
        assert torch.equal(dict(again.named_parameters())[name], weight.bfloat16()), name
    assert 0.4 < half["weight_bytes"] / whole["weight_bytes"] < 0.6
    assert 0 < half["checked"]["largest_logit_difference"] < 0.5


def test_a_number_that_fp16_cannot_hold_is_refused(tmp_path):
    model, lm = speech_lm(tmp_path / "lm")
    with torch.no_grad():
        lm.lm_head.weight[0, 0] = 1e6
    SpeechLM(lm, VOCABULARY, "toy", "0").save(model)
    for to in ("transformers", "gguf"):
        with pytest.raises(InputError, match="holds numbers that fp16 cannot; export it in fp32 or bf16"):
            exported(model, tmp_path / to, to=to, dtype="fp16")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        ("pickle", "holds code or pickles"),
        ("auto_map", "asks for auto_map"),
        ("vocabulary", "says another vocabulary"),
        ("theta", "says two rotary bases"),
        ("end", "does not end where the model does"),
        ("layers", "is not as config.json calls for it"),
        ("architecture", "names no model that vLLM is known to have"),
    ],
)
def test_a_file_that_vllm_would_trip_over_is_named(damage, line, tmp_path):
    model, _ = speech_lm(tmp_path / "lm")
    out = tmp_path / "out"
    exported(model, out, to="vllm")
    config = read_json(out / "config.json")
    changed = {
        "auto_map": {"auto_map": {"AutoModel": "x.X"}},
        "vocabulary": {"vocab_size": 7},
        "theta": {"rope_theta": 1.0},
        "layers": {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
        "architecture": {"architectures": ["UnitLM"]},
    }
    if damage == "pickle":
        (out / "pytorch_model.bin").touch()
    elif damage == "end":
        generation = read_json(out / "generation_config.json")
        write_json(out / "generation_config.json", generation | {"eos_token_id": 2})
    else:
        write_json(out / "config.json", config | changed[damage])
    with pytest.raises(InputError, match=line):
        vllm.check(out, VOCABULARY, "fp32")


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("family", ["qwen2", "qwen2-tied", "llama"])
def test_a_gguf_file_says_the_same_model_and_its_units(family, dtype, tmp_path):
    model, lm = speech_lm(tmp_path / "lm", family)
    results = exported(model, tmp_path / "out", to="gguf", dtype=dtype)
    with torch.no_grad():
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
        for weight in lm.parameters():
            weight.copy_(weight.to(kind) if weight.ndim > 1 else weight)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    torch.testing.assert_close(logits(again), logits(lm), atol=1e-4, rtol=0)
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    embeddings = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    values = gguf.dequantize(embeddings.data, embeddings.tensor_type)
    assert np.array_equal(values.reshape(22, 32), lm.get_input_embeddings().weight.detach().numpy())
    assert any(tensor.name == "output.weight" for tensor in reader.tensors) == (family != "qwen2-tied")
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    kinds = reader.get_field("tokenizer.ggml.token_type").contents()
    assert tokens == ["<pad>", "<s>", *(f"<u{unit}>" for unit in range(NUM_UNITS))]
    assert kinds == [3, 3, *[4] * NUM_UNITS]
    special = ("padding_token_id", "bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token")
    said = [reader.get_field(f"tokenizer.ggml.{name}").contents() for name in special]
    assert said == [0, 1, 1, True, False]
    assert reader.get_field(f"{lm.config.model_type}.rope.freq_base").contents() == 7_000.0
    assert results["checked"]["weights_equal"] == len(reader.tensors)


@pytest.mark.parametrize(
    ("family", "changes", "line"),
    [
        ("opt", {}, "of a opt no GGUF is written, only of qwen2 and llama"),
        ("llama", {"attention_bias": True}, "a llama with biases"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "scaled rotary positions",
        ),
    ],
)
def test_what_a_gguf_file_cannot_say_is_refused(family, changes, line, tmp_path):
    model, _ = speech_lm(tmp_path / "lm", family, **changes)
    with pytest.raises(InputError, match=line):
        exported(model, tmp_path / "out", to="gguf")
    assert not (tmp_path / "out").exists()


def test_an_onnx_file_gives_the_same_logits_at_any_batch_and_length(tmp_path):
    model, lm = speech_lm(tmp_path / "lm")
    exported(model, tmp_path / "out", to="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    generator = torch.Generator().manual_seed(3)
    for shape in ((1, 1), (2, 9), (7, 50)):
        ids = torch.randint(0, 22, shape, generator=generator)
        found = session.run(["logits"], {"input_ids": ids.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), logits(lm, ids), atol=1e-4, rtol=0)
    padded = torch.tensor([[1, 5, 19, 0, 0], [1, 2, 3, 4, 5]])
    found = session.run(["logits"], {"input_ids": padded.numpy()})[0]
    alone = logits(lm, padded[:1, :3])
    torch.testing.assert_close(torch.from_numpy(found[:1, :3]), alone, atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="in fp32 only"):
        exported(model, tmp_path / "half", to="onnx", dtype="bf16")


def front_of(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def test_the_card_says_what_the_runs_say_and_scores_of_this_very_model(tmp_path):
    lm = toy_language.new_toy_lm()
    record = {
        "stage": "pretrain",
        "fingerprint": "f" * 16,
        "slam_version": "9.9",
        "settings": {"hub_base": "Qwen/Qwen2.5-0.5B", "learning_rate": 0.001, "budget": "1M tokens"},
        "inputs": {"shards": {"name": "librilight", "fingerprint": "a" * 16}},
        "results": {"steps": 17_625, "tokens": 1_400_000_000},
    }
    spoken = toy_language.tokenizer()
    for name in ("lm", "other"):
        SpeechLM(lm, toy_language.VOCABULARY, spoken.name, spoken.fingerprint, (record,)).save(
            tmp_path / name
        )
    pairs = toy_language.write_pairs(tmp_path / "pairs", toy_language.counting_pairs(10))
    models = {"first": tmp_path / "other", "second": tmp_path / "lm"}
    evaluate(EvaluateConfig(models=models, benchmarks=(pairs,)), tmp_path / "scores")
    exported(
        tmp_path / "lm",
        tmp_path / "out",
        scores=tmp_path / "scores",
        licence="mit",
        datasets=("slprl/sTinyStories",),
        title="A toy",
    )
    card = (tmp_path / "out" / "README.md").read_text()
    front = front_of(card)
    assert (front["license"], front["library_name"]) == ("mit", "transformers")
    assert (front["base_model"], front["datasets"]) == ("Qwen/Qwen2.5-0.5B", ["slprl/sTinyStories"])
    assert "speech-language-model" in front["tags"]
    row = next(
        row
        for row in read_json(tmp_path / "scores" / "results.json")
        if row["model"] == "second" and row["metric"] == "accuracy"
    )
    value, low, high = (100 * row[key] for key in ("value", "low", "high"))
    assert f"| counting | 10 | {value:.1f} ({low:.1f}, {high:.1f}) |" in card
    assert "both &lt;S>, the last one scored" in card
    assert card.endswith("\n")
    for said in ("# A toy\n", "| shards | librilight |", "| steps | 17,625 |", "| learning_rate | 0.001 |"):
        assert said in card
    assert str(tmp_path) not in card
    shutil.rmtree(tmp_path / "lm")
    toy_language.write_lm(tmp_path / "lm", toy_language.new_toy_lm(seed=5))
    with pytest.raises(MismatchError, match="its scores are of other models"):
        exported(tmp_path / "lm", tmp_path / "again", scores=tmp_path / "scores")


def test_a_card_says_what_nobody_said(tmp_path):
    model, _ = speech_lm(tmp_path / "lm")
    exported(model, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license" not in front_of(card)
    assert "| licence | not stated |" in card
    assert "None were given." in card


def test_a_model_of_text_is_refused(tmp_path):
    SpeechLM(stock("qwen2"), VOCABULARY, "text-words", "0").save(tmp_path / "lm")
    with pytest.raises(InputError, match="is a language model of text"):
        exported(tmp_path / "lm", tmp_path / "out")


def test_the_command_takes_the_model_as_a_plain_argument(tmp_path, capsys):
    model, _ = speech_lm(tmp_path / "lm")
    main(["export", str(model), "--to", "vllm", "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
