"""The command table → docs/cli.md; `python docs/generate_cli.py` writes it, tests/test_docs.py checks it."""
# ruff: noqa: INP001 - a script, in no package

import re
import sys
from pathlib import Path
from unittest.mock import patch

from slam.cli import app

PAGE = Path(__file__).parent / "cli.md"
_NOTE = "<!-- written by docs/generate_cli.py -->\n\n"


def cli_page() -> str:
    """The page, the same on every machine and however it is called: the number of cores is left out."""
    with patch.object(sys, "argv", ["slam"]):  # cyclopts reads the usage line's program from it
        page = app.generate_docs(output_format="markdown")
    page = re.sub(r"(`--num-workers .*)\*\[default: \d+\]\*", r"\1*[default: number of cores]*", page)
    return _NOTE + page.rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(cli_page(), encoding="utf-8")
