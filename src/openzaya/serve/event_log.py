"""The events of one response, numbered: kept before they are told where its stream can be resumed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from openzaya.serve.store import Store


class EventLog:
    """Takes events in order and tells them to any number of followers, from any number on."""

    def __init__(self, store: Store | None = None, job: str = "") -> None:
        """With a `store` an event is told once it is kept there."""
        self._store = store
        self._job = job
        self._told: list[str] = []
        self._taken = 0
        self._closing = False
        self._changed = asyncio.Event()

    async def restore(self) -> list[str]:
        """Begin with the events that an earlier service kept, and return them."""
        if self._store is not None:
            self._told = await self._store.events(self._job)
            self._taken = len(self._told)
        return self._told

    def add(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Take further events; each gets its `sequence_number`."""
        texts = [_text(event, self._taken + place) for place, event in enumerate(events)]
        if not texts:
            return
        first, self._taken = self._taken, self._taken + len(texts)
        if self._store is None:
            self._tell(texts)
            return
        kept = self._store.add_events(self._job, first, texts)
        kept.add_done_callback(lambda done: self._tell(texts if done.exception() is None else []))

    def close(self) -> None:
        """There will be no more."""
        self._closing = True
        self._tell([])

    async def follow(self, first: int = 0) -> AsyncIterator[str]:
        """The events from number `first` on, as JSON, until the last."""
        while True:
            changed = self._changed
            while first < len(self._told):
                yield self._told[first]
                first += 1
            if self._closing and len(self._told) >= self._taken:
                return
            await changed.wait()

    def _tell(self, texts: Sequence[str]) -> None:
        self._told.extend(texts)
        if not texts and len(self._told) < self._taken and not self._closing:
            self._taken = len(self._told)  # the store failed: what was not kept is not told
        self._changed.set()
        self._changed = asyncio.Event()


def _text(event: Mapping[str, Any], number: int) -> str:
    return json.dumps({**event, "sequence_number": number}, separators=(",", ":"))
