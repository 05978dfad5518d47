"""Two ways of doing one thing → interleaved timings, their medians and ratio, and a record in JSON."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPEATS = 5


def arguments(description: str) -> argparse.Namespace:
    """What was asked for, where a benchmark takes nothing else."""
    return options_of(description).parse_args()


def options_of(description: str) -> argparse.ArgumentParser:
    """`--json FILE` and `--quick`, which every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--quick", action="store_true", help="a smaller run of at most a minute")
    return parser


def interleaved(
    ours: Callable[[], float], baseline: Callable[[], float], repeats: int = REPEATS
) -> dict[str, Any]:
    """Call both in turn; each returns its speed (work a second). Machines drift, so pairs are compared."""
    speeds: dict[str, list[float]] = {"ours": [], "baseline": []}
    for _ in range(repeats):
        speeds["ours"].append(ours())
        speeds["baseline"].append(baseline())
    ratios = [one / other for one, other in zip(speeds["ours"], speeds["baseline"], strict=True)]
    return {
        "ours": statistics.median(speeds["ours"]),
        "baseline": statistics.median(speeds["baseline"]),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def finish(name: str, unit: str, found: dict[str, Any], gate: dict[str, Any], path: Path | None) -> None:
    """Print the record and write it; a failed gate ends with status 1, for its speeds mean nothing."""
    record = {"name": name, "unit": unit, **found, "gate": gate, "machine": machine()}
    print(json.dumps(record, indent=1))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if not gate["passed"]:
        raise SystemExit(1)


def machine() -> dict[str, Any]:
    """What the speeds were measured on."""
    import torch

    model = (
        next(
            (
                line.split(":", 1)[1].strip()
                for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
                if line.startswith("model name")
            ),
            platform.processor(),
        )
        if Path("/proc/cpuinfo").is_file()
        else platform.processor()
    )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
