"""The scripts in `conformance/`, as far as they can be tried without installing anything."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest

CONFORMANCE = Path(__file__).resolve().parents[2] / "conformance"


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conformance_run", CONFORMANCE / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


def test_every_suite_is_described_and_its_script_is_there(runner: ModuleType) -> None:
    described = re.findall(r"conformance/run\.py ([\w-]+)`", (CONFORMANCE / "README.md").read_text())
    assert described == [*runner.SUITES, "all"]
    for suite in runner.SUITES.values():
        scripts = [word for word in suite.command if word.endswith((".py", ".mjs"))]
        assert all((CONFORMANCE / script).is_file() for script in scripts)
        assert suite.environment is None or suite.environment in runner.SUITES


def test_every_script_can_be_read_by_python() -> None:
    scripts = list(CONFORMANCE.glob("*.py"))
    assert scripts
    for script in scripts:
        assert ast.parse(script.read_text(encoding="utf-8")).body, script


def test_a_service_over_the_scripted_upstream_answers_calls_tools_and_writes_down_what_it_was_asked(
    runner: ModuleType, tmp_path: Path
) -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    ask = {"model": "zaya", "messages": [{"role": "user", "content": "What is 40 plus 2?"}]}
    with runner.serving(sys.executable, tmp_path) as (url, log):
        reply = httpx.post(f"{url}/v1/chat/completions", json=ask, timeout=60).json()
        called = httpx.post(f"{url}/v1/chat/completions", json={**ask, "tools": tools}, timeout=60).json()
        asked = [json.loads(line) for line in log.read_text().splitlines()]
    assert reply["choices"][0]["message"]["content"] == "The answer is \\boxed{42}."
    assert called["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "add"
    assert len(asked) == 2 * 7
    assert ["tools" in body for body in asked] == [False] * 13 + [True]
