"""A backend with a bound on what is in flight, counted as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from openzaya.backends.protocol import Backend, ChatParams, Delta, Message


class MeteredBackend:
    """A backend with a bound on the rollouts in flight, which counts tokens and ended rollouts as they come.

    All but `chat` is the inner backend's own.
    """

    def __init__(self, inner: Backend, concurrency: int, on_tokens: Callable[[int, bool], None]) -> None:
        """`on_tokens` is told new tokens, and whether a rollout has ended."""
        self._inner, self._gate, self._on_tokens = inner, asyncio.Semaphore(concurrency), on_tokens

    async def chat(self, messages: Sequence[Message], params: ChatParams) -> AsyncGenerator[Delta]:
        async with self._gate, aclosing(self._inner.chat(messages, params)) as deltas:  # type: ignore[type-var]
            counted = 0
            try:
                async for delta in deltas:
                    new = delta.tokens or len(delta.reasoning_ids) + len(delta.content_ids)
                    if delta.usage is not None:
                        new = max(new, delta.usage.completion_tokens - counted)
                    counted += new
                    self._on_tokens(new, False)
                    yield delta
            finally:
                self._on_tokens(0, True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
