"""Rows of scores → tables: benchmarks down, models across; and the same in Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[Mapping[str, Any]]

METRICS = {
    "accuracy": "mean over pairs (micro)",
    "accuracy_macro": "mean over kinds (macro)",
    "accuracy_by_item": "mean over items, voices first",
}
FLOORS = {"length": "length alone", "unigram": "unigrams alone"}
_SURE = 0.05


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one protocol and metric."""

    protocol: str
    metric: str
    models: list[str]
    rows: list[tuple[str, list[Mapping[str, Any] | None]]]  # benchmark, a row of results a model

    @property
    def title(self) -> str:
        """What its numbers are."""
        return METRICS.get(self.metric, self.metric)


def tables(results: Rows) -> list[ScoreTable]:
    """A table for each protocol and metric, in the order in which they first come."""
    models = names(results, "model")
    found = []
    for protocol in names(results, "protocol"):
        for metric in sorted(names(results, "metric"), key=list(METRICS).index):
            rows = [row for row in results if (row["protocol"], row["metric"]) == (protocol, metric)]
            cells = {(row["benchmark"], row["model"]): row for row in rows}
            if rows:
                lines = [(b, [cells.get((b, m)) for m in models]) for b in names(rows, "benchmark")]
                found.append(ScoreTable(protocol, metric, models, lines))
    return found


def names(rows: Rows, key: str) -> list[str]:
    """What stands under `key`, each once, in order."""
    return list(dict.fromkeys(row[key] for row in rows))


def floors_of(floors: Rows, benchmark: str) -> list[Mapping[str, Any]]:
    """The floors of a benchmark, length before unigrams; of several tokenizers the highest of each."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in floors:
        if row["benchmark"] == benchmark:
            before = found.get(row["floor"])
            found[row["floor"]] = row if before is None or row["value"] > before["value"] else before
    return [found[name] for name in FLOORS if name in found]


def below_floors(results: Rows, floors: Rows) -> list[str]:
    """Which model is not clearly better than a floor, a sentence each: its interval reaches down to it."""
    said = []
    for table in tables(results)[:1]:
        for benchmark, cells in table.rows:
            for model, row in zip(table.models, cells, strict=True):
                reached = [
                    f for f in floors_of(floors, benchmark) if row is not None and row["low"] <= f["value"]
                ]
                if row is not None and reached:
                    highest = max(reached, key=lambda floor: floor["value"])
                    said.append(
                        f"{model} on {benchmark}: {percent(row)} does not clearly beat "
                        f"{FLOORS[highest['floor']]}, {100 * highest['value']:.1f}"
                    )
    return said


def percent(row: Mapping[str, Any], key: str = "value", *, digits: int = 1) -> str:
    """A share in percent and its interval, whose bounds have `digits` after the point."""
    bounds = (f"{100 * row[bound]:.{digits}f}" for bound in ("low", "high"))
    return f"{100 * row[key]:.1f} ({', '.join(bounds)})"


def markdown(
    results: Rows, groups: Rows, comparisons: Rows, floors: Rows, protocols: Mapping[str, str]
) -> str:
    """All tables of an evaluation, with what is needed to read them."""
    lines = [
        "# Scores",
        "",
        "In percent, with 95 % intervals (bootstrap over pairs, those of one cluster together).",
    ]
    for number, table in enumerate(tables(results)):
        with_floors = not number
        heading = ["benchmark", "n", *table.models, *(FLOORS.values() if with_floors else ())]
        lines += [
            "",
            f"## {table.protocol}: {table.title}",
            "",
            f"Protocol: {protocols[table.protocol]}.",
            "",
        ]
        lines += _rule(heading)
        for benchmark, cells in table.rows:
            size = next(row["n"] for row in cells if row is not None)
            known = {row["floor"]: f"{100 * row['value']:.1f}" for row in floors_of(floors, benchmark)}
            floor_cells = [known.get(name, "") for name in FLOORS] if with_floors else []
            shown = ["" if row is None else percent(row) for row in cells]
            lines.append(_line([benchmark, str(size), *shown, *floor_cells]))
    if warned := below_floors(results, floors):
        lines += ["", *(f"* {word}." for word in warned)]
    if comparisons:
        lines += ["", f"## Differences ({len(comparisons)}, p-values not corrected for how many)", ""]
        lines += _rule(["benchmark", "protocol", "model", "against", "points", "p"])
        for row in comparisons:
            shown = [row["benchmark"], row["protocol"], row["model"], row["other"]]
            lines.append(_line([*shown, percent(row, "difference"), f"{row['p']:.4f}"]))
    first = names(results, "protocol")[0]
    for benchmark in names(results, "benchmark"):
        for grouping in names(groups, "grouping"):
            lines += _group_lines(benchmark, grouping, first, groups)
    return "\n".join(lines) + "\n"


def group_rows(
    groups: Rows, benchmark: str, grouping: str, protocol: str
) -> tuple[list[str], list[tuple[str, list[Mapping[str, Any] | None]]]]:
    """`(models, [(group, a row a model)])`; no rows where there is but one group."""
    rows = [
        row
        for row in groups
        if (row["benchmark"], row["grouping"], row["protocol"]) == (benchmark, grouping, protocol)
    ]
    models = names(rows, "model")
    cells = {(row["group"], row["model"]): row for row in rows}
    found = [(g, [cells.get((g, m)) for m in models]) for g in names(rows, "group")]
    return models, found if len(found) > 1 else []


def _group_lines(benchmark: str, grouping: str, protocol: str, groups: Rows) -> list[str]:
    models, found = group_rows(groups, benchmark, grouping, protocol)
    if not found:
        return []
    lines = ["", f"## {benchmark} by {grouping}", "", *_rule([grouping, "pairs", *models])]
    for group, cells in found:
        size = next(row["n"] for row in cells if row is not None)
        lines.append(_line([group, str(size), *("" if row is None else percent(row) for row in cells)]))
    return lines


def _rule(heading: Sequence[str]) -> list[str]:
    return [_line(heading), _line(["---", *["---:"] * (len(heading) - 1)])]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def surely_different(row: Mapping[str, Any]) -> bool:
    """Whether a comparison's p-value is below 0.05."""
    return bool(row["p"] < _SURE)
