"""Do a fit's 95 % intervals hold the coefficients of the law that its grid was simulated from?

Losses of a published law on a grid of sizes and tokens, with log-normal noise as between seeds of a training,
are fitted anew for every seed; counted is how often each coefficient's true value lies in its bootstrap
interval.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from side_by_side import machine

from slam.scaling_law import PUBLISHED, Points, ScalingLaw, fit_law

COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
NOISE = 0.003  # of log L: a few thousandths of a nat, as between seeds of one training
SEEDS = 60
RESAMPLES = 100


def simulated(law: ScalingLaw, seed: int) -> Points:
    counts = np.meshgrid(np.geomspace(5e6, 8e8, 5), np.geomspace(1e8, 8e10, 5))
    parameters, tokens = (axis.ravel() for axis in counts)
    noise = np.random.default_rng(seed).normal(0, NOISE, len(tokens))
    return Points(parameters, tokens, law.loss(parameters, tokens) * np.exp(noise))


def coverage(law: ScalingLaw, seeds: int) -> dict[str, int]:
    """In how many seeds each coefficient lies in its interval."""
    held = dict.fromkeys(COEFFICIENTS, 0)
    for seed in range(seeds):
        fit = fit_law(simulated(law, seed), resamples=RESAMPLES, seed=seed)
        for name in COEFFICIENTS:
            low, high = fit.interval(name)
            held[name] += low <= getattr(law, name) <= high
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--quick", action="store_true", help="ten seeds")
    options = parser.parse_args()
    seeds = 10 if options.quick else SEEDS
    found = {}
    for name, law in PUBLISHED.items():
        found[name] = coverage(law, seeds)
        print(name, json.dumps(found[name]), flush=True)
    least = min(row[name] / seeds for row in found.values() for name in ("alpha", "beta"))
    record = {
        "name": "scaling_law_recovery",
        "unit": "seeds whose 95 % interval holds the true coefficient",
        "noise_of_log_loss": NOISE,
        "points": 25,
        "seeds": seeds,
        "resamples": RESAMPLES,
        "laws": found,
        "least_share_of_alpha_and_beta": least,
        "gate": {"passed": least >= 0.9},
        "machine": machine(),
    }
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
