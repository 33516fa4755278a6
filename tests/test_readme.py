"""Every command and snippet of the README runs, in the order in which a reader meets them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_openai import FakeServer, Reply

REPOSITORY = Path(__file__).parent.parent
SERVER = "http://127.0.0.1:8000/v1"
THIS_SUITE = {"make test", "make test-all", "make lint"}
"""Commands that run what is running now: for these it is checked only that they could run."""


def fences() -> Iterator[tuple[int, str, str]]:
    """(line, language, content) of every fence of the README."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text[: found.start()].count("\n") + 1, found[1], found[2]


def cases() -> list[object]:
    found: list[object] = []
    for line, language, content in fences():
        name = f"line {line}: {content.strip().splitlines()[-1]}"
        # What runs a model loads torch first.
        quick = set(content.strip().splitlines()) <= THIS_SUITE or SERVER in content
        found.append(pytest.param(language, content, id=name, marks=[] if quick else [pytest.mark.slow]))
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to run in, which has the environment where a reader has it."""
    environment = tmp_path / ".venv" / "bin"
    environment.mkdir(parents=True)
    (environment / "activate").write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n', encoding="utf-8")
    return tmp_path


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("language", "content"), cases())
def test_what_the_readme_shows_runs(language: str, content: str, place: Path) -> None:
    with FakeServer(Reply(reasoning="counting them", content="There are \\boxed{25}."), context=131072) as server:
        content = content.replace(SERVER, server.url)
        if language == "python":
            run([sys.executable, "-c", content], place)
            return
        assert language == "bash", f"a fence in {language!r} is never run; use bash or python, or an indented block"
        for command in THIS_SUITE & set(content.strip().splitlines()):
            content = content.replace(command, command.replace("make", "make --dry-run", 1))
        run(["bash", "-euo", "pipefail", "-c", content], REPOSITORY if content.startswith("make") else place)


def run(command: list[str], folder: Path) -> None:
    """Run to the end without an input; fails with what was written."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_that_the_readme_points_to_exist() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    targets = {target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target}
    missing = sorted(target for target in targets if not (REPOSITORY / target).exists())
    assert not missing
    assert "docs/images/solve.svg" in targets


def test_the_picture_is_of_the_bundled_model() -> None:
    drawn = (REPOSITORY / "docs" / "images" / "solve.svg").read_text(encoding="utf-8")
    assert "·&#160;tiny" in drawn, "draw it again: python docs/images/make_live_view.py"
