"""OpenZAYA: the whole ZAYA1 system in one package.

The names below are loaded when they are first used: importing the package imports neither torch nor a client of HTTP.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openzaya.api import asolve, solve
    from openzaya.engine.engine import Engine
    from openzaya.model.checkpoint import load_model, save_model

__version__ = "0.1.0"

_WHERE = {
    "Engine": "openzaya.engine.engine",
    "asolve": "openzaya.api",
    "load_model": "openzaya.model.checkpoint",
    "save_model": "openzaya.model.checkpoint",
    "solve": "openzaya.api",
}

__all__ = ["Engine", "__version__", "asolve", "load_model", "save_model", "solve"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
