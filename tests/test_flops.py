import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import reference_model
from slam.flops import peak_flops, training_flops
from tiny_families import SUPPORTED, built, random_documents, save_base

LAYERS = 2
ATTENTION_WIDTHS = {"qwen3": 64}  # heads times their width; else that of the model, 32


def counted_by_torch(run):
    with FlopCounterMode(display=False) as counter:
        run().sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [1, 7, 32])
@pytest.mark.parametrize("family", SUPPORTED)
def test_flops_of_a_document_are_those_that_torch_counts(family, length, tmp_path):
    lm = built(save_base(tmp_path, SUPPORTED[family]()))
    lm.set_attn_implementation("eager")  # two products a layer, which torch sees one by one
    (document,) = random_documents([length])
    counted = counted_by_torch(lambda: reference_model.document_logits(lm, document))
    # Eager attention makes every score and masks half of them: 2 products of 2 · width · length² forward, and
    # twice that backward. The formula has the half that is not masked.
    masked = LAYERS * 6 * ATTENTION_WIDTHS.get(family, 32) * length**2
    # not to the last one: some releases of transformers make the few rotary angles by a product as well
    assert training_flops(lm, [length]) == pytest.approx(counted - masked, rel=5e-4)


@pytest.mark.parametrize("family", ["qwen2-tied", "gpt2"])
def test_flops_of_packed_documents_are_the_sum_of_each_documents(family, tmp_path):
    lm = built(save_base(tmp_path, SUPPORTED[family]()))
    lengths = [9, 9, 1, 20]
    total = training_flops(lm, lengths)
    assert total == sum(training_flops(lm, [length]) for length in lengths)
    assert total < training_flops(lm, [sum(lengths)])  # which would attend across documents
    assert training_flops(lm, []) == 0


def test_flops_a_token_of_the_papers_model_are_those_counted_by_hand():
    config = transformers.Qwen2Config(
        vocab_size=502,
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        lm = transformers.AutoModelForCausalLM.from_config(config)
    queries_and_output, keys_and_values, mlp = 2 * 896 * 896, 2 * 896 * 128, 3 * 896 * 4864
    body = 24 * (queries_and_output + keys_and_values + mlp)
    head = 896 * 502
    assert body == pytest.approx(357.8e6, rel=1e-3)
    attention = 6 * 24 * 896 * 875
    by_hand = 6 * (body + head) + attention
    assert training_flops(lm, [875] * 3) / (875 * 3) == by_hand
    assert by_hand == pytest.approx(2.26e9, rel=0.01)


def test_the_peak_of_a_cpu_is_not_known():
    assert peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA RTX A5000", 111e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("Tesla V100-SXM2-16GB", None),
        # of the same letters, but not the same
        ("NVIDIA L40", None),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA GB200", None),
    ],
)
def test_the_peak_of_a_device_is_its_makers(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda", 0)) == peak
