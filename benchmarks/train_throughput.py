"""Tokens trained a second: slam's packed loop against `transformers.Trainer` with a padding collator.

Same model, same initial weights, same documents in the same order, same batch in documents, AdamW, fp32, two
cores. The gate: on one batch both give the same loss and gradients of the same direction.
"""

import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from side_by_side import arguments, finish, interleaved

from slam.budget import TrainingConfig
from slam.model import Packed, packed, token_log_likelihoods, use_packed
from slam.stories import write_texts
from slam.training import Task, make_optimizers, step
from slam.units import Vocabulary

DOCUMENTS_A_BATCH = 16
LOSS_TOLERANCE = 1e-4  # relative, fp32
COSINE = 0.999


def documents(count: int) -> list[np.ndarray]:
    """Token documents with the lengths of the demo's corpus: stories, sentences, phrases and words.

    A text's letters stand in for its units: about 5.5 units a word, as eSpeak's speech has.
    """
    vocabulary = Vocabulary(100)
    mix = {"stories": 0.4, "sentences": 0.25, "phrases": 0.15, "words": 0.2}
    texts = [
        item.text
        for name, share in mix.items()
        for item in write_texts(name, max(1, round(share * count)), split="train", seed=0)
    ]
    order = np.random.default_rng(0).permutation(len(texts))
    return [vocabulary.document(np.frombuffer(texts[i].encode(), np.uint8) % 100) for i in order]


def model() -> transformers.PreTrainedModel:
    """A Qwen2 of 3 M parameters."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=102, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config)


def ours(lm: transformers.PreTrainedModel, batches: Sequence[list[np.ndarray]]) -> float:
    """Tokens a second of slam's own step over `batches`."""
    lm = copy.deepcopy(lm)
    use_packed(lm)
    config = TrainingConfig(budget="1 steps")
    optimizers = make_optimizers(lm, config)

    def forward(micro: Packed) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return -token_log_likelihoods(lm, micro).sum(), {}

    def endless(_: int) -> Iterator[Sequence[Packed]]:
        while True:
            yield from ([packed(batch)] for batch in batches)

    task = Task(batches=endless, loss=forward, validate=dict)
    lm.train()
    begin = time.perf_counter()
    for batch in batches:
        step(lm, optimizers, task, [packed(batch)], rate=1.0, clip=0.5)
    return sum(map(len, (d for batch in batches for d in batch))) / (time.perf_counter() - begin)


class Documents(torch.utils.data.Dataset):
    """What the padding collator takes."""

    def __init__(self, batches: Sequence[list[np.ndarray]]) -> None:
        self.rows = [{"input_ids": d.astype(np.int64).tolist()} for batch in batches for d in batch]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad to the longest, as `DataCollatorForLanguageModeling` does; padding is no target."""
    sequences = [torch.tensor(row["input_ids"]) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=0)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}


def trainer(lm: transformers.PreTrainedModel, batches: Sequence[list[np.ndarray]], folder: str) -> float:
    """Tokens a second of `transformers.Trainer` over the same documents in the same order."""
    settings = transformers.TrainingArguments(
        folder, per_device_train_batch_size=DOCUMENTS_A_BATCH, num_train_epochs=1, learning_rate=1e-3,
        max_grad_norm=0.5, optim="adamw_torch_fused", report_to=[], save_strategy="no", logging_strategy="no",
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, train_sampling_strategy="sequential",
    )  # fmt: skip
    run = transformers.Trainer(
        copy.deepcopy(lm), settings, train_dataset=Documents(batches), data_collator=collate
    )
    begin = time.perf_counter()
    run.train()
    return sum(map(len, (d for batch in batches for d in batch))) / (time.perf_counter() - begin)


def gate(lm: transformers.PreTrainedModel, batch: list[np.ndarray]) -> dict[str, Any]:
    """The same loss, and gradients of the same direction, on one batch."""
    plain, own = copy.deepcopy(lm), copy.deepcopy(lm)
    use_packed(own)
    rows = collate([{"input_ids": d.astype(np.int64).tolist()} for d in batch])
    expected = plain(**rows).loss
    expected.backward()
    micro = packed(batch)
    loss = -token_log_likelihoods(own, micro).sum() / micro.weight
    loss.backward()
    one, other = (
        torch.cat([w.grad.flatten() for w in m.parameters() if w.grad is not None]) for m in (own, plain)
    )
    difference = abs(float(loss) - float(expected)) / float(expected)
    cosine = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    return {
        "passed": difference < LOSS_TOLERANCE and cosine > COSINE,
        "loss_relative_difference": difference,
        "gradient_cosine": cosine,
    }


def main() -> None:
    options = arguments(__doc__ or "")
    transformers.logging.set_verbosity_error()
    count = 10 if options.quick else 30
    corpus = documents(DOCUMENTS_A_BATCH * count)[: DOCUMENTS_A_BATCH * count]
    batches = [corpus[i : i + DOCUMENTS_A_BATCH] for i in range(0, len(corpus), DOCUMENTS_A_BATCH)]
    lm = model()
    found_gate = gate(lm, batches[0])
    with tempfile.TemporaryDirectory() as folder:
        ours(lm, batches[:3])
        trainer(lm, batches[:3], folder)
        found = interleaved(lambda: ours(lm, batches), lambda: trainer(lm, batches, folder))
    found |= {"documents": len(corpus), "num_parameters": sum(w.numel() for w in lm.parameters())}
    finish("train_throughput", "tokens/s", found, found_gate, options.json)


if __name__ == "__main__":
    main()
