"""Tokens to the reference recipe's validation loss, and what each idea is worth: two sizes, three seeds.

The reference: weights, gradients and moments in bf16, AdamW at 1e-3 with cosine to 5e-5 and 1 % warm-up,
gradient norm clipped at 0.5 (the paper's Table 4), units on the first rows of the text's embeddings. Because
these models are far smaller than the paper's, the reference also runs at 3e-3 and 6e-3, and its *best* rate
counts.
Every arm sees the same documents in the same order from the same text LM; validation is in fp32 for all.
`ours` trains to the end of a smaller budget, its learning rate decayed, so each share of the reference's
tokens is a run of its own.

Finished runs are kept in `--work` and not made again.
"""

import argparse
import itertools
import json
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import machine

from slam.budget import learning_rate_share
from slam.model import new_lm
from slam.packing import log_likelihoods, packed, token_log_likelihoods, use_packed
from slam.pretrain import PretrainConfig, pretrain
from slam.recipe import load_recipe
from slam.runner import run_recipe
from slam.shards import Batches, open_shards

SIZES = ("small", "large")
SEEDS = (0, 1, 2)
TOKENS = 500_000
SHARES = (0.35, 0.5, 0.65)  # of the reference's tokens
ASKED, AIM = 0.65, 0.5


def settings(work: Path, size: str, seed: int) -> PretrainConfig:
    """The reference's recipe in fp32, scaled to these sizes."""
    return PretrainConfig(
        shards=work / "tokens",
        base=work / f"text-lm-{size}",
        embeddings="rows",
        optimizer="adamw",
        schedule="cosine",
        floor=0.05,
        context=512,
        budget=f"{TOKENS} tokens",
        batch_tokens=1024,
        validations=1,
        seed=seed,
        checkpoint_seconds=1e6,
    )


def reference(config: PretrainConfig) -> float:
    """Pure bf16, as the reference trains: what an update rounds away is lost."""
    training = open_shards(config.shards, "train").chunked(config.context)
    held_out = open_shards(config.shards, "validation").chunked(config.context)
    lm = new_lm(
        training.vocabulary, base=str(config.base), initialization="twist", embeddings="rows",
        architecture=config.architecture, context=config.context, rope_theta=None, seed=config.seed,
    )  # fmt: skip
    use_packed(lm)
    lm.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(lm.parameters(), betas=config.betas, weight_decay=0.0)
    spent = 0
    lm.train()
    for numbers in Batches(training.lengths, config.batch_tokens, config.seed):
        if spent >= TOKENS:
            break
        rate = learning_rate_share("cosine", spent / TOKENS, warmup=0.01, floor=0.05)
        row = packed([training[int(number)] for number in numbers])
        loss = -token_log_likelihoods(lm, row).sum() / row.weight
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), config.clip)
        optimizer.param_groups[0]["lr"] = rate * config.learning_rate
        optimizer.step()
        optimizer.zero_grad()
        spent += row.num_tokens
    lm.to(torch.float32)
    sums, counts = log_likelihoods(lm, [held_out[n] for n in range(len(held_out))])
    return float(-sums.sum() / counts.sum())


def stage(**changes: Any) -> Callable[[PretrainConfig, Path], float]:
    """`slam pretrain` with some settings changed."""

    def run(config: PretrainConfig, out: Path) -> float:
        return float(pretrain(replace(config, **changes), out).results["final_validation_loss"])

    return run


MUON = {"optimizer": "muon", "muon_learning_rate": 1e-2, "learning_rate": 5e-3}
OURS = MUON | {"embeddings": "moments", "schedule": "linear", "floor": 0.0, "clip": 1.0}

REFERENCES = {"reference 1e-3": 1e-3, "reference 3e-3": 3e-3, "reference 6e-3": 6e-3}


def reference_at(rate: float) -> Callable[[PretrainConfig, Path], float]:
    """The reference at a peak learning rate."""
    return lambda config, _: reference(replace(config, learning_rate=rate))


ARMS: dict[str, Callable[[PretrainConfig, Path], float]] = {
    **{name: reference_at(rate) for name, rate in REFERENCES.items()},
    "fp32 masters 1e-3": stage(),
    "fp32 masters 3e-3": stage(learning_rate=3e-3),
    "… moment-matched embeddings": stage(learning_rate=3e-3, embeddings="moments"),
    "… embeddings first": stage(learning_rate=3e-3, embeddings="moments", embeddings_first=0.05),
    "… linear to zero": stage(learning_rate=3e-3, embeddings="moments", schedule="linear", floor=0.0),
    "… WSD": stage(learning_rate=3e-3, embeddings="moments", schedule="wsd", floor=0.0),
    "Muon, cosine": stage(**MUON | {"embeddings": "moments"}),
    "Muon 2e-2, cosine": stage(**MUON | {"embeddings": "moments", "muon_learning_rate": 2e-2}),
    "Muon, WSD": stage(**OURS | {"schedule": "wsd"}),
    "ours": stage(**OURS),
} | {
    f"ours, {share:.2f} of the tokens": stage(**OURS | {"budget": f"{round(share * TOKENS)} tokens"})
    for share in SHARES
}


def measure(work: Path, seeds: tuple[int, ...]) -> dict[str, dict[str, list[float]]]:
    """Size → arm → validation loss by seed; what is in the log already is not run again."""
    log = work / "losses.jsonl"
    done = {
        (row["size"], row["arm"], row["seed"]): row["loss"]
        for row in map(json.loads, log.read_text().splitlines() if log.is_file() else ())
    }
    for seed, arm, size in itertools.product(seeds, ARMS, SIZES):
        if (size, arm, seed) in done:
            continue
        out = work / "runs" / f"{size}-{seed}-{re.sub(r'[^0-9A-Za-z]+', '-', arm)}"
        done[size, arm, seed] = ARMS[arm](settings(work, size, seed), out)
        with log.open("a", encoding="utf-8") as handle:
            row = {"size": size, "arm": arm, "seed": seed, "loss": done[size, arm, seed]}
            handle.write(json.dumps(row) + "\n")
        print(f"{size:6} seed {seed} {arm:32} {done[size, arm, seed]:.4f}", flush=True)
    return {size: {arm: [done[size, arm, seed] for seed in seeds] for arm in ARMS} for size in SIZES}


def share_needed(losses: dict[str, list[float]], seed: int) -> float:
    """The share of the reference's tokens at which ours reaches its loss, between shares on a log scale."""
    wanted = min(losses[name][seed] for name in REFERENCES)
    points = [(share, losses[f"ours, {share:.2f} of the tokens"][seed]) for share in SHARES]
    points.append((1.0, losses["ours"][seed]))
    if points[0][1] <= wanted:
        return points[0][0]  # or fewer: no smaller share was tried
    for (less, above), (more, below) in itertools.pairwise(points):
        if below <= wanted:
            part = (above - wanted) / (above - below)
            return math.exp(math.log(less) + part * (math.log(more) - math.log(less)))
    return math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("work/tokens-to-loss"))
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--quick", action="store_true", help="one seed")
    options = parser.parse_args()
    run_recipe(load_recipe(Path(__file__).with_suffix(".toml"), folder=options.work), 2)
    seeds = SEEDS[:1] if options.quick else SEEDS
    losses = measure(options.work, seeds)
    needed = {size: [share_needed(losses[size], seed) for seed in range(len(seeds))] for size in SIZES}
    print(f"\n{'validation loss, nats a unit':34}" + "".join(f"{size:>20}" for size in SIZES))
    for arm in ARMS:
        cells = (losses[size][arm] for size in SIZES)
        print(f"{arm:34}" + "".join(f"{np.mean(cell):12.4f} ± {np.std(cell):.4f}" for cell in cells))
    worst = max(statistics.fmean(needed[size]) for size in SIZES)
    found = {
        "name": "tokens_to_loss",
        "unit": "share of the reference's tokens at which ours reaches the reference's loss",
        "share": worst,
        "by_size_and_seed": needed,
        "asked": ASKED,
        "aim": AIM,
        "tokens": TOKENS,
        "losses": losses,
        "gate": {"passed": worst <= ASKED},
        "machine": machine(),
    }
    print(json.dumps({key: found[key] for key in ("share", "by_size_and_seed", "gate")}, indent=1))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
