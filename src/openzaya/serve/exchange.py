"""One request between its work and its client: started, told, ended or given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

from openzaya.serve.config import Key
from openzaya.serve.conversation import Outcome, Piece, Progress, Started, Tell, Update
from openzaya.serve.guard import told
from openzaya.serve.service import Service
from openzaya.serve.streaming import DONE, event
from openzaya.serve.turns import SharedBackend

_PATIENCE = 5.0
"""Seconds in which a failure may still become a status: after them a stream begins."""


Start = Callable[[SharedBackend, Tell], Coroutine[Any, Any, Outcome]]
"""The work of a request, given its share of the source and who is told how it goes."""


class Reply(Protocol):
    """How one endpoint puts what came of a request."""

    def document(self, outcome: Outcome) -> dict[str, Any]: ...

    def chunks_of(self, update: Progress | Piece) -> Iterator[dict[str, Any]]: ...

    def last_chunks(self, outcome: Outcome) -> Iterator[dict[str, Any]]: ...


class Exchange:
    """The work of one admitted request. Raises ApiError (429, 503) where it is not admitted; close it in any case."""

    def __init__(self, service: Service, key: Key | None, start: Start) -> None:
        self._service = service
        self._places = ExitStack()
        self._places.enter_context(service.admission(key))
        self._updates: asyncio.Queue[Update | None] = asyncio.Queue()
        self._begun = asyncio.Event()
        self._task = asyncio.ensure_future(start(service.shared_backend(), self._tell))
        self._task.add_done_callback(self._ended)

    async def outcome(self) -> Outcome:
        """What came of it; raises what the work raised."""
        outcome = await self._task
        self._service.metrics.count(outcome)
        return outcome

    async def begun(self) -> None:
        """Wait until nothing about the request itself can be wrong, or for some seconds; raises what went wrong."""
        begun = asyncio.ensure_future(self._begun.wait())
        try:
            await asyncio.wait({begun}, timeout=_PATIENCE)
        finally:
            begun.cancel()
        if self._task.done():
            self._task.result()

    async def frames(self, reply: Reply) -> AsyncIterator[bytes]:
        """The events of a stream to its end; a failure is one of them."""
        try:
            while (update := await self._updates.get()) is not None:
                if not isinstance(update, Started):
                    for chunk in reply.chunks_of(update):
                        yield event(chunk)
            for chunk in reply.last_chunks(await self.outcome()):
                yield event(chunk)
        except Exception as error:
            yield event(told(error).envelope())
        yield DONE

    async def aclose(self) -> None:
        """Stop what still runs, at its source, and give the place back."""
        if not self._task.done():
            self._service.metrics.left.inc()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._places.close()

    def _tell(self, update: Update) -> None:
        self._updates.put_nowait(update)
        self._begun.set()

    def _ended(self, task: asyncio.Future[Outcome]) -> None:
        self._updates.put_nowait(None)
        self._begun.set()
        if not task.cancelled():
            task.exception()  # it is raised to whoever waits; nobody may
