"""Tokens trained a second: slam's loop against two ways of `transformers`, side by side in one process.

(a) ours: `slam pretrain`'s own update.
(b) `transformers.Trainer` with a padding collator.
(c) the reference's way: documents flattened with position ids, weights, gradients and moments in bf16, 8
    documents a micro-batch, the loss read (`.item()`) after each. On CUDA its attention is the same kernel
    of variable lengths as ours, as flash-attn's package is not needed here; nothing of it is compiled.

Same shapes, initial weights and documents; AdamW. On the CPU a model of 3 M parameters in fp32 and the
demo's documents; on CUDA the paper's 358 M in bf16 over fp32 masters, context 1024, documents of 620 tokens
on average.
The gate: one fixed batch gives the loss of plain `transformers` in fp32 within 1e-4 (1e-2 in bf16) and
gradients of its direction (cosine > 0.999).
"""

import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from side_by_side import REPEATS, arguments, finish
from transformers import DataCollatorWithFlattening

from slam.devices import best_device
from slam.flops import peak_flops, training_flops
from slam.packing import use_packed
from slam.pretrain import PretrainConfig, next_token_task
from slam.shards import TokenShards
from slam.stories import write_texts
from slam.training import METRICS_FILE, State
from slam.training.engine import ready
from slam.training.log import Log
from slam.training.loop import Training
from slam.training.signals import Stop
from slam.units import Vocabulary

CUDA = best_device().type == "cuda"
DOCUMENTS = 8 if CUDA else int(os.environ.get("DOCUMENTS", "16"))
"""In a micro-batch of (b) and (c); ours has as many tokens as fit. The more, the more padding (b) carries."""
ACCUMULATION = 16 if CUDA else 1
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}  # relative
COSINE = 0.999
MFU = "(6 · matrix weights · tokens + 6 · layers · width · Σ length²) / seconds / peak bf16 FLOP/s"
HOUR = "1.4e9 tokens · share of the reference's tokens needed (tokens_to_loss) / tokens a second / 60"
ASSUMED_SPEED = 0.5 * 989e12 / 2.26e9  # tokens/s of the paper's 358 M model
RECORDS = Path(__file__).with_name("records")


def shards(count: int) -> TokenShards:
    """On the CPU the demo's stories, sentences, phrases and words; on CUDA lengths like LibriLight's chunks.

    A text's letters stand in for its units: about 5.5 units a word, as eSpeak's speech has.
    """
    generator = np.random.default_rng(0)
    if CUDA:
        vocabulary = Vocabulary(500)
        lengths = np.minimum(generator.lognormal(6.45, 0.75, count).astype(int) + 8, 1022)
        documents = [vocabulary.document(generator.integers(500, size=length)) for length in lengths]
    else:
        vocabulary = Vocabulary(100)
        mix = {"stories": 0.4, "sentences": 0.25, "phrases": 0.15, "words": 0.2}
        texts = [
            item.text
            for name, share in mix.items()
            for item in write_texts(name, max(1, round(share * count)), split="train", seed=0)
        ][:count]
        documents = [
            vocabulary.document(np.frombuffer(texts[i].encode(), np.uint8) % 100)
            for i in generator.permutation(len(texts))
        ]
    ends = np.cumsum([len(document) for document in documents])
    return TokenShards(np.concatenate(documents).astype(np.uint16), ends, vocabulary, "letters", "0" * 16)


def model(vocabulary: Vocabulary) -> transformers.PreTrainedModel:
    """A Qwen2 of 3 M parameters, or of Qwen2.5-0.5B's shape on CUDA, under the vocabulary."""
    torch.manual_seed(0)
    sizes: dict[str, int] = (
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
         "num_key_value_heads": 2}
        if CUDA
        else {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4,
              "num_key_value_heads": 4}
    )  # fmt: skip
    config = transformers.Qwen2Config(
        vocab_size=vocabulary.size, max_position_embeddings=1024, tie_word_embeddings=True, **sizes
    )
    return transformers.Qwen2ForCausalLM(config).to(best_device())


class Ours:
    """slam's update, on batches of as many documents as the others take."""

    def __init__(self, lm: transformers.PreTrainedModel, data: TokenShards, folder: Path) -> None:
        self.lm = copy.deepcopy(lm)
        use_packed(self.lm)
        batch_tokens = round(DOCUMENTS * ACCUMULATION * float(data.lengths.mean()))
        config = PretrainConfig(
            shards=folder, budget="1000000 steps", context=1024, batch_tokens=batch_tokens,
            micro_batch_tokens=min(batch_tokens, 16_384), on_spike="skip", optimizer="adamw",
        )  # fmt: skip
        self.training = Training(
            self.lm, config, next_token_task(self.lm, data, data, config), folder, Stop()
        )
        (folder / METRICS_FILE).unlink(missing_ok=True)
        self.training.log = Log(folder, State(), peak_flops=None, wandb=None).__enter__()
        self.training.warm_up()
        self.batches = self.training.task.order.starting_at(0)
        self.updates = max(1, round(len(data) / (DOCUMENTS * ACCUMULATION)))

    def __call__(self) -> float:
        """Tokens a second over about one pass of the data."""
        before, begin = self.training.state.tokens, time.perf_counter()
        for _ in range(self.updates):
            self.training.update(next(self.batches), 0.5)
        synchronize()
        return (self.training.state.tokens - before) / (time.perf_counter() - begin)


class Rows(torch.utils.data.Dataset):
    """What the collators take."""

    def __init__(self, data: TokenShards) -> None:
        self.rows = [{"input_ids": data[n].astype(np.int64).tolist()} for n in range(len(data))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def pad(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad to the longest, as `DataCollatorForLanguageModeling` does; padding is no target."""
    sequences = [torch.tensor(row["input_ids"]) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=0)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}


class Padded:
    """(b) `transformers.Trainer` over the same documents."""

    def __init__(self, lm: transformers.PreTrainedModel, data: TokenShards, folder: Path) -> None:
        self.lm, self.rows, self.folder, self.tokens = copy.deepcopy(lm), Rows(data), folder, len(data.tokens)

    def __call__(self) -> float:
        """Tokens a second over one pass of the data."""
        settings = transformers.TrainingArguments(
            str(self.folder), per_device_train_batch_size=DOCUMENTS, gradient_accumulation_steps=ACCUMULATION,
            num_train_epochs=1, learning_rate=1e-3, max_grad_norm=0.5, optim="adamw_torch_fused",
            report_to=[], save_strategy="no", logging_strategy="no", use_cpu=not CUDA, bf16=CUDA,
            disable_tqdm=True, dataloader_pin_memory=CUDA, train_sampling_strategy="sequential",
        )  # fmt: skip
        run = transformers.Trainer(self.lm, settings, train_dataset=self.rows, data_collator=pad)
        begin = time.perf_counter()
        run.train()
        synchronize()
        return self.tokens / (time.perf_counter() - begin)


class Flattened:
    """(c) the reference's way: flattened micro-batches in pure bf16, the loss read after each."""

    def __init__(self, lm: transformers.PreTrainedModel, data: TokenShards) -> None:
        self.lm = copy.deepcopy(lm).to(torch.bfloat16)
        if CUDA:
            use_packed(self.lm)
        else:
            self.lm.set_attn_implementation("sdpa")
        self.rows, self.tokens = Rows(data), len(data.tokens)
        self.collate = DataCollatorWithFlattening(return_tensors="pt")
        self.optimizer = torch.optim.AdamW(self.lm.parameters(), lr=1e-3, weight_decay=0.0, fused=True)

    def __call__(self) -> float:
        """Tokens a second over one pass of the data."""
        begin = time.perf_counter()
        starts = range(0, len(self.rows), DOCUMENTS)
        for number, start in enumerate(starts, 1):
            batch = self.collate([self.rows[n] for n in range(start, min(start + DOCUMENTS, len(self.rows)))])
            batch = {key: value.to(best_device()) for key, value in batch.items() if torch.is_tensor(value)}
            about = {}
            if CUDA:  # where documents start, found on the device as transformers finds it for flash-attn
                firsts = (batch["position_ids"][0] == 0).nonzero()[:, 0].to(torch.int32)
                end = torch.tensor([batch["input_ids"].shape[1]], dtype=torch.int32, device=firsts.device)
                about = {"document_starts": torch.cat([firsts, end])}
                about["longest_document"] = int(about["document_starts"].diff().max())
            loss = self.lm(**batch, **about).loss / ACCUMULATION
            loss.backward()
            loss.item()
            if number % ACCUMULATION == 0 or number == len(starts):
                torch.nn.utils.clip_grad_norm_(self.lm.parameters(), 0.5)
                self.optimizer.step()
                self.optimizer.zero_grad()
        synchronize()
        return self.tokens / (time.perf_counter() - begin)


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def gate(lm: transformers.PreTrainedModel, data: TokenShards, folder: Path) -> dict[str, Any]:
    """One fixed batch: slam's loss and gradients against plain `transformers`, padded, in fp32."""
    plain, own = copy.deepcopy(lm), copy.deepcopy(lm)
    items = np.arange(min(16, len(data)))
    expected = plain(
        **{k: v.to(best_device()) for k, v in pad([Rows(data)[int(n)] for n in items]).items()}
    ).loss
    expected.backward()
    use_packed(own)
    config = PretrainConfig(shards=folder, budget="10 steps", context=1024, micro_batch_tokens=16_384)
    engine = ready(own, config, next_token_task(own, data, data, config))
    weight = int((data.lengths[items] - 1).sum())
    found = float(engine.gradients(engine.micro_batches(items), weight)["loss"])
    loss = float(expected.detach())
    one, other = (
        torch.cat([w.grad.double().flatten() for w in m.parameters() if w.grad is not None])
        for m in (own, plain)
    )
    difference = abs(found - loss) / loss
    cosine = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    precision = "bf16" if CUDA else "fp32"
    return {
        "passed": difference < LOSS_TOLERANCE[precision] and cosine > COSINE,
        "precision": precision,
        "loss_relative_difference": difference,
        "gradient_cosine": cosine,
    }


def busy_share(work: Any) -> float | None:
    """The share of the time in which the GPU computes, over one call of `work`."""
    if not CUDA:
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        begin = time.perf_counter()
        work()
        wall = time.perf_counter() - begin
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / wall


def newest_share() -> float | None:
    """The share of the reference's tokens that the newest record of `tokens_to_loss` found."""
    found = sorted(RECORDS.glob("*tokens-to-loss*/*.json"))
    return float(json.loads(found[-1].read_text(encoding="utf-8"))["share"]) if found else None


def main() -> None:
    options = arguments(__doc__ or "")
    transformers.logging.set_verbosity_error()
    count = (
        (DOCUMENTS * ACCUMULATION * (2 if options.quick else 4)) if CUDA else (160 if options.quick else 480)
    )
    data = shards(count)
    lm = model(data.vocabulary)
    flops_per_token = training_flops(lm, data.lengths.tolist()) / len(data.tokens)
    peak = peak_flops(best_device())
    with tempfile.TemporaryDirectory() as folder:
        found_gate = gate(lm, data, Path(folder))
        ways = {
            "ours": Ours(lm, data, Path(folder)),
            "padded": Padded(lm, data, Path(folder)),
            "flattened": Flattened(lm, data),
        }
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        memory: dict[str, float] = {}
        for repeat in range(REPEATS + 1):
            for name, way in ways.items():
                if CUDA:
                    torch.cuda.reset_peak_memory_stats()
                speed = way()
                if repeat:  # the first warms up
                    speeds[name].append(speed)
                if CUDA:
                    memory[name] = torch.cuda.max_memory_allocated() / 2**30
        busy = {name: busy_share(way) for name, way in ways.items()}
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = {
        name: [round(a / b, 3) for a, b in zip(speeds["ours"], speeds[name], strict=True)]
        for name in ("padded", "flattened")
    }
    share = newest_share()
    found: dict[str, Any] = {
        "tokens_per_second": medians,
        "ratio_to_padded": statistics.median(ratios["padded"]),
        "ratio_to_flattened": statistics.median(ratios["flattened"]),
        "ratios": ratios,
        "num_parameters": sum(weight.numel() for weight in lm.parameters()),
        "flop_per_token": flops_per_token,
        "documents": len(data),
        "documents_in_a_batch": DOCUMENTS,
        "mean_document_tokens": float(data.lengths.mean()),
    }
    if peak is not None:
        found["mfu"] = {name: flops_per_token * speed / peak for name, speed in medians.items()}
        found["mfu_formula"] = MFU
        found["peak_flops"] = peak
        found["peak_memory_gib"] = memory
        found["gpu_busy_share"] = busy
    if share is not None:
        found["share_of_reference_tokens"] = share
        found["slam_hour_formula"] = HOUR
        speed = medians["ours"] if CUDA else ASSUMED_SPEED
        found["slam_hour_minutes"] = 1.4e9 * share / speed / 60
        found["slam_hour_speed"] = f"{speed:,.0f} tokens/s, " + (
            "measured"
            if CUDA
            else "assumed (50 % of an H200's 989 TFLOP/s at 2.26 GFLOP a token), not measured"
        )
    finish("train_throughput", "tokens/s", found, found_gate, options.json)


if __name__ == "__main__":
    main()
