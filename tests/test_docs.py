"""The documents say what the code does: commands, settings with their defaults, recipes, links."""

import importlib.util
import re
import tomllib
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from slam.listen import ListenConfig
from slam.recipe import load_recipe
from slam.stages import STAGES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
REQUIRED, MACHINE = object(), object()


def test_the_command_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate_cli", DOCS / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.PAGE.read_text(encoding="utf-8") == generator.cli_page(), (
        "docs/cli.md is old: run python docs/generate_cli.py"
    )


def default_of(item: Field[Any]) -> Any:
    if item.name == "num_workers":
        return MACHINE
    if item.default is not MISSING:
        return list(item.default) if isinstance(item.default, tuple) else item.default
    return item.default_factory() if item.default_factory is not MISSING else REQUIRED


def defaults_of(config: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(config)
    defaults: dict[str, Any] = {}
    for item in fields(config):
        if is_dataclass(kind := hints[item.name]):
            defaults |= {f"{item.name}.{part.name}": default_of(part) for part in fields(kind)}
        else:
            defaults[item.name] = default_of(item)
    return defaults


def stated_defaults(page: str) -> dict[str, Any]:
    """The rows of the table whose first heading is "setting": name → default, which is written in TOML."""
    words = {"required": REQUIRED, "none": None, "number of cores": MACHINE}
    table = page[page.index("| setting | unit | default |") :].split("\n\n", 1)[0]
    stated: dict[str, Any] = {}
    for row in table.splitlines()[2:]:
        name, _, default, *_ = (cell.strip() for cell in row.strip("|").split("|"))
        name = name.strip("`")
        assert name not in stated, f"{name} stands twice"
        stated[name] = words[default] if default in words else tomllib.loads(f"x = {default.strip('`')}")["x"]
    return stated


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_stands_in_its_page_with_its_default(stage: str) -> None:
    page = (DOCS / "stages" / f"{stage}.md").read_text(encoding="utf-8")
    assert stated_defaults(page) == defaults_of(STAGES[stage].config)


def test_every_setting_of_the_local_page_stands_in_its_document() -> None:
    stated = stated_defaults((DOCS / "listen.md").read_text(encoding="utf-8"))
    assert stated == defaults_of(ListenConfig) | {"MODEL": REQUIRED}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{target}: nothing is there"
        if anchor:
            assert anchor in anchors(path), f"{target}: no such heading"


def anchors(page: Path) -> set[str]:
    """The names that a page's headings are linked by: small letters, dashes for spaces, no other signs."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["your-own-audio", "stages/run"])
def test_whole_recipes_load(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-recordings").mkdir()
    (tmp_path / "my-text.txt").write_text("A line.\n")
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    recipes = [
        block for block in re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL) if "folder =" in block
    ]
    assert recipes
    for recipe in recipes:
        (tmp_path / "recipe.toml").write_text(recipe)
        assert load_recipe(tmp_path / "recipe.toml").steps
