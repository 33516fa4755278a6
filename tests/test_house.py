"""The floors of the house: which room may use which."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "src" / "openzaya"


def test_no_room_uses_a_room_that_is_not_below_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_stands_on_a_floor() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    floors = {room.strip() for layer in contract["layers"] for room in layer.split("|")}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_")}
    assert {f"openzaya.{name}" for name in rooms | modules} == floors


def test_every_room_has_its_page() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    pages = {path.stem for path in (REPOSITORY / "docs").glob("*.md")}
    assert rooms <= pages
