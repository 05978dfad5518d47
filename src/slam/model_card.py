"""A speech LM's folder, and its scores → a model card: what it is, how it was made, how good, how to use it.

Everything stands in `slam.json` and in the scores' own records; what nobody said, the licence say, is said to
be unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam.errors import InputError, MismatchError
from slam.run import fingerprint_of, read_json, read_run
from slam.score_tables import FLOORS, floors_of, percent, tables

CARD_FILE = "README.md"
_TAGS = ("speech", "speech-language-model", "discrete-units", "slam")
_MISSING = "not stated"


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the person who hands the model on says of it."""

    title: str
    licence: str | None = None  # as the hub names it: mit, cc-by-4.0 …
    datasets: tuple[str, ...] = ()  # names on the hub
    base_model: str | None = None  # name on the hub; else what the trainings say
    form: str = "transformers"  # key of `slam.exports.BUILT_IN`


def model_card(folder: Path, facts: CardFacts, scores: Path | None = None) -> str:
    """The card of the speech LM in `folder`, in Markdown with the hub's front matter.

    Args:
        folder: of the model.
        facts: what its files do not say.
        scores: a folder that `slam evaluate` wrote; the rows of this very model are taken.

    Raises:
        InputError: there is no speech LM, or no scores.
        MismatchError: the scores are of other models.
    """
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, PackageLoader, StrictUndefined

    about = read_json(folder / "slam.json")
    config = read_json(folder / "config.json")
    training = about.get("training", [])
    base = facts.base_model or base_of(training)
    front = ModelCardData(
        license=facts.licence,
        library_name=None if facts.form in ("gguf", "onnx") else "transformers",
        tags=[*_TAGS, *([] if facts.form == "transformers" else [facts.form])],
        base_model=base if base is not None and "/" in base else None,
        datasets=list(facts.datasets) or None,
    )
    environment = Environment(
        loader=PackageLoader("slam", "."),
        autoescape=False,  # noqa: S701 - Markdown, and its values are this project's own
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _plain
    return environment.get_template("model_card.md.j2").render(
        front=front.to_yaml(),
        facts=facts,
        about=about,
        config=config,
        training=training,
        base=base or "none of the hub that is known; see the trainings",
        licence=facts.licence or _MISSING,
        scores=[] if scores is None else _scores(folder, scores),
    )


def base_of(training: Sequence[Mapping[str, Any]]) -> str | None:
    """The hub's name of the text LM that the first of the trainings started from, as far as one is known."""
    for run in training:
        named = run["settings"].get("hub_base") or run["results"].get("base")
        if isinstance(named, str):
            return named
    return None


def _plain(value: Any) -> str:
    """A setting or a figure in a table's cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    # a word of these could else end the cell, or be taken for HTML
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _scores(folder: Path, scores: Path) -> list[dict[str, Any]]:
    """A table for each protocol and metric: rows of benchmark, n, score with interval, floors."""
    run = read_run(scores)
    if run is None or run.stage != "evaluate":
        raise InputError(f"{scores}: holds no scores; give a folder that `slam evaluate` wrote")
    own = fingerprint_of(folder)
    names = [
        key.removeprefix("models.")
        for key, value in run.inputs.items()
        if key.startswith("models.") and value == own
    ]
    if not names:
        raise MismatchError(
            f"{scores}: its scores are of other models, or of {folder} before it was made again; run "
            "slam evaluate on it"
        )
    rows = [row for row in read_json(scores / "results.json") if row["model"] == names[0]]
    floors = read_json(scores / "floors.json")
    found = []
    for table in tables(rows):
        lines = []
        for benchmark, (row,) in table.rows:
            if row is None:
                continue
            known = {one["floor"]: f"{100 * one['value']:.1f}" for one in floors_of(floors, benchmark)}
            cells = [known.get(name, "") for name in FLOORS]
            lines.append([benchmark, str(row["n"]), percent(row), *cells])
        words = run.results["protocols"][table.protocol]
        found.append({"title": table.title, "protocol": table.protocol, "words": words, "rows": lines})
    return found
