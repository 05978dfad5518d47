"""A study's numbers → study.json, drawings, and study.md: a page fit for a paper's appendix."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slam import __version__
from slam.errors import InputError
from slam.plots import COLOURS, figure, svg
from slam.run import atomic_write, write_json
from slam.study import Levels, Metric, Study
from slam.study_law import LawFound, draw, find_law
from slam.study_results import Difference, Outcome, Summary, differences, outcomes, summaries

PAGE_FILE = "study.md"
RESULTS_FILE = "study.json"
_NO_FLOOR = 1e-3  # nats a token
_STYLES = ("-", "--", ":")  # of lines, when there are more than colours
_DIFFERENCES = (
    "A level minus the one it is compared with: the same seed, the same levels of the other factors. "
    "Intervals are 95 %, Student's over seeds; n counts seeds."
)
_LAW = (
    "L(N, D) = E + A / N^alpha + B / D^beta in nats a token; N counts all parameters, embeddings too. "
    "Intervals are 95 %, of a bootstrap over residuals."
)
_MULTIPLIER = (
    "Compute multiplier: how many times the compute the fitted law needs for the losses of a setting, "
    "instead of for its own at the same N and D (geometric mean over points, both at their best N and D)."
)
_COST = (
    "Of the trainings in which arms differ, mean over seeds; FLOP are 6 · parameters · tokens. The last "
    "column counts every step that an arm needs, as if it were made alone."
)


def write_page(study: Study) -> list[Outcome]:
    """Write `study.json`, `study.md` and its drawings into the study's folder, of all arms made so far."""
    found = outcomes(study)
    means = summaries(study, found)
    compared = list(differences(study, found))
    law, why_no_law = _law(study, found)
    write_json(
        study.folder / RESULTS_FILE,
        _finite(
            {
                "study": study.path.stem,
                "title": study.file.title,
                "slam_version": __version__,
                "arms": [
                    {"levels": one.arm.levels, "seed": one.arm.seed}
                    | {key: value for key, value in vars(one).items() if key != "arm"}
                    for one in found
                ],
                "summaries": [asdict(one) for one in means],
                "differences": [asdict(one) for one in compared],
                "law": law.rows() if law is not None else None,
            }
        ),
    )
    lines = _heading(study, found)
    lines += _results(study, means)
    lines += _drawings(study, found)
    lines += _differences(study, compared)
    lines += _law_lines(study, law, why_no_law)
    lines += _costs(study, found)
    lines += _unfinished(found)
    atomic_write(study.folder / PAGE_FILE, "\n".join(lines) + "\n")
    return found


def _law(study: Study, found: Sequence[Outcome]) -> tuple[LawFound | None, str]:
    if study.file.law is None:
        return None, ""
    try:
        return find_law(study, study.file.law, found), ""
    except InputError as error:
        return None, str(error)


def _heading(study: Study, found: Sequence[Outcome]) -> list[str]:
    done = sum(one.state == "done" for one in found)
    seeds = ", ".join(map(str, study.file.seeds))
    lines = [f"# {study.file.title or study.path.stem}", ""]
    if study.file.about:
        lines += [study.file.about.strip(), ""]
    lines.append(
        f"{done} of {len(found)} arms finished: {len(study.cells)} settings of `{study.file.recipe.name}`, "
        f"seeds {seeds}."
    )
    return lines


def _results(study: Study, means: Sequence[Summary]) -> list[str]:
    """A row a cell: mean ± standard deviation over seeds, the best in bold."""
    metrics = study.file.metrics
    best = {}
    for name, metric in metrics.items():
        values = [one.mean for one in means if one.metric == name]
        if values:
            best[name] = min(values) if metric.better == "lower" else max(values)
    cells = {(tuple(one.levels.items()), one.metric): one for one in means}
    lines = ["", "## Results", "", "Mean ± standard deviation over seeds.", ""]
    lines += _rule([*study.file.factors, *metrics, "n"], len(study.file.factors))
    for levels in study.cells:
        row, counts = [], []
        for name, metric in metrics.items():
            one = cells.get((tuple(levels.items()), name))
            if one is None:
                row.append("")
                continue
            counts.append(one.n)
            text = _number(metric, one.mean)
            shown = f"**{text}**" if one.mean == best[name] else text
            row.append(shown if one.deviation is None else f"{shown} ± {_number(metric, one.deviation)}")
        lines.append(_line([*levels.values(), *row, _counts(counts)]))
    return lines


def _counts(counts: Sequence[int]) -> str:
    return "–".join(map(str, sorted(set(counts)))) if counts else "0"  # noqa: RUF001 - a range


def _drawings(study: Study, found: Sequence[Outcome]) -> list[str]:
    """A drawing a metric: its widest factor across, the others as lines; dots are seeds."""
    across = max(study.file.factors, key=lambda name: len(study.file.factors[name]))
    lines: list[str] = []
    for name, metric in study.file.metrics.items():
        rows = [one for one in found if name in one.metrics]
        if not rows:
            continue
        drawing, axes = figure()
        places = {level: place for place, level in enumerate(study.file.factors[across])}
        groups: dict[str, list[Outcome]] = {}
        for one in rows:
            groups.setdefault(_other_levels(one.arm.levels, across), []).append(one)
        for number, (label, members) in enumerate(groups.items()):
            colour, style = COLOURS[number % len(COLOURS)], _STYLES[number // len(COLOURS) % len(_STYLES)]
            scale = 100 if metric.percent else 1
            points: dict[int, list[float]] = {}
            for one in members:
                points.setdefault(places[one.arm.levels[across]], []).append(scale * one.metrics[name])
            for place, values in points.items():
                axes.scatter([place] * len(values), values, s=12, color=colour, alpha=0.5)
            means = [(place, sum(values) / len(values)) for place, values in sorted(points.items())]
            axes.plot(*zip(*means, strict=True), color=colour, linestyle=style, label=label or None)
        axes.set_xticks(list(places.values()), list(places))
        axes.set(xlabel=across, ylabel=f"{name} in %" if metric.percent else name)
        if len(groups) > 1:
            axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        lines += _kept(study.folder, name, drawing)
    return lines


def _kept(folder: Path, name: str, drawing: Any) -> list[str]:
    file = f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}.svg"
    atomic_write(folder / file, f'<?xml version="1.0"?>\n{svg(drawing)}')
    return ["", f"![{name}]({file})"]


def _other_levels(levels: Levels, but: str) -> str:
    return ", ".join(f"{name} {level}" for name, level in levels.items() if name != but)


def _differences(study: Study, compared: Sequence[Difference]) -> list[str]:
    if not compared:
        return []
    lines = [
        "",
        "## Paired differences",
        "",
        _DIFFERENCES,
        "",
    ]
    lines += _rule(["factor", "level", "at", "metric", "difference", "95 % interval", "n"], 4)
    for one in compared:
        metric = study.file.metrics[one.metric]
        interval = (
            "" if one.low is None or one.high is None
            else f"{_number(metric, one.low, signed=True)} to {_number(metric, one.high, signed=True)}"
        )  # fmt: skip
        at = "all, averaged" if one.at is None else ", ".join(one.at.values())
        lines.append(
            _line(
                [one.factor, f"{one.level} − {one.against}", at, one.metric,  # noqa: RUF001 - minus
                 _number(metric, one.difference, signed=True), interval, str(one.n)]
            )
        )  # fmt: skip
    return lines


def _law_lines(study: Study, law: LawFound | None, why: str) -> list[str]:
    wanted = study.file.law
    if wanted is None:
        return []
    lines = ["", "## Scaling law", ""]
    if law is None:
        return [*lines, f"No law: {why}."]
    fitted_to = ", ".join(f"{name} {level}" for name, level in wanted.fit.items()) or "all arms"
    rows = law.rows()
    lines += [
        " ".join(
            [
                f"Of {wanted.metric}, fitted to {fitted_to}: {rows['num_points']} points,",
                f"{100 * law.fit.residual:.2f} % root mean square residual. {_LAW}",
            ]
        ),
        "",
        *_rule(["coefficient", "value", "95 % interval"], 1),
    ]
    for name, one in rows["coefficients"].items():
        lines.append(_line([name, f"{one['value']:.4g}", f"{one['low']:.4g} to {one['high']:.4g}"]))
    if law.fit.law.E < _NO_FLOOR:
        lines += ["", "E is at its bound, 0: these losses are still too far from their floor to tell it."]
    if law.multipliers:
        lines += [
            "",
            _MULTIPLIER,
            "",
            *_rule([wanted.against or "", "multiplier", "95 % interval", "points"], 1),
        ]
        for level, (value, low, high) in law.multipliers.items():
            count = str(len(law.groups[level].losses))
            lines.append(_line([level, _times(value), f"{_times(low)} to {_times(high)}", count]))
    return lines + _kept(study.folder, "scaling-law", draw(law, wanted.published))


def _costs(study: Study, found: Sequence[Outcome]) -> list[str]:
    lines = [
        "",
        "## Cost",
        "",
        _COST,
        "",
    ]
    lines += _rule(
        [*study.file.factors, "seconds", "tokens", "FLOP", "seconds of all steps"], len(study.file.factors)
    )
    for levels in study.cells:
        rows = [one for one in found if one.arm.levels == levels and one.state == "done"]
        if rows:
            means = [
                sum(getattr(one, name) for one in rows) / len(rows)
                for name in ("seconds", "tokens", "flops", "all_seconds")
            ]
            cost = [f"{means[0]:,.1f}", f"{means[1]:,.0f}", f"{means[2]:.3g}", f"{means[3]:,.1f}"]
            lines.append(_line([*levels.values(), *cost]))
    return lines


def _unfinished(found: Sequence[Outcome]) -> list[str]:
    lines: list[str] = []
    failed = [one for one in found if one.state == "failed"]
    if failed:
        lines += ["", f"## Failed ({len(failed)})", "", *(f"* {one.arm.name}: {one.line}" for one in failed)]
    if left := [one.arm.name for one in found if one.state == "not made"]:
        lines += ["", f"## Not made yet ({len(left)})", "", *(f"* {name}" for name in left)]
    missing = {line for one in found for line in one.missing.values()}
    if missing:
        lines += ["", "## Without a number", "", *(f"* {line}" for line in sorted(missing))]
    return lines


def _number(metric: Metric, value: float, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f}" if metric.percent else f"{value:{sign}.3f}"


def _times(value: float) -> str:
    return f"{value:.2f} ×" if math.isfinite(value) else "endless"  # noqa: RUF001 - times


def _finite(content: Any) -> Any:
    """The same without numbers that JSON has not: they become null."""
    match content:
        case dict():
            return {key: _finite(value) for key, value in content.items()}
        case list() | tuple():
            return [_finite(value) for value in content]
        case float() if not math.isfinite(content):
            return None
        case _:
            return content


def _rule(heading: Sequence[str], words: int) -> list[str]:
    """A table's heading, its first columns words and the others numbers."""
    return [_line(heading), _line(["---"] * words + ["---:"] * (len(heading) - words))]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
