from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from typer.testing import Result

import openzaya
from fake_openai import FakeServer, Reply
from openzaya.cli import exits

Program = Callable[..., Result]

VERBS = ["solve", "serve", "chat", "eval", "train", "convert", "quantize", "info"]

LIGHT = """
import sys
from openzaya.cli.main import app
for arguments in {runs}:
    try:
        app(arguments)
    except SystemExit as ending:
        print(ending.code, file=sys.stderr)
heavy = ("torch", "transformers", "safetensors", "math_verify", "numpy.random")
print("LOADED", [name for name in heavy if name in sys.modules], file=sys.stderr)
"""


def test_neither_help_nor_a_server_needs_torch() -> None:
    with FakeServer(Reply(content="\\boxed{42}")) as server:
        runs = [["--help"], *([verb, "--help"] for verb in VERBS)]
        runs.append(["solve", "--backend", server.url, "Compute 40 + 2.", "-N", "2", "-C", "1", "--quiet"])
        done = subprocess.run(
            [sys.executable, "-c", LIGHT.format(runs=runs)], capture_output=True, text=True, timeout=240, check=False
        )
    assert done.stderr.splitlines()[-1] == "LOADED []", done.stderr
    assert done.stderr.splitlines()[:-1] == ["0"] * len(runs)
    assert done.stdout.endswith("\\boxed{42}\n")


def test_every_verb_of_this_release_is_there_and_no_other(openzaya_program: Program) -> None:
    listed = openzaya_program("--help").stdout
    assert all(f" {verb} " in listed for verb in VERBS)
    assert openzaya_program("rl").exit_code == 2


def test_the_version_is_printed(openzaya_program: Program) -> None:
    result = openzaya_program("--version")
    assert (result.exit_code, result.stdout) == (0, f"openzaya {openzaya.__version__}\n")


@pytest.mark.parametrize("arguments", [["solve"], ["solve", "x", "-N", "many"], ["nonsense"], ["solve", "x", "--bta"]])
def test_wrong_usage_is_code_2(openzaya_program: Program, arguments: list[str]) -> None:
    result = openzaya_program(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_debug_adds_the_traceback_and_keeps_the_code(openzaya_program: Program) -> None:
    result = openzaya_program("--debug", "solve", "x", "--preset", "gigantic")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "openzaya: there is no preset 'gigantic'" in result.stderr


def test_a_missing_extra_is_named_with_its_remedy() -> None:
    missing = ModuleNotFoundError("No module named 'torch'", name="torch")
    sentence, code = exits.explain(missing)
    assert code == 2
    assert "pip install 'openzaya[local]'" in sentence


def test_what_nobody_foresaw_is_code_1_and_points_to_debug() -> None:
    sentence, code = exits.explain(ZeroDivisionError("division by zero"))
    assert (sentence, code) == ("unforeseen ZeroDivisionError: division by zero (openzaya --debug shows where)", 1)


def test_a_file_that_cannot_be_used_is_named() -> None:
    assert exits.explain(PermissionError(13, "Permission denied", "/x/y")) == ("/x/y: Permission denied", 2)
