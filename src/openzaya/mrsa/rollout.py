"""One rollout: a stream read to its end, or to the moment it is cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from openzaya.backends.protocol import Backend, BackendError, ChatParams, Delta, Message, Reply, Usage
from openzaya.mrsa.candidate import FAILED

_PROGRESS_SECONDS = 0.1
_CHARACTERS_PER_TOKEN = 4.0
"""For progress and budgets while a source counts nothing along; the final count corrects it."""


@dataclass(slots=True)
class Plan:
    """A rollout to run. Setting `cut` to a finish reason before cancelling its task makes that the way it ends."""

    round: int
    index: int
    seed: int
    tails_read: tuple[int, ...]
    messages: Sequence[Message]
    params: ChatParams
    cut: str | None = None


@dataclass(slots=True)
class Outcome:
    """What came of a plan: the reply so far, how it ended, and the tokens counted along the way."""

    reply: Reply = field(default_factory=Reply)
    finish_reason: str = ""
    counted: float = 0.0
    exact: bool = True
    """Whether the source gave ids or counts with every piece, so that `counted` is its own figure."""
    error: BackendError | None = None
    started: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Watch:
    """What a rollout tells while it runs."""

    clock: Callable[[], float]
    """Seconds since the run began."""
    on_start: Callable[[Plan], None]
    on_delta: Callable[[Plan, Delta], None]
    on_progress: Callable[[Plan, int], None]
    """Generated tokens of this rollout, at most ten times a second."""
    on_tokens: Callable[[float], None]
    """Generated tokens of this piece, for the budget."""


async def run_rollout(plan: Plan, backend: Backend, gate: asyncio.Semaphore | None, watch: Watch) -> Outcome:
    """Generate one reply, holding a place in `gate` meanwhile.

    A BackendError ends it as failed and a cut (see `Plan`) with what was written so far; any other cancellation is the
    caller's and passes through. The stream is closed in every case.
    """
    outcome = Outcome(started=watch.clock())
    try:
        if gate is None:
            await _stream(plan, backend, outcome, watch)
        else:
            async with gate:
                outcome.started = watch.clock()
                await _stream(plan, backend, outcome, watch)
        outcome.finish_reason = outcome.reply.finish_reason or "stop"
    except BackendError as error:
        outcome.error = error
        outcome.finish_reason = FAILED
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if plan.cut is None or task is None or task.uncancel() > 0:
            raise
        outcome.finish_reason = plan.cut
    outcome.seconds = watch.clock() - outcome.started
    return outcome


async def _stream(plan: Plan, backend: Backend, outcome: Outcome, watch: Watch) -> None:
    watch.on_start(plan)
    told = outcome.started - _PROGRESS_SECONDS
    async with _closing(backend.chat(plan.messages, plan.params)) as stream:
        async for delta in stream:
            outcome.reply.add(delta)
            tokens = _count(delta, outcome)
            outcome.counted += tokens
            watch.on_delta(plan, delta)
            watch.on_tokens(tokens)
            now = watch.clock()
            if now - told >= _PROGRESS_SECONDS:
                told = now
                watch.on_progress(plan, round(outcome.counted))


def _count(delta: Delta, outcome: Outcome) -> float:
    reported = delta.tokens or len(delta.reasoning_ids) + len(delta.content_ids)
    if reported:
        return float(reported)
    written = len(delta.reasoning) + len(delta.content)
    if written:
        outcome.exact = False
    return written / _CHARACTERS_PER_TOKEN


@asynccontextmanager
async def _closing(stream: AsyncIterator[Delta]) -> AsyncIterator[AsyncIterator[Delta]]:
    try:
        yield stream
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


async def usage_of(outcome: Outcome, backend: Backend, characters_per_token: float | None) -> Usage:
    """What a rollout cost: the source's own count, else its counts along the way, else its tokenizer's, else by length.

    Prompt tokens are known only from the source's own count.
    """
    if outcome.reply.usage is not None:
        return outcome.reply.usage
    text = outcome.reply.reasoning + outcome.reply.content
    if outcome.exact:
        return Usage(completion_tokens=round(outcome.counted))
    try:
        counted = await backend.count(text)
    except BackendError:
        counted = None
    if counted is None:
        counted = round(len(text) / (characters_per_token or _CHARACTERS_PER_TOKEN))
    return Usage(completion_tokens=counted)
