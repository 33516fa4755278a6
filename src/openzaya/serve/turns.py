"""Fair turns: which waiting rollout is sent next when the source takes only so many at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from openzaya.backends.protocol import Backend, BackendError, Capabilities, ChatParams, Delta, Message, Usage
from openzaya.engine.params import SamplingParams


@dataclass(eq=False, slots=True)
class Share:
    """What one request holds of the source and waits for."""

    urgent: bool = False
    """Its final call: somebody is about to read the answer."""
    held: int = 0
    served: int = 0
    """When it last got a turn, in turns given."""
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    usage: Usage = field(default_factory=Usage)
    """What it has cost so far, as its sources counted; a rollout that was cut off is not in it."""


class Turns:
    """At most `at_once` rollouts; a free place goes to a final call, else to the request that holds the fewest."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._given = 0
        self._shares: dict[Share, None] = {}  # in the order in which they came: that settles ties

    @property
    def waiting(self) -> int:
        """Rollouts that wait for a place."""
        return sum(len(share.waiting) for share in self._shares)

    @asynccontextmanager
    async def turn(self, share: Share) -> AsyncIterator[None]:
        """A place at the source, waited for."""
        await self._acquire(share)
        try:
            yield
        finally:
            self._release(share)

    async def _acquire(self, share: Share) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        share.waiting.append(place)
        self._shares[share] = None
        self._hand_out()
        try:
            await place
        except asyncio.CancelledError:
            if place in share.waiting:
                share.waiting.remove(place)
                self._forget(share)
            elif not place.cancelled():
                self._release(share)
            raise

    def _release(self, share: Share) -> None:
        share.held -= 1
        self._free += 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and self._shares:
            share = min(self._shares, key=lambda share: (not share.urgent, share.held, share.served))
            place = share.waiting.popleft()
            self._forget(share)
            if place.cancelled():
                continue
            self._free -= 1
            self._given += 1
            share.held += 1
            share.served = self._given
            place.set_result(None)

    def _forget(self, share: Share) -> None:
        if not share.waiting:
            self._shares.pop(share, None)


class SharedBackend:
    """A `Backend` as one request sees it: the same source, in turns with all other requests."""

    def __init__(
        self, backend: Backend, turns: Turns, final: Backend | None = None, share: Share | None = None
    ) -> None:
        self.share = share or Share()
        self.at_final = False
        """What is asked now is the final call."""
        self._backend = backend
        self._turns = turns
        self._final = final

    def of_choice(self) -> SharedBackend:
        """The same for one of several choices, which comes to its final call in its own time."""
        return SharedBackend(self._backend, self._turns, self._final, self.share)

    @property
    def capabilities(self) -> Capabilities:
        return self._backend.capabilities

    async def chat(self, messages: Sequence[Message], params: ChatParams) -> AsyncGenerator[Delta]:
        """As the source's own, once it is this request's turn."""
        source = self._final if self._final is not None and self.at_final else self._backend
        async with self._turns.turn(self.share), aclosing(_generator(source.chat(messages, params))) as deltas:
            async for delta in deltas:
                if delta.usage is not None:
                    self.share.usage += delta.usage
                yield delta

    async def complete(self, prompt: str | Sequence[int], params: SamplingParams) -> AsyncGenerator[Delta]:
        """As the source's own, once it is this request's turn."""
        async with self._turns.turn(self.share), aclosing(_generator(self._backend.complete(prompt, params))) as deltas:
            async for delta in deltas:
                if delta.usage is not None:
                    self.share.usage += delta.usage
                yield delta

    async def count(self, text: str) -> int | None:
        return await self._backend.count(text)

    async def encode(self, text: str) -> list[int] | None:
        return await self._backend.encode(text)

    async def decode(self, ids: Sequence[int]) -> str | None:
        return await self._backend.decode(ids)

    async def swap_weights(self, source: Any) -> None:
        """Not for a client of the service: raises BackendError."""
        raise BackendError("a request cannot replace the weights of the service", status=400)

    async def aclose(self) -> None:
        """Nothing: the source belongs to the service."""


def _generator(stream: AsyncIterator[Delta]) -> Any:
    """The protocol promises an iterator that can be closed; its type does not say so."""
    return stream
