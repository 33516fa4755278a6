"""A plain reply kept as a run of one candidate, so that it is watched and reopened like any other run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from openzaya.backends.protocol import Message
from openzaya.mrsa.candidate import Candidate
from openzaya.mrsa.course import retell
from openzaya.mrsa.journal import End, Header, Journal, hash_of
from openzaya.mrsa.prompts import detect_task, question_text
from openzaya.mrsa.selection import read_answer
from openzaya.serve.conversation import Outcome, Piece, Tell, Update, choice_of, converse
from openzaya.serve.run_feed import RunFeed
from openzaya.serve.turns import SharedBackend
from openzaya.serve.work import Work


async def reply_directly(
    work: Work, messages: Sequence[Message], feed: RunFeed, backend: SharedBackend, tell: Tell
) -> Outcome:
    """One plain reply, told to `feed` as it is written; what its journal holds already is not asked for again.

    Raises what `converse` raises.
    """
    kept = await feed.sink.read()
    header = _header(work, messages, backend) if kept is None else kept.header
    if kept is None:
        await feed.sink.write(header)
    candidate = None if kept is None else kept.latest().get((0, 0))
    if candidate is None:
        candidate = await _candidate(work, messages, feed, backend, tell, header.task)
        await feed.sink.write(candidate)
    end = End(finish_reason="answered", seconds=candidate.seconds)
    await feed.sink.write(end)
    feed.on_solution(await retell(Journal(header, (candidate,), end), None, None))
    return Outcome(choices=(choice_of(candidate),), usage=candidate.usage)


def _header(work: Work, messages: Sequence[Message], backend: SharedBackend) -> Header:
    config = work.config.model_dump()
    return Header(
        question_hash=hash_of(list(messages)),
        config_hash=hash_of(config),
        model=backend.capabilities.model,
        messages=list(messages),
        config=config,
        task=detect_task(question_text(messages)),
        controls={"forces_final": False},
    )


async def _candidate(
    work: Work, messages: Sequence[Message], feed: RunFeed, backend: SharedBackend, tell: Tell, task: Any
) -> Candidate:
    loop = asyncio.get_running_loop()
    started = loop.time()
    feed.on_started(0, 0)

    def passed_on(update: Update) -> None:
        if isinstance(update, Piece):
            feed.on_text(update.content, update.reasoning)
        tell(update)

    outcome = await converse(work, messages, backend, passed_on)
    choice = outcome.choices[0]
    return Candidate(
        round=0,
        index=0,
        seed=work.config.seed,
        finish_reason=choice.finish_reason,
        usage=outcome.usage,
        started=0.0,
        seconds=loop.time() - started,
        reasoning=choice.reasoning,
        content=choice.content,
        answer=read_answer(choice.content, choice.finish_reason, task),
        tool_calls=choice.tool_calls,
    )
