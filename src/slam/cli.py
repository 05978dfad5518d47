"""Words on the command line → a stage and its settings, or a recipe; what goes wrong → one line.

Exit status 0 when done, 2 when the user can put it right, 130 for Ctrl-C.
"""

import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, validators
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from slam import __version__, score_tables, world
from slam.errors import ConfigError, InputError, SlamError
from slam.listen import ListenConfig
from slam.listen import listen as open_page
from slam.model_card import CardFacts
from slam.plan import PlanSettings
from slam.progress import console
from slam.push import push as push_model
from slam.recipe import Recipe, load_recipe
from slam.run import Run, Unfinished, atomic_write, read_json
from slam.runner import run_recipe
from slam.stages import STAGES
from slam.study import load_study
from slam.study_runner import missing_inputs, plan_study, plan_table, run_study

_HELP = {
    "synthesize": "Text → speech, or its units: your texts, data sets and pairs, or the built-in grammar's.",
    "fit-units": "Speech → a tokenizer: k-means over log-mel or a layer, its inertia, the units in use.",
    "encode": "Speech → units: a folder of recordings, any format and rate.",
    "probe-units": "Folders of units, and labels or none → rates, purity, ABX, and a page to choose by.",
    "build-pairs": "Others' pairs (SWAG, HellaSwag, BLiMP …), words or stories → pairs to speak or encode.",
    "import-benchmark": "sWUGGY, sBLIMP, StoryCloze, SALMon, your own pairs of recordings → benchmark pairs.",
    "import-units": "The reference toolkit's features, tokens or preference pairs → units.",
    "import-model": "A speech LM of another toolkit (slamkit's, TWIST's, a stock one) → one of ours.",
    "fit-recognizer": "Units and their recordings' texts → a small recogniser, judged on held-out speech.",
    "fit-vocoder": "Units and their recordings → a vocoder of these units, judged on recordings held out.",
    "pack": "Units (or text) → token shards.",
    "pretrain": "Token shards, and a text LM or none → LM.",
    "dpo": "LM and preference pairs → LM.",
    "generate": "LM and spoken prompts → spoken continuations.",
    "evaluate": "LMs and benchmark pairs → scores with 95 % intervals.",
    "evaluate-generation": "Spoken continuations → GenPPL, auto-BLEU-2, diversity, rate, a judge's rating.",
    "export": "Speech LM → a checked folder for transformers, vLLM, llama.cpp (GGUF) or ONNX, and its card.",
    "report": "A recipe's folders → results.json and one HTML page.",
}

_ALIASES = {"import-model": "import"}
_OF_MODELS = ("evaluate", "generate")  # commands that also take models as plain arguments
_OF_A_MODEL = ("export", "import-model", "import")  # commands that take one so
_PATIENCE_SECONDS = 5.0
_PAGE_WIDTH = 150  # characters, of tables that go to a file

app = App(
    name="slam",
    help="Train a speech language model in a day: speech → units → TWIST → DPO → scores and sound.",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # else Ctrl-C leaves without a word
)


def _command(name: str) -> Callable[..., None]:
    """The command of a stage: its settings as flags, and where its folder goes."""
    stage = STAGES[name]

    def command(config: Any, *, out: Path) -> None:
        run = stage.perform(config if config is not None else stage.config(), out)
        if world.rank():
            return
        for key, value in run.results.items():
            console.print(f"{key}: {value}", highlight=False, markup=False, soft_wrap=True)
        print(out)  # noqa: T201 - what a script wants to read

    # settings that are all optional need a default of their own, which cyclopts asks to be None
    optional = all(has_default(item) for item in fields(stage.config))
    if optional:
        command.__defaults__ = (None,)
    command.__annotations__ = {
        "config": Annotated[
            stage.config | None if optional else stage.config, Parameter(name="*", consume_multiple=True)
        ],
        "out": Annotated[Path, Parameter(help="Folder to write; the same command goes on with it.")],
        "return": None,
    }
    command.__doc__ = _HELP[name]
    command.__name__ = name
    return command


def has_default(item: Field[Any]) -> bool:
    """Whether a setting may be left out."""
    return item.default is not MISSING or item.default_factory is not MISSING


for _name in STAGES:
    app.command(_command(_name), name=_name, alias=_ALIASES.get(_name))


@app.command
def run(
    recipe: Path,
    *,
    folder: Path | None = None,
    jobs: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    set: Annotated[Sequence[str], Parameter(negative="")] = (),  # noqa: A002 - the flag's name
    check: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Make every step of a recipe that is not done yet.

    Parameters
    ----------
    recipe
        A TOML file of named steps.
    folder
        Where the steps' folders go, instead of the recipe's own.
    jobs
        How many steps may be made at the same time, instead of the recipe's own number.
    set
        A setting to use instead of the recipe's: STEP.KEY=VALUE.
    check
        Make nothing: print what each step will make and take, and what is missing, which is exit status 2.
    """
    if check:
        _print_check(load_recipe(recipe, folder=folder, overrides=set, missing_allowed=True))
        return
    loaded = load_recipe(recipe, folder=folder, overrides=set)
    done = run_recipe(loaded, jobs)
    if world.rank():
        return
    if not any(made for _, _, made in done):
        console.print(f"{recipe}: every step is done already, nothing to do", highlight=False)
    _print_scores(loaded.folder, [finished for _, finished, _ in done])


@app.command
def study(
    study: Path,
    *,
    folder: Path | None = None,
    jobs: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    shard: str | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    yes: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Run a recipe under every combination of some settings and seeds; compare them.

    Parameters
    ----------
    study
        A TOML file of factors and seeds over a recipe.
    folder
        Where results and all steps go, instead of the study's own.
    jobs
        How many steps may be made at the same time, instead of the study's own number.
    shard
        The part of the arms that this process makes, I/N; several may share the folder.
    dry_run
        Show the arms, their tokens, the time they will take and what is missing; make nothing.
    yes
        Go on with more than 1,000 arms.
    """
    from slam.study_page import PAGE_FILE, write_page

    if world.size() > 1:
        raise ConfigError("a study's arms are spread by --shard I/N, not by torchrun")
    loaded = load_study(study, folder=folder, many=yes, missing_allowed=dry_run)
    if dry_run:
        page = _page()
        page.print(plan_table(plan_study(loaded, shard)))
        for line in missing_inputs(loaded):
            page.print(f"missing: {line}", soft_wrap=True)
        return
    failures = run_study(loaded, loaded.file.jobs if jobs is None else jobs, shard)
    found = write_page(loaded)
    print(f"study: {loaded.folder / PAGE_FILE}")  # noqa: T201
    failed = [one for one in found if one.state == "failed"]
    if failures and failed:
        raise InputError(
            f"{len(failed)} of {len(found)} arms failed ({failed[0].arm.name}: {failed[0].line}); "
            "the same command tries them again"
        )
    if waiting := sum(one.state == "not made" for one in found):
        raise Unfinished(f"{waiting} of {len(found)} arms are other parts' to make")


@app.command
def plan(
    settings: Annotated[PlanSettings, Parameter(name="*", consume_multiple=True)],
    *,
    write: Path | None = None,
) -> None:
    """A budget, this machine and data → which base to train, its speed and memory, the loss to expect.

    Parameters
    ----------
    write
        A file for a recipe that trains what is recommended.
    """
    from slam.plan import make_plan
    from slam.plan_page import lines, recipe_text, table

    if write is not None and write.exists():
        raise ConfigError(f"{write}: is there already; choose another name")
    if write is not None and not settings.data:
        raise ConfigError("--write needs --data: units or token shards that the recipe trains on")
    found = make_plan(settings)
    page = _page()
    page.print(table(found))
    for line in lines(found):
        page.print(line, soft_wrap=True)
    if write is not None:
        atomic_write(write, recipe_text(found, write.stem))
        print(write)  # noqa: T201 - what a script wants to read


@app.command
def listen(model: Path, *, config: Annotated[ListenConfig, Parameter(name="*")]) -> None:
    """LM → a page on this machine to hear it by: record or upload speech, hear what follows.

    Parameters
    ----------
    model
        Folder of a speech LM.
    """
    open_page(model, config)


def _page() -> Console:
    """Standard output, for tables; as wide as they are where it goes to a file."""
    return Console(width=None if sys.stdout.isatty() else _PAGE_WIDTH, highlight=False, markup=False)


def _print_check(recipe: Recipe) -> None:
    """What a recipe would take, and what is missing."""
    from slam.check import check_recipe, lines, refuse, table

    checked = check_recipe(recipe)
    page = _page()
    page.print(table(checked))
    for line in lines(checked):
        page.print(line, soft_wrap=True)
    refuse(checked, recipe.path)


@app.command
def push(
    model: Path,
    *,
    repo: str,
    scores: Path | None = None,
    private: Annotated[bool, Parameter(negative="")] = False,
    title: str | None = None,
    licence: str | None = None,
    datasets: Annotated[Sequence[str], Parameter(negative="")] = (),
    base_model: str | None = None,
) -> None:
    """Speech LM, or an exported one → a repository on the hub, with its model card.

    The token is that of HF_TOKEN, or of your login (hf auth login); it is not kept.

    Parameters
    ----------
    model
        Folder of a speech LM, or one that slam export wrote, which brings its card.
    repo
        The repository, owner/name; it is made if it is not there.
    scores
        Folder that slam evaluate wrote on this model; its scores go into the card.
    private
        Make the repository for its owner's eyes only, if it is made.
    title
        Headline of the card; the repository's name if not given.
    licence
        As the hub names it: mit, cc-by-4.0 …; the card says "not stated" if not given.
    datasets
        Names on the hub of the data it was trained on.
    base_model
        Name on the hub of the text LM it started from, if its runs do not say so.
    """
    facts = None
    if title or licence or datasets or base_model:
        facts = CardFacts(
            title=title or repo.rpartition("/")[2],
            licence=licence,
            datasets=tuple(datasets),
            base_model=base_model,
        )
    print(push_model(model, repo, scores=scores, private=private, facts=facts))  # noqa: T201


def _print_scores(folder: Path, runs: Sequence[Run]) -> None:
    """The score table and where the page is, if the recipe has a report."""
    if not any(finished.stage == "report" for finished in runs):
        return
    if rows := read_json(folder / "results.json"):
        console.print(_score_table(rows), soft_wrap=True)
    print(f"report: {folder / 'report.html'}")  # noqa: T201


def _score_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Benchmarks down, models across: the first protocol's means over pairs."""
    found = score_tables.tables(rows)[0]
    table = Table(title="accuracy in % and its 95 % interval", title_justify="left")
    for heading in ("benchmark", "pairs", *found.models):
        table.add_column(heading, justify="left" if heading == "benchmark" else "right", no_wrap=True)
    for benchmark, cells in found.rows:
        shown = ["" if row is None else score_tables.percent(row, digits=0) for row in cells]
        table.add_row(benchmark, str(next(row["n"] for row in cells if row is not None)), *shown)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; turn what goes wrong into one line and an exit status."""
    try:
        app(_named_models(arguments), exit_on_error=False, print_error=False)
    except (SlamError, CycloptsError) as error:
        _fail(str(error))
    except Unfinished as word:
        console.print(str(word), style="yellow", highlight=False, markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here", style="yellow")
        sys.exit(130)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _fail(f"{error.filename or 'the disk'}: no space left; free some and run the same command again")
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")
    except SafetensorError as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        _fail("the disk: no space left; free some and run the same command again")


def _named_models(arguments: Sequence[str] | None) -> list[str]:
    """`evaluate MODEL …` → `evaluate --models.NAME MODEL …`, by its folder's name; `export MODEL` too."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] and given[0] in _OF_A_MODEL and given[1:2] and not given[1].startswith("-"):
        return [given[0], "--model", *given[1:]]
    if not given or given[0] not in _OF_MODELS:
        return given
    folders = list(takewhile(lambda one: not one.startswith("-"), given[1:]))
    # a dot would divide the flag
    flags = [f"--models.{Path(folder).resolve().name.replace('.', '-')}" for folder in folders]
    if twice := next((flag for flag in flags if flags.count(flag) > 1), None):
        raise ConfigError(
            f"two models would be called {twice.removeprefix('--models.')!r}; name them: --models.NAME FOLDER"
        )
    named = [word for pair in zip(flags, folders, strict=True) for word in pair]
    return [given[0], *named, *given[1 + len(folders) :]]


def _fail(line: str) -> None:
    if world.rank():  # process 0 most likely says the same, and its end ends this one
        time.sleep(_PATIENCE_SECONDS)
    Console(stderr=True).print(
        f"error: {' '.join(line.split())}", style="red", highlight=False, markup=False, soft_wrap=True
    )
    sys.exit(2)
