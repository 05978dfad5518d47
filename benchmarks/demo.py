"""The demo from nothing: how long it takes, what TWIST is worth beside random initialisation, what it scores.

`ours` and `baseline` are the validation losses (nats a unit) of the TWIST model and of its control from
random weights after the same unit tokens; lower is better, so `ratio` below 1 is TWIST's gain. The gate holds
the scores to what was asked of the demo. `--quick` only checks that the recipe runs and the record is whole.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import arguments, finish

from slam.recipe import load_recipe
from slam.runner import run_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "demo.toml"
QUICK = (
    "text.texts={stories = 300}",
    "speech.texts={stories = 60, words = 40}",
    "validation-speech.texts={stories = 8}",
    "preference-speech.pairs={preferences = 20}",
    "benchmark-speech.pairs={swuggy = 20, sblimp = 20, storycloze = 20, topic-storycloze = 20}",
    "units.fit_seconds=120.0",
    "text-lm.budget=20 steps",
    "random.budget=20 steps",
    "twist.budget=20 steps",
    "twist-dpo.budget=10 steps",
    "continuations.num_prompts=1",
)
# what the issue of the demo asks of the tuned model, in % (StoryCloze also: clear of 50, above the untuned)
ASKED = {"swuggy": 85.0, "sblimp": 75.0, "topic-storycloze": 90.0, "storycloze": 65.0}


def main() -> None:
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(RECIPE, folder=Path(folder), overrides=QUICK if options.quick else ())
        begin = time.perf_counter()
        runs = {step.name: run for step, run, _ in run_recipe(recipe)}
        seconds = time.perf_counter() - begin
        rows = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    losses = {name: runs[name].results["final_validation_loss"] for name in ("twist", "random")}
    found = {
        "ours": losses["twist"],
        "baseline": losses["random"],
        "ratio": losses["twist"] / losses["random"],
        "recipe_seconds": round(seconds, 1),
        "stage_seconds": {name: run.seconds for name, run in runs.items()},
        "tokens": {name: runs[name].results["tokens"] for name in ("text-lm", "random", "twist")},
        "word_errors": runs["recognizer"].results["word_errors"],  # of the recogniser, on held-out speech
        "scores": rows,
    }
    finish("demo", "nats a unit", found, gate(rows, losses, quick=options.quick), options.json)


def gate(rows: list[dict[str, Any]], losses: dict[str, float], *, quick: bool) -> dict[str, Any]:
    """What was asked for and whether it was reached, point by point."""
    scores = {(row["model"], row["benchmark"]): row for row in rows if row["metric"] == "accuracy"}
    reached = {
        f"{benchmark} >= {asked:g}": 100 * scores["twist-dpo", benchmark]["value"] >= asked
        for benchmark, asked in ASKED.items()
    }
    story, before = scores["twist-dpo", "storycloze"], scores["twist", "storycloze"]
    reached["storycloze clear of 50"] = story["low"] > 0.5
    reached["storycloze higher than before DPO"] = story["value"] > before["value"]
    reached["TWIST below random in validation loss"] = losses["twist"] < losses["random"]
    complete = len(scores) == 3 * len(ASKED)
    return {"passed": complete if quick else complete and all(reached.values()), "reached": reached}


if __name__ == "__main__":
    main()
