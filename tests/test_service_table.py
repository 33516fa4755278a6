"""`docs/service.md`: what the comparison with peers says of us is linked to tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "docs" / "service.md"
TEXT = PAGE.read_text(encoding="utf-8")
DEFINED = re.findall(r'^\[([\w-]+)\]: (\S+) "(\w+)"$', TEXT, re.MULTILINE)
"""(reference, file, test function), as the end of the page has them."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def test_every_reference_is_defined_once_and_used() -> None:
    used = set(re.findall(r"\]\[([\w-]+)\]", TEXT))
    names = [name for name, _, _ in DEFINED]
    assert used == set(names)
    assert len(names) == len(set(names))
    assert len(names) == len(re.findall(r"^\[[^\]]+\]:", TEXT, re.MULTILINE)), "a definition without the name of a test"


@pytest.mark.parametrize(("name", "file", "function"), DEFINED, ids=[name for name, _, _ in DEFINED])
def test_a_link_leads_to_a_test_that_exists(name: str, file: str, function: str) -> None:
    path = (PAGE.parent / file).resolve()
    assert path.is_relative_to(REPOSITORY.resolve())
    assert path.is_file(), f"{name}: there is no {file}"
    tests = {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, FUNCTIONS)}
    assert function.startswith("test_")
    assert function in tests, f"{name}: there is no {function} in {file}"


def test_other_links_lead_to_files_and_headings_that_exist() -> None:
    headings = {"#" + line.lstrip("# ").lower().replace(" ", "-") for line in TEXT.splitlines() if line.startswith("#")}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target in headings
        elif not target.startswith("https://"):
            assert (PAGE.parent / target.partition("#")[0]).exists(), target


def test_every_yes_of_ours_is_linked() -> None:
    tables = re.findall(r"^\|[^\n]* \| ours \|.*?(?=\n\n)", "\n" + TEXT, re.MULTILINE | re.DOTALL)
    rows = [line.strip("|").split(" | ") for table in tables for line in table.splitlines()[2:]]
    assert len(tables) == 3
    for name, ours, *_ in rows:
        assert re.fullmatch(r"\[(yes|part)\]\[[\w-]+\].*|no|part", ours.strip(" |")), f"{name}: {ours}"


def test_every_row_has_a_cell_for_each_peer() -> None:
    (table,) = re.findall(r"^\|[^\n]*\| LiteLLM \|\n.*?(?=\n\n)", TEXT, re.MULTILINE | re.DOTALL)
    heading, _, *rows = table.splitlines()
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == heading.count("|") - 1, row
        assert set(cells[2:]) <= {"yes", "part", "no", "?", "n/a"}, row
