"""Scores → what the report shows of them: a plot, tables by group, published numbers beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

from slam.plots import figure, svg
from slam.published import METRICS, comparable, read_published
from slam.report_training import Named, colours, of_stage
from slam.score_tables import Rows, ScoreTable, group_rows, names

_LONG = 20  # rows; a longer table is folded
_GENERATION = {
    "genppl": ("GenPPL, prompt and continuation", "", 1),
    "genppl_continuation": ("GenPPL, continuation alone", "", 1),
    "auto_bleu_2": ("auto-BLEU-2 of the text", "%", 100),
}


def score_plot(table: ScoreTable) -> Any:
    """Bars with their intervals; the line is chance."""
    drawing, axes = figure()
    shown = set()
    width = 0.8 / len(table.models)
    for index, model in enumerate(table.models):
        for position, (_, cells) in enumerate(table.rows):
            if (row := cells[index]) is None:
                continue
            value, low, high = (100 * row[key] for key in ("value", "low", "high"))
            axes.bar(
                position + (index - (len(table.models) - 1) / 2) * width,
                value,
                width * 0.92,
                color=colours(table.models)[model],
                yerr=[[value - low], [high - value]],
                error_kw={"elinewidth": 1.2, "capsize": 2.5},
                label=None if model in shown else model,
            )
            shown.add(model)
    axes.axhline(50, color="#4a5568", linewidth=1, linestyle="--")
    turned = len(table.rows) > 5  # noqa: PLR2004 - names that stand side by side
    axes.set_xticks(
        range(len(table.rows)),
        [benchmark for benchmark, _ in table.rows],
        rotation=20 if turned else 0,
        ha="right" if turned else "center",
    )
    # accuracies crowd between chance and 100: more room for them, unless one lies below
    lowest = min(100 * row["low"] for _, cells in table.rows for row in cells if row is not None)
    axes.set_ylim(min(30, max(0, lowest - 5)), 103)
    axes.set_ylabel("accuracy in %")
    drawing.legend(loc="outside upper center", ncols=len(table.models), frameon=False)
    return svg(drawing)


def divided(groups: Rows) -> list[dict[str, Any]]:
    """A table for each benchmark and grouping that has several groups, of the protocol reported first."""
    found = []
    for benchmark in names(groups, "benchmark"):
        for grouping in names([row for row in groups if row["benchmark"] == benchmark], "grouping"):
            models, rows = group_rows(groups, benchmark, grouping, groups[0]["protocol"])
            if rows:
                about = {"benchmark": benchmark, "grouping": grouping, "models": models, "rows": rows}
                found.append(about | {"is_long": len(rows) > _LONG})
    return found


def published(benchmarks: Sequence[str]) -> dict[str, Any]:
    """Numbers from papers: the metrics that are of these benchmarks, or all where none is."""
    metrics = comparable(benchmarks)
    shown = metrics or list(METRICS)
    rows = [
        {"about": one, "cells": [one.scores.get(metric) for metric in shown]}
        for one in read_published()
        if any(metric in one.scores for metric in shown)
    ]
    return {"metrics": [METRICS[metric] for metric in shown], "rows": rows, "comparable": bool(metrics)}


def generation_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics down, models across."""
    models = names(rows, "model")
    cells = {(row["metric"], row["model"]): row for row in rows}
    lines = []
    for metric in names(rows, "metric"):
        title, unit, scale = _GENERATION.get(metric, (metric.replace("_", " "), "", 1))
        lines.append(
            {"title": title, "unit": unit, "cells": [_shown(cells.get((metric, m)), scale) for m in models]}
        )
    return {"models": models, "rows": lines}


def recognisers(runs: Sequence[Named]) -> list[dict[str, Any]]:
    """How far each fitted recogniser is to be believed: its word errors on held-out speech, in %."""
    found = []
    for item in of_stage(runs, "fit-recognizer"):
        results = item.run.results
        cells = {
            about: (results[name], *results[f"{name}_interval"])
            for name, about in (("word_errors", "units"), ("resynthesis_word_errors", "spoken"))
            if results.get(name) is not None
        }
        found.append(
            {"name": item.name, "words": results["num_held_out_words"], "cells": cells}
            | {"vocoder": item.run.config["vocoder"], "trustworthy": results["trustworthy"]}
        )
    return found


def _shown(row: Mapping[str, Any] | None, scale: float) -> tuple[str, str, int] | None:
    """The value, its interval where it has one, and how many samples it is of."""
    if row is None:
        return None
    value = f"{scale * row['value']:.4g}"
    if row["low"] is None:
        return value, "", row["n"]
    return value, "\N{EN DASH}".join(f"{scale * row[bound]:.4g}" for bound in ("low", "high")), row["n"]
