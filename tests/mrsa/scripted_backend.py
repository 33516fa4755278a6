"""A source of tokens that follows a script: it can fail, stall, be slow, and give ids or not, and it logs everything.

Its tokenizer is one token a byte, so that every length can be checked by hand.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openzaya.backends.protocol import BackendError, Capabilities, ChatParams, Delta, Message, Usage


@dataclass
class Script:
    """One reply: a piece of text a step, then how it ends."""

    reasoning: str = ""
    content: str = ""
    finish_reason: str = "stop"
    fails_after: int | None = None
    """Pieces before a BackendError."""
    stalls_after: int | None = None
    """Pieces before it waits for ever."""
    pause: float = 0.0
    """Seconds before each piece."""
    piece: int = 7
    """Characters of a piece."""


@dataclass
class Call:
    messages: Sequence[Message]
    params: ChatParams
    closed: bool = False
    ended: bool = False

    @property
    def prompt(self) -> str:
        content = self.messages[-1]["content"]
        return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


Writer = Callable[[Sequence[Message], ChatParams], Script]


@dataclass
class ScriptedBackend:
    """`write` decides each reply from the request; `ids`, `tokenize`, `usage` and `tokens` are what it offers."""

    write: Writer
    ids: bool = True
    tokenize: bool = True
    usage: bool = True
    tokens: bool = False
    context: int | None = None
    model: str | None = "scripted"
    calls: list[Call] = field(default_factory=list)
    open_now: int = 0
    open_most: int = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            token_ids=self.ids, tokenize=self.tokenize, seed=True, context=self.context, model=self.model
        )

    async def chat(self, messages: Sequence[Message], params: ChatParams) -> AsyncIterator[Delta]:
        call = Call(messages, params)
        self.calls.append(call)
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        try:
            async for delta in self._stream(self.write(messages, params), params):
                yield delta
            call.ended = True
        finally:
            self.open_now -= 1
            call.closed = True

    async def _stream(self, script: Script, params: ChatParams) -> AsyncIterator[Delta]:
        limit = params.max_tokens
        spent = 0
        pieces = [("reasoning", piece) for piece in _cut(script.reasoning, script.piece)]
        pieces += [("content", piece) for piece in _cut(script.content, script.piece)]
        finish = script.finish_reason
        over = False
        for number, (channel, piece) in enumerate(pieces):
            if number == script.fails_after:
                raise BackendError("the server went away", status=502)
            if number == script.stalls_after:
                await asyncio.Event().wait()
            await asyncio.sleep(script.pause)
            ids = piece.encode()
            if limit is not None and spent + len(ids) > limit:
                ids = ids[: limit - spent]
                piece = ids.decode(errors="ignore")
                finish, over = "length", True
            spent += len(ids)
            yield Delta(
                **{channel: piece},
                **({f"{channel}_ids": tuple(ids)} if self.ids else {}),
                tokens=len(ids) if self.tokens else 0,
            )
            if over:
                break
        if script.fails_after is not None and script.fails_after >= len(pieces):
            raise BackendError("the server went away", status=502)
        usage = Usage(prompt_tokens=10, completion_tokens=spent, cached_tokens=3) if self.usage else None
        yield Delta(finish_reason=finish, usage=usage)

    def complete(self, prompt: Any, params: Any) -> AsyncIterator[Delta]:
        raise NotImplementedError

    async def count(self, text: str) -> int | None:
        return len(text.encode()) if self.tokenize else None

    async def encode(self, text: str) -> list[int] | None:
        return list(text.encode()) if self.tokenize else None

    async def decode(self, ids: Sequence[int]) -> str | None:
        return bytes(ids).decode(errors="replace") if self.tokenize else None

    async def swap_weights(self, source: Any) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        return None


def _cut(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def by_seed(answers: Sequence[str], reasoning: str = "thought of {seed} ") -> Writer:
    """Replies whose answer is drawn by the request's seed: the same request always gives the same reply."""

    def write(messages: Sequence[Message], params: ChatParams) -> Script:
        generator = random.Random(params.seed)
        answer = generator.choice(list(answers))
        thought = reasoning.replace("{seed}", str(params.seed)) * generator.randint(1, 4)
        return Script(reasoning=thought, content=f"So it is \\boxed{{{answer}}}.")

    return write


def always(script: Script) -> Writer:
    """The same reply to every request."""
    return lambda messages, params: script


def in_turn(*scripts: Script) -> Writer:
    """Replies in the order in which they are asked for, the last one for ever."""
    left = list(scripts)

    def write(messages: Sequence[Message], params: ChatParams) -> Script:
        return left.pop(0) if len(left) > 1 else left[0]

    return write
