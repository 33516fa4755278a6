"""Who is told of a model on its way from the hub, and may stop it before it sets out."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Protocol

from openzaya.model.hub.plan import Plan, gigabytes

_log = logging.getLogger("openzaya.hub")
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes that came from the hub and bytes that were written quantised, each of how many."""

    downloaded: int
    to_download: int
    written: int
    to_write: int


class Journey(Protocol):
    """What a caller does at each stage; the defaults of the library are those of `LoggedJourney`."""

    def begin(self, plan: Plan) -> None:
        """Before anything is downloaded; whatever this raises ends it there."""
        ...

    def progress(self, progress: Progress) -> None:
        """After every chunk, from several threads but never from two at once."""
        ...

    def tell(self, sentence: str) -> None:
        """Something that a person should know."""
        ...


class LoggedJourney:
    """Goes on where memory suffices, and writes to the log `openzaya.hub` on the level INFO, warnings on WARNING."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def begin(self, plan: Plan) -> None:
        """Raises ValueError where the model does not fit into memory."""
        for line in plan.lines():
            _log.info("%s", line)
        plan.require_memory()

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            _log.info(
                "%s of %s downloaded, %s of %s written",
                *map(gigabytes, (progress.downloaded, progress.to_download, progress.written, progress.to_write)),
            )

    def tell(self, sentence: str) -> None:
        _log.warning("%s", sentence)
