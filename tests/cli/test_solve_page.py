"""`openzaya solve --html`: a run as a page, after it or from its journal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from fake_openai import Failure, FakeServer, Reply

Program = Callable[..., Result]

SMALL = ["-N", 4, "-C", 2, "-T", 1, "--beta", 40, "--tau", 10, "--final-tokens", 60, "--quiet"]
PROBLEM = "Compute 40 + 2."
FOUND = Reply(reasoning="40 and 2 together", content="The answer is \\boxed{42}.")


def kinds(page: Path) -> list[str]:
    (text,) = re.findall(r'id="records">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    return [record["kind"] for record in json.loads(text)]


def test_a_run_is_drawn_when_it_has_ended(openzaya_program: Program, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    with FakeServer(FOUND) as server:
        result = openzaya_program("solve", PROBLEM, "--backend", server.url, "--html", page, "--json", *SMALL)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["journal"] is None
    assert kinds(page) == ["header", *["rollout"] * 8, "end"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.html"]


def test_a_journal_is_drawn_again_without_any_backend(openzaya_program: Program, tmp_path: Path) -> None:
    journal, first, second = (tmp_path / name for name in ("run.jsonl", "first.html", "second.html"))
    with FakeServer(FOUND) as server:
        openzaya_program(
            "solve", PROBLEM, "--backend", server.url, "--journal", journal, "--html", first, *SMALL
        )  # fmt: skip
    result = openzaya_program("solve", "--resume", journal, "--html", second)
    assert (result.exit_code, result.stdout) == (0, "The answer is \\boxed{42}.\n")
    assert second.read_text(encoding="utf-8") == first.read_text(encoding="utf-8")


@pytest.mark.parametrize("torn", [0, 1, 700])
def test_a_journal_that_stops_early_is_drawn_as_far_as_it_goes(
    openzaya_program: Program, tmp_path: Path, torn: int
) -> None:
    journal, page = tmp_path / "run.jsonl", tmp_path / "run.html"
    with FakeServer(FOUND) as server:
        openzaya_program("solve", PROBLEM, "--backend", server.url, "--journal", journal, *SMALL)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1])[: -torn or None])
    result = openzaya_program("solve", "--resume", journal, "--html", page)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "had not ended" in result.stderr
    whole = journal.read_bytes().count(b"\n")
    assert kinds(page) == ["header", *["rollout"] * (whole - 1)]
    assert 1 < whole < len(lines)


def test_a_run_that_failed_is_drawn_with_what_it_had(openzaya_program: Program, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    with FakeServer([*[Failure(status=400, message="never")] * 4]) as server:
        result = openzaya_program("solve", PROBLEM, "--backend", server.url, "--html", page, *SMALL)
    assert result.exit_code == 3
    assert kinds(page) == ["header", *["rollout"] * 4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "PROBLEM is missing"),
        (["--resume", "run.jsonl"], "PROBLEM is missing"),
        (["--html", "run.html"], "PROBLEM is missing"),
        (["--resume", "nowhere.jsonl", "--html", "run.html"], "there is no run in nowhere.jsonl"),
        ([PROBLEM, "--html", "nowhere/run.html"], "does not exist"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_anything_runs(
    openzaya_program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = openzaya_program("solve", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not list(tmp_path.iterdir())
