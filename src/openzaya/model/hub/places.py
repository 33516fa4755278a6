"""Where models of the hub are kept, and what a kept folder says of where it came from. Imports no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ORIGIN = "origin.json"
"""Says of a kept folder, and of a working folder, which revision of which model it was made from."""


def kept_folder(repository: str) -> Path:
    """Where the model `org/name` is kept, below XDG_CACHE_HOME (~/.cache)."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "openzaya" / "models" / repository.replace("/", "--")


def origin_of(folder: str | Path) -> dict[str, Any] | None:
    """Which revision of which model a folder was made from: `repository`, `commit`, `identity`, `size`; None for a
    folder that was not made from the hub."""
    try:
        origin = json.loads((Path(folder) / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = {"repository": str, "commit": str, "identity": str, "size": int}
    return origin if all(isinstance(origin.get(name), kind) for name, kind in wanted.items()) else None
