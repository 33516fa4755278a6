from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from fake_openai import FakeServer, Reply, Request

Program = Callable[..., Result]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    lines = [{"question": f"Compute {number} + 2.", "answer": str(number + 2)} for number in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def always_four(_request: Request) -> Reply:
    return Reply(reasoning="adding", content="So \\boxed{4}.")


def test_a_file_of_questions_is_scored(openzaya_program: Program, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    with FakeServer(always_four) as server:
        result = openzaya_program("eval", questions, "--backend", server.url, "--samples", 2, "--out", out, "--json")
        asked = len(server.requests)
        again = openzaya_program("eval", questions, "--backend", server.url, "--samples", 2, "--out", out, "--quiet")
        assert len(server.requests) == asked, "a finished evaluation asks nothing again"
    report = json.loads(result.stdout)
    assert result.exit_code == 0, result.stderr
    assert {row["mean"]["value"] for row in report["rows"]} == {0.25}
    assert again.exit_code == 0
    assert "25.0" in again.stdout
    assert again.stderr == ""
    assert (out / "results.jsonl").exists()


def test_several_modes_run_side_by_side(openzaya_program: Program, questions: Path) -> None:
    with FakeServer(always_four) as server:
        result = openzaya_program(
            "eval", questions, "--backend", server.url, "--mode", "single", "--mode", "mrsa", "--preset", "light",
            "--limit", 2, "--quiet",
        )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "mrsa" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-family"], "there is no benchmark 'no-such-family'"),
        (["arithmetic_chain", "--mode", "best"], "modes are ['best']"),
        (["spec.toml", "--limit", "3"], "--limit cannot be given beside spec.toml"),
        (["spec.toml"], "cannot read the evaluation spec.toml"),
        (["arithmetic_chain", "--limit", "0"], "limit is 0"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(openzaya_program: Program, arguments: list[str], says: str) -> None:
    result = openzaya_program("eval", *arguments, "--quiet")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
