"""A recipe's folders → `results.json` and one self-contained HTML page: tables, curves, audio.

Everything on the page is read from the runs' own files: nothing is typed in.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam import score_tables
from slam.errors import ConfigError, InputError
from slam.pairs import PAIRS_FILE, read_pair_rows
from slam.report_scores import divided, generation_table, published, recognisers, score_plot
from slam.report_training import Named, curves, margins, of_stage, tunings
from slam.run import (
    Results,
    atomic_write,
    read_json,
    read_json_lines,
    read_run,
    source,
    stage,
    write_json,
)

PAGE_FILE = "report.html"
RESULTS_FILE = "results.json"
_TABLES = ("groups.json", "comparisons.json", "floors.json")  # of an evaluation, beside its results
_CONTINUATIONS_FILE = "continuations.jsonl"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings of `slam report`."""

    runs: dict[str, Path] = source(required=True)
    """The runs to report on: step name → folder; in a recipe "*" means every step before."""
    title: str = "A speech language model"
    """Heading of the page."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("runs: name at least one run to report on")


@stage
def report(config: ReportConfig, out: Path) -> Results:
    """Write `results.json` and `report.html` into the folder `out`.

    Raises:
        InputError: a folder holds no finished run.
    """
    runs = []
    for name, folder in config.runs.items():
        run = read_run(folder)
        if run is None:
            raise InputError(f"{folder}: holds no finished run to report on")
        runs.append(Named(name, folder, run))
    scores = [row for item in of_stage(runs, "evaluate") for row in read_json(item.folder / RESULTS_FILE)]
    write_json(out / RESULTS_FILE, scores)
    page = _page(config, runs, scores)
    atomic_write(out / PAGE_FILE, page)
    return {"num_scores": len(scores), "page_bytes": len(page.encode())}


def _page(config: ReportConfig, runs: Sequence[Named], scores: Sequence[Mapping[str, Any]]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("slam", "."), autoescape=True, undefined=StrictUndefined)
    evaluated = of_stage(runs, "evaluate")
    found = {name: [row for item in evaluated for row in read_json(item.folder / name)] for name in _TABLES}
    found_tables = score_tables.tables(scores)
    models = score_tables.names(scores, "model")
    generated = [
        row for item in of_stage(runs, "evaluate-generation") for row in read_json(item.folder / RESULTS_FILE)
    ]

    return environment.get_template("report.html.j2").render(
        title=config.title,
        runs=runs,
        seconds=sum(item.run.seconds for item in runs),
        tables=found_tables,
        score_plot=score_plot(found_tables[0]) if found_tables else None,
        floors={b: score_tables.floors_of(found["floors.json"], b) for b, _ in found_tables[0].rows}
        if found_tables
        else {},
        floor_names=score_tables.FLOORS,
        below_floors=score_tables.below_floors(scores, found["floors.json"]),
        comparisons=found["comparisons.json"],
        surely_different=score_tables.surely_different,
        divided=divided(found["groups.json"]),
        published=published(score_tables.names(scores, "benchmark")),
        generation=generation_table(generated),
        recognisers=recognisers(runs),
        curves=curves(runs, models),
        margins=margins(runs),
        tunings=tunings(runs),
        overlaps=_overlaps(runs),
        listening=[table for item in of_stage(runs, "generate") for table in _listening(item)],
        protocols={
            name: words for item in evaluated for name, words in item.run.results["protocols"].items()
        },
        versions=runs[-1].run,
    )


def _overlaps(runs: Sequence[Named]) -> list[dict[str, Any]]:
    """What the preference pairs share with each benchmark: stories, and kinds of contradiction."""
    tables = []
    for tuned in of_stage(runs, "dpo"):
        rows = read_pair_rows(Path(tuned.run.config["pairs"]))
        stories, kinds = {row.story for row in rows} - {None}, {row.kind for row in rows}
        for scored in of_stage(runs, "evaluate"):
            for folder in map(Path, scored.run.config["benchmarks"]):
                found = read_pair_rows(folder)
                for benchmark in dict.fromkeys(row.benchmark for row in found):
                    here = [row for row in found if row.benchmark == benchmark]
                    tables.append(
                        {
                            "tuned": tuned.name,
                            "benchmark": benchmark,
                            "shared_stories": len(stories & {row.story for row in here}),
                            "stories": len({row.story for row in here} - {None}),
                            "shared_kinds": sorted(kinds & {row.kind for row in here}),
                            "kinds": sorted({row.kind for row in here}),
                            "tuned_kinds": sorted(kinds),
                        }
                    )
    return tables


def _listening(item: Named) -> list[dict[str, Any]]:
    """A row a prompt: the prompt, then each model's continuation, as data for an audio player."""
    rows = read_json_lines(item.folder / _CONTINUATIONS_FILE)
    texts = _texts(item)
    models = list(dict.fromkeys(row["model"] for row in rows if row["model"] is not None))
    table = []
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        sounds = {
            row["model"]: _data_uri(item.folder / row["audio"]) for row in rows if row["prompt"] == prompt
        }
        table.append({"prompt": prompt, "text": texts.get(prompt, ""), "sounds": sounds})
    return [{"name": item.name, "models": models, "rows": table}]


def _texts(item: Named) -> dict[str, str]:
    """What the prompts' recordings say, where the text is known."""
    prompts = Path(item.run.config["prompts"])
    encoded = read_run(prompts)
    manifest = Path(encoded.config["audio"]) / "manifest.jsonl" if encoded else None
    if manifest is None or not manifest.is_file():
        return {}
    said = {row["id"]: row["text"] for row in read_json_lines(manifest) if "text" in row}
    if (prompts / PAIRS_FILE).is_file():
        return {row.id: said.get(row.chosen, "") for row in read_pair_rows(prompts)}
    return said


def _data_uri(path: Path) -> str:
    """A sound file as a data URI: MP3 where libsndfile can write it, which every browser plays."""
    import soundfile

    if "MP3" not in soundfile.available_formats():
        return "data:audio/wav;base64," + base64.b64encode(path.read_bytes()).decode()
    samples, rate = soundfile.read(path, dtype="float32")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="MP3")
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
