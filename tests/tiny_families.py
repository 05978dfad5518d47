"""Tiny random models of many families, saved by `transformers` itself: they stand for the hub's bases."""

import numpy as np
import torch
import transformers

from slam.architecture import Architecture
from slam.model import new_lm
from slam.units import Vocabulary

VOCABULARY = Vocabulary(20)
CONTEXT = 64  # the longest that every one of them allows
THETA = 500_000.0  # of the rotary bases: not the paper's, nor what a family has of itself
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
# pad_token_id lies outside the new vocabulary, as in every real text LM
TEXT = {"pad_token_id": 90, "attention_dropout": 0.1}
ROTATED = TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": THETA}}
ROTARY = {
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED, **ROTATED),
    "qwen2-tied": lambda: transformers.Qwen2Config(**GROUPED, **ROTATED, tie_word_embeddings=True),
    # heads that are wider than the model divided among them, as Qwen3-0.6B's are
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, **ROTATED, head_dim=16),
    "llama": lambda: transformers.LlamaConfig(**GROUPED, **ROTATED),
    "smollm2": lambda: transformers.LlamaConfig(**GROUPED, **ROTATED, tie_word_embeddings=True),
    # a quarter of each head turns: 4 of 16, or there would be a single frequency, which no base changes
    "pythia": lambda: transformers.GPTNeoXConfig(
        **SIZES | {"num_attention_heads": 2},
        attention_dropout=0.1,
        hidden_dropout=0.1,
        rope_parameters={"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.25},
    ),
}
TABLED = {
    "opt": lambda: transformers.OPTConfig(
        vocab_size=97,
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=64,
        max_position_embeddings=CONTEXT,
        attention_dropout=0.1,
        activation_dropout=0.1,
        layerdrop=0.2,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT
    ),
}
SUPPORTED = ROTARY | TABLED
# the heads' scores are divided by the root of their width in all of the above, but not here
SCALED = {"granite": lambda: transformers.GraniteConfig(**GROUPED, attention_multiplier=0.2)}


def save_base(folder, config, seed=3):
    """A text LM of this architecture, saved to `folder`; gives its name."""
    torch.manual_seed(seed)
    lm = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in lm.parameters():  # the usual 0.02 leaves attention all but uniform
            if weight.ndim > 1:
                weight.mul_(5)
    lm.save_pretrained(folder)
    return str(folder)


def built(
    base, *, vocabulary=VOCABULARY, initialization="twist", context=32, rope_theta=None, seed=0, **more
):
    """The speech LM that training would start from."""
    return new_lm(
        vocabulary,
        base=base,
        initialization=initialization,
        architecture=Architecture(),
        context=context,
        rope_theta=rope_theta,
        seed=seed,
        **more,
    )


def random_documents(lengths, seed=0):
    """Documents of these lengths in tokens of `VOCABULARY`, as a dataset holds them."""
    generator = np.random.default_rng(seed)
    return [generator.integers(2, VOCABULARY.size, length).astype(np.uint16) for length in lengths]
