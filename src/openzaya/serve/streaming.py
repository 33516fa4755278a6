"""Honest streams: bytes from the start, comments in every silence, and an end when the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

_STALL_SECONDS = 120.0
"""A client that takes nothing for so long is gone."""
_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold the comments back
}
COMMENT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


class ClientLeft(Exception):
    """Nobody waits for the reply any more."""


def event(document: Any) -> bytes:
    """One event of a stream."""
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def unless_client_leaves(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client closes its connection. Raises ClientLeft then."""
    task = asyncio.ensure_future(work)
    leave = asyncio.ensure_future(_leave(request.receive))
    try:
        await asyncio.wait({task, leave}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return await task
    finally:
        for one in (task, leave):
            one.cancel()
        await asyncio.gather(task, leave, return_exceptions=True)


async def _leave(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response whose events come from `frames`, which is closed when the client leaves or takes nothing."""

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        *,
        on_close: Callable[[], Awaitable[None]],
        keep_alive: float,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(headers={**_HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._frames = frames
        self._on_close = on_close
        self._keep_alive = keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        leave = asyncio.ensure_future(_leave(receive))
        try:
            await asyncio.wait({sending, leave}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        except (OSError, TimeoutError):
            pass  # the connection broke, or the client stopped reading: the same as leaving
        finally:
            for task in (sending, leave):
                task.cancel()
            await asyncio.gather(sending, leave, return_exceptions=True)
            await self._on_close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": COMMENT, "more_body": True})
        frames = aiter(self._frames)
        upcoming: asyncio.Future[bytes] | None = None
        try:
            while True:
                upcoming = asyncio.ensure_future(_next(frames)) if upcoming is None else upcoming
                done, _ = await asyncio.wait({upcoming}, timeout=self._keep_alive)
                frame = COMMENT
                if done:
                    frame, upcoming = upcoming.result(), None
                async with asyncio.timeout(_STALL_SECONDS):
                    await send({"type": "http.response.body", "body": frame, "more_body": bool(frame)})
                if not frame:
                    return
        finally:
            if upcoming is not None:
                upcoming.cancel()
                await asyncio.gather(upcoming, return_exceptions=True)


async def _next(frames: AsyncIterator[bytes]) -> bytes:
    """The next frame; nothing at the end."""
    async for frame in frames:
        return frame
    return b""
