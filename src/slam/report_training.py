"""Finished trainings → what the report says of them: curves, TWIST's margin, tuning before and after."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam.plots import figure, svg
from slam.run import Run, read_json_lines

_METRICS_FILE = "metrics.jsonl"
_COLOURS = ("#8a8f98", "#2b6cb0", "#c05621", "#2f855a", "#6b46c1")
_HALF = (5.2, 3.6)  # inches of a plot beside which another one stands
_CHANCE = 0.5


@dataclass(frozen=True)
class Named:
    """A finished run, by the name of its step."""

    name: str
    folder: Path
    run: Run


def of_stage(runs: Sequence[Named], name: str) -> list[Named]:
    """The runs of one stage."""
    return [item for item in runs if item.run.stage == name]


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, by its place."""
    return {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}


def curves(runs: Sequence[Named], models: Sequence[str]) -> list[tuple[str, list[Any]]]:
    """Plots for each set of trainings on the same data, with their caption: figures over tokens.

    Of a pre-training the loss; of a preference tuning also the held-out preference accuracy. Models that are
    scored keep the colour that they have among the scores.
    """
    groups: dict[tuple[str, str], list[Named]] = {}
    for item in runs:
        if item.run.stage in ("pretrain", "dpo"):
            data = item.run.inputs.get("shards") or item.run.inputs["pairs"]
            groups.setdefault((item.run.stage, data), []).append(item)
    plots = []
    for (stage, _), members in groups.items():
        items = sorted(members, key=lambda item: item.name)
        drawn = colours([item.name for item in items]) | colours(models)
        names = ", ".join(item.name for item in items)
        if stage == "pretrain":
            made = [_over_tokens(items, drawn, "loss", "nats a token")]
            caption = f"{names}: loss on held-out data (dots) and on training data (faint)"
            if watched := _watched(items):
                made += [
                    _over_tokens(items, drawn, f"accuracy_{name}", f"{name}: accuracy in %", _HALF)
                    for name in watched
                ]
                caption += "; accuracy on the benchmark pairs that were scored during training, chance dashed"
        else:
            made = [
                _over_tokens(items, drawn, "loss", "DPO loss in nats a pair", _HALF),
                _over_tokens(items, drawn, "preference_accuracy", "preference accuracy in %", _HALF),
            ]
            caption = (
                f"{names}: preference loss on held-out pairs (dots) and on training pairs (faint), and "
                "the share of held-out pairs whose better side is the likelier one"
            )
        plots.append((caption, made))
    return plots


def _watched(items: Sequence[Named]) -> list[str]:
    """The benchmarks that were scored during these trainings."""
    begin = "final_validation_accuracy_"
    keys = [key for item in items for key in item.run.results if key.startswith(begin)]
    return list(dict.fromkeys(key.removeprefix(begin) for key in keys))


def _over_tokens(
    items: Sequence[Named],
    drawn: dict[str, str],
    name: str,
    label: str,
    size: tuple[float, float] = (7.2, 3.4),
) -> Any:
    """A plot of one figure: where it was validated, and in training where it was logged there."""
    from matplotlib.ticker import EngFormatter

    drawing, axes = figure(*size)
    percent = 100 if "accuracy" in name else 1
    for item in items:
        rows = read_json_lines(item.folder / _METRICS_FILE)
        for key, look in (
            (name, {"alpha": 0.3, "linewidth": 1}),
            (f"validation_{name}", {"marker": "o", "markersize": 4, "label": item.name}),
        ):
            points = [(row["tokens"], percent * row[key]) for row in rows if key in row]
            if points:
                axes.plot(*zip(*points, strict=True), color=drawn[item.name], **look)
    if percent > 1:
        axes.axhline(percent * _CHANCE, color="#4a5568", linewidth=1, linestyle="--")
    axes.set_xlabel("tokens")
    axes.set_ylabel(label)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.legend(frameon=False)
    return svg(drawing)


def margins(runs: Sequence[Named]) -> list[dict[str, Any]]:
    """TWIST against random initialisation, where both saw the same tokens of the same data."""
    trained = [item for item in of_stage(runs, "pretrain") if item.run.inputs.get("base")]
    pairs = [
        (one, other)
        for one in trained
        for other in trained
        if one.run.config["initialization"] == "twist"
        and other.run.config["initialization"] == "random"
        and one.run.inputs["shards"] == other.run.inputs["shards"]
        and one.run.config["budget"] == other.run.config["budget"]
    ]
    return [
        {
            "twist": one.name,
            "random": other.name,
            "tokens": one.run.results["tokens"],
            "twist_loss": one.run.results["final_validation_loss"],
            "random_loss": other.run.results["final_validation_loss"],
        }
        for one, other in pairs
    ]


def tunings(runs: Sequence[Named]) -> list[dict[str, Any]]:
    """For each preference tuning what was watched, before its first update and of the model that it saved."""
    return [_tuning(item) for item in of_stage(runs, "dpo") if "before" in item.run.results]


def _tuning(item: Named) -> dict[str, Any]:
    """A tuning's table, and what must be known to read it."""
    results = item.run.results
    before, after = results["before"], results["after"]

    def accuracy(found: dict[str, Any]) -> str:
        low, high = (100 * bound for bound in found["preference_accuracy_interval"])
        return f"{100 * found['preference_accuracy']:.1f} ({low:.1f}\N{EN DASH}{high:.1f})"

    def shown(name: str, digits: int, scale: float = 1.0) -> Callable[[dict[str, Any]], str]:
        def cell(found: dict[str, Any]) -> str:
            if name not in found:
                return ""
            return f"{scale * found[name]:z.{digits}f}".replace("-", "\N{MINUS SIGN}")

        return cell

    lines: tuple[tuple[str, str, Callable[[dict[str, Any]], str]], ...] = (
        ("held-out preference accuracy", "%, 95 % interval", accuracy),
        ("held-out preference loss", "nats a pair", shown("loss", 3)),
        ("better side over the model before", "nats", shown("chosen_log_ratio", 2)),
        ("worse side over the model before", "nats", shown("rejected_log_ratio", 2)),
        ("KL to the model before", "nats a token", shown("kl", 4)),
        ("pre-training validation loss", "nats a token", shown("pretraining_loss", 3)),
        ("auto-BLEU-2 of samples", "%", shown("auto_bleu", 1, 100)),
    )
    rows = [(what, unit, cell(before), cell(after)) for what, unit, cell in lines]
    low, high = results["held_out_length_interval"]
    return {
        "name": item.name,
        "results": results,
        "rows": [row for row in rows if row[3]],
        "length_tells": not low <= _CHANCE <= high,
    }
