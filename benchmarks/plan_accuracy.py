"""What `slam plan` says of speed and memory, against what the recipe that it writes then reaches.

Each pair is a plan of one base (measured in a process of its own, as always) and a run of the recipe that
the plan wrote, by `slam run`, for as long as the budget says. On the CPU the demo's sizes and documents; on
CUDA the paper's 358 M in bf16, with documents of 620 tokens on average and random weights in the place of
Qwen2.5's.

`ratio` is planned ÷ reached, the median over the pairs; `memory_mib` likewise (of the process on a CPU, of
the device on CUDA). Asked: both within 10 %. The gate: the run trained the model and micro-batch that were
planned for.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from side_by_side import REPEATS, finish, interleaved, options_of
from train_throughput import CUDA, shards

from slam.bases import base_config, with_vocabulary
from slam.plan import PlanSettings, make_plan
from slam.plan_page import recipe_text
from slam.recipe import load_recipe
from slam.run import read_run
from slam.shards import TokenShards, describe, write_split

BASE = "Qwen/Qwen2.5-0.5B" if CUDA else "qwen2 192 x 4"
WITHIN = 0.1


def write_shards(folder: Path, data: TokenShards) -> Path:
    """What the plan and the run are given, a twentieth of it to validate on."""
    cut = len(data.ends) * 19 // 20
    end = int(data.ends[cut - 1])
    write_split(folder, "train", data.tokens[:end], data.ends[:cut])
    write_split(folder, "validation", data.tokens[end:], data.ends[cut:] - end)
    describe(folder, vocabulary=data.vocabulary, tokenizer="letters", fingerprint="0" * 16, counts={})
    return folder


class Pairs:
    """Plans and runs by turns."""

    def __init__(self, folder: Path, budget: str) -> None:
        self.folder = folder
        self.data = write_shards(folder / "shards", shards(2000 if CUDA else 4000))
        self.settings = PlanSettings(
            budget=budget,
            data=(self.data,),
            bases=(BASE,),
            batch_tokens=131_072 if CUDA else 1024,
            micro_batch_tokens=(8192 if CUDA else 1024,),
        )
        self.memory: dict[str, list[float]] = {"planned": [], "reached": []}
        self.same: list[bool] = []

    def planned(self) -> float:
        """Tokens a second that the plan measures; its recipe is written."""
        plan = make_plan(self.settings)
        row = plan.best
        self.recipe = self.folder / f"plan-{len(self.same)}.toml"
        text = recipe_text(plan, self.recipe.stem)
        if CUDA:  # nothing is downloaded: weights change no speed
            config = with_vocabulary(base_config(BASE), 502)
            config.save_pretrained(self.folder / "base")
            text = text.replace(
                f'hub_base = "{BASE}"', f'base = "{self.folder / "base"}"\ninitialization = "random"'
            )
        self.recipe.write_text(text)
        self.memory["planned"].append(row.memory or 0.0)
        self.parameters, self.row = row.parameters, row
        assert row.tokens_per_second is not None
        return row.tokens_per_second

    def reached(self) -> float:
        """Tokens a second that the run of that recipe reaches over its budget."""
        out = self.folder / self.recipe.stem
        command = [sys.executable, "-m", "slam", "run", str(self.recipe), "--folder", str(out)]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own command
        run = read_run(out / "lm")
        assert run is not None
        config = load_recipe(self.recipe, folder=out).steps[-1].config
        self.same.append(
            run.results["num_parameters"] == self.parameters
            and config.micro_batch_tokens == self.row.micro_batch_tokens
        )
        self.memory["reached"].append(
            float(run.results.get("peak_device_memory_bytes", run.peak_memory_bytes))
        )
        return float(run.results["tokens_per_second"])


def main() -> None:
    parser = options_of(__doc__ or "")
    options = parser.parse_args()
    budget, repeats = ("20s", 1) if options.quick else ("30s", REPEATS)
    with tempfile.TemporaryDirectory() as folder:
        pairs = Pairs(Path(folder), budget)
        found: dict[str, Any] = interleaved(pairs.planned, pairs.reached, repeats)
    ratios = [a / b for a, b in zip(pairs.memory["planned"], pairs.memory["reached"], strict=True)]
    memory = {name: round(median(values) / 2**20, 1) for name, values in pairs.memory.items()}
    found["memory_mib"] = memory | {"ratio": median(ratios), "ratios": [round(ratio, 3) for ratio in ratios]}
    found["within_10_percent"] = {
        "speed": abs(found["ratio"] - 1) <= WITHIN,
        "memory": abs(median(ratios) - 1) <= WITHIN,
    }
    found["model"] = {"base": BASE, "parameters": pairs.parameters, "budget": budget}
    gate = {"passed": all(pairs.same), "what": "the run has the planned parameters and micro-batch"}
    finish("plan-accuracy", "tokens a second", found, gate, options.json)


if __name__ == "__main__":
    main()
