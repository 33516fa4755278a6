"""Admitted work and its clients: started, told, followed by any number of them, ended or given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

from openzaya.serve.config import Key
from openzaya.serve.conversation import Outcome, Piece, Progress, Started, Tell, Update
from openzaya.serve.errors import ApiError
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


class Undertaking:
    """The work of one admitted request, and what it has told so far.

    It ends with its last follower, unless it is `unattended`. Raises ApiError (429, 503) where it is not admitted,
    which it has been already if it is `resumed`.
    """

    def __init__(
        self, service: Service, key: Key | None, start: Start, *, unattended: bool = False, resumed: bool = False
    ) -> None:
        self._service = service
        self._key = key
        self._unattended = unattended
        self._followers = 0
        self._places = ExitStack()
        self._places.enter_context(service.admission(key, resumed=resumed))
        self._backend = service.shared_backend()
        self.updates: list[Update] = []
        self.begun = asyncio.Event()
        self.changed = asyncio.Event()
        """Set at the next update, and then replaced."""
        self.task: asyncio.Future[Outcome] = asyncio.ensure_future(start(self._backend, self._tell))
        self.task.add_done_callback(self._ended)

    def follow(self) -> None:
        """One more waits for what comes of it."""
        self._followers += 1

    async def leave(self) -> None:
        """One fewer does; without any it stops, at its source."""
        self._followers -= 1
        if self._followers > 0 or self._unattended:
            return
        if not self.task.done():
            self._service.metrics.left.inc()
        await self.stop()

    async def stop(self) -> None:
        """End what still runs, at its source."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def _tell(self, update: Update) -> None:
        if not isinstance(update, Started):
            self.updates.append(update)
        self._change()

    def _change(self) -> None:
        self.begun.set()
        self.changed.set()
        self.changed = asyncio.Event()

    def _ended(self, task: asyncio.Future[Outcome]) -> None:
        outcome = None if task.cancelled() or task.exception() is not None else task.result()
        self._service.account(self._key, outcome, self._backend.share)
        self._places.close()
        self._change()


class Exchange:
    """What one client has of some work. Close it in any case."""

    def __init__(self, work: Undertaking) -> None:
        """With work that others may follow too."""
        self._work = work
        self._left = False
        work.follow()

    async def outcome(self) -> Outcome:
        """What came of it; raises what the work raised, or ApiError where somebody else cancelled it."""
        await asyncio.wait({self._work.task})
        if self._work.task.cancelled():
            raise ApiError(409, "the work was cancelled", code="cancelled")
        return self._work.task.result()

    async def begun(self) -> None:
        """Wait until nothing about the request itself can be wrong, or for some seconds; raises what went wrong."""
        begun = asyncio.ensure_future(self._work.begun.wait())
        try:
            await asyncio.wait({begun}, timeout=_PATIENCE)
        finally:
            begun.cancel()
        if self._work.task.done():
            await self.outcome()

    async def frames(self, reply: Reply) -> AsyncIterator[bytes]:
        """The events of a stream to its end; a failure is one of them."""
        work = self._work
        seen = 0
        try:
            while True:
                changed = work.changed
                while seen < len(work.updates):
                    update = work.updates[seen]
                    seen += 1
                    if not isinstance(update, Started):
                        for chunk in reply.chunks_of(update):
                            yield event(chunk)
                if work.task.done():
                    break
                await changed.wait()
            for chunk in reply.last_chunks(await self.outcome()):
                yield event(chunk)
        except Exception as error:
            yield event(told(error).envelope())
        yield DONE

    async def aclose(self) -> None:
        """Leave the work, which ends with its last client."""
        if not self._left:
            self._left = True
            await self._work.leave()


class Finished:
    """An exchange about work that had ended before."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    async def outcome(self) -> Outcome:
        return self._outcome

    async def begun(self) -> None: ...

    async def frames(self, reply: Reply) -> AsyncIterator[bytes]:
        """The whole reply in one go."""
        for chunk in reply.last_chunks(self._outcome):
            yield event(chunk)
        yield DONE

    async def aclose(self) -> None: ...
