"""Small models of the real architectures that write or read text: random weights, tokenizers fitted here."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

TEXTS = [
    "Once upon a time there was a little girl who went to the wood.",
    "The dog ran home, and the girl was happy. The end!",
    "She saw a red bird in the tall tree by the lake.",
]
_WHISPER_TOKENS = [
    "<|startoftranscript|>",
    *("<|en|>", "<|de|>"),
    *(
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ),
    *(f"<|{0.02 * step:.2f}|>" for step in range(1501)),
]


def byte_level_bpe(special):
    """A tokenizer as GPT-2's, fitted on `TEXTS`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def save_llama(folder, *, begins=True, context=64, seed=0):
    """A Llama whose tokenizer puts a beginning of text before each text, as the published ones do."""
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    tokenizer = byte_level_bpe(special)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{special[0]} $A", special_tokens=[(special[0], 0)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1]
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=1,
    )
    lm = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.mul_(6 if weight.ndim > 1 else 1)  # so that some tokens are much likelier than others
    lm.save_pretrained(folder)
    return folder


def save_whisper(folder, *, seed=0, longest=12):
    """A multilingual Whisper that hears 30 s, and says at most `longest` tokens."""
    text = byte_level_bpe(["<|endoftext|>"])
    vocabulary = text.get_vocab()
    tokens = {name: len(vocabulary) + number for number, name in enumerate(_WHISPER_TOKENS)}
    merges = [tuple(pair) for pair in json.loads(text.to_str())["model"]["merges"]]
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": _WHISPER_TOKENS[:9]})
    tokenizer.add_tokens(_WHISPER_TOKENS[9:])
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    end, start = vocabulary["<|endoftext|>"], tokens["<|startoftranscript|>"]
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(vocabulary) + len(tokens),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            decoder_start_token_id=start,
        )
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        max_length=longest,
        is_multilingual=True,
        lang_to_id={name: tokens[name] for name in ("<|en|>", "<|de|>")},
        task_to_id={name: tokens[f"<|{name}|>"] for name in ("translate", "transcribe")},
        no_timestamps_token_id=tokens["<|notimestamps|>"],
        suppress_tokens=list(tokens.values()),  # most of what it could say would else be times
        begin_suppress_tokens=[end],
        return_timestamps=False,
    )
    model.save_pretrained(folder)
    return folder
