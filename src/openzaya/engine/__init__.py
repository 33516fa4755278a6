"""Tokens from a ZAYA model on this machine: continuous batching over paged state behind one `Executor.step` seam."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openzaya.engine.engine import Engine, EngineError, Output, Piece, Request

__all__ = ["Engine", "EngineError", "Output", "Piece", "Request"]


def __getattr__(name: str) -> Any:
    # torch is imported by the first use of an engine, not by `openzaya.engine.params`.
    if name in __all__:
        from openzaya.engine import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
