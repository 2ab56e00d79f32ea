"""Every `evenhand` command line in the documentation is one that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from jobs.cli import app

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "infra").rglob("*.md"))]
LINE = re.compile(r"(?:^ {4,}|-- )evenhand (?P<words>[a-z].*)")


def lines() -> list[str]:
    """Without comments, what the shell does further, and what is left out."""
    found = [match["words"] for file in FILES for line in file.read_text().splitlines() if (match := LINE.search(line))]
    return sorted({re.split(r"\s+#| \|\| | > | \\$", text)[0].strip() for text in found})


@pytest.mark.parametrize("line", lines())
def test_the_command_line_takes_it(line: str) -> None:
    words = [word for word in shlex.split(line) if word != "..."]
    command = typer.main.get_command(app)
    while words and (below := getattr(command, "commands", None)):
        command = below[words.pop(0)]
    # click refuses options that there are none of, and what is missing; nothing is run.
    command.make_context(line, words)


def test_there_are_some() -> None:
    assert len(lines()) > 20
