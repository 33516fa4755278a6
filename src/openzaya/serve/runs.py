"""The runs of the playground: started apart from any connection, watched by their id, stopped only when asked."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from functools import partial

from openzaya.backends.protocol import Message
from openzaya.mrsa.candidate import Candidate
from openzaya.mrsa.course import retell
from openzaya.mrsa.journal import End, Header, Journal, hash_of
from openzaya.mrsa.prompts import detect_task, question_text
from openzaya.mrsa.selection import read_answer
from openzaya.serve.config import Key
from openzaya.serve.conversation import Outcome, Piece, Tell, Update, converse
from openzaya.serve.errors import ApiError
from openzaya.serve.exchange import Exchange
from openzaya.serve.guard import told
from openzaya.serve.run_feed import RunFeed
from openzaya.serve.run_records import Record, records_of
from openzaya.serve.service import Service
from openzaya.serve.stored_runs import StoredRun, StoredRuns
from openzaya.serve.turns import SharedBackend
from openzaya.serve.work import Work


class Runs:
    """Every run that can be watched: those at work, and those that the store keeps, as long as it keeps responses."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._archive = StoredRuns(service.store, service.config.keep_responses)
        self._at_work: dict[str, tuple[RunFeed, asyncio.Task[None]]] = {}

    async def start(self, key: Key | None, work: Work, messages: Sequence[Message]) -> str:
        """Start a run and return its id. Raises ApiError (429, 503) where it is not admitted, PromptError."""
        question_text(messages)
        run_id = f"run_{secrets.token_hex(12)}"
        sink = await self._archive.open(run_id, None if key is None else key.name)
        feed = RunFeed(sink)
        try:
            exchange = Exchange(self._service, key, partial(_perform, work, messages, feed))
        except BaseException:
            await self._archive.close(run_id, {"kind": "stopped"})
            raise
        task = asyncio.create_task(self._finish(run_id, feed, exchange))
        self._at_work[run_id] = feed, task
        return run_id

    async def watch(self, key: Key | None, run_id: str, seen: int = 0) -> AsyncIterator[tuple[int, Record]]:
        """(records told so far, a record) of a run from record `seen` on. Raises ApiError (404) before the first."""
        kept = await self.find(key, run_id)
        if run_id in self._at_work:
            return self._at_work[run_id][0].watch(seen)
        return _replay(kept, seen)

    async def journal(self, key: Key | None, run_id: str) -> Journal:
        """What is kept of a run. Raises ApiError (404)."""
        kept = await self.find(key, run_id)
        if kept.journal is None:
            raise ApiError(404, f"nothing is kept of the run {run_id!r} yet", code="run_not_found")
        return kept.journal

    async def find(self, key: Key | None, run_id: str) -> StoredRun:
        """A run of this key. Raises ApiError (404) for any other, as if there were none."""
        kept = await self._archive.find(run_id)
        if kept is None or kept.owner != (None if key is None else key.name):
            raise ApiError(404, f"there is no run {run_id!r} here, or not any more", code="run_not_found")
        return kept

    async def stop(self, key: Key | None, run_id: str) -> None:
        """End a run with every rollout at its source; one that has ended stays as it is. Raises ApiError (404)."""
        await self.find(key, run_id)
        if run_id in self._at_work:
            _, task = self._at_work[run_id]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def aclose(self) -> None:
        """Stop every run at work; what it had finished stays in the store, which must still be open."""
        tasks = [task for _, task in self._at_work.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _finish(self, run_id: str, feed: RunFeed, exchange: Exchange) -> None:
        try:
            await exchange.outcome()
        except asyncio.CancelledError:
            feed.close({"kind": "stopped"})
        except Exception as error:
            feed.close({"kind": "failed", **told(error).envelope()})
        finally:
            await exchange.aclose()
            await self._archive.close(run_id, feed.failure)
            del self._at_work[run_id]


async def _replay(kept: StoredRun, seen: int) -> AsyncIterator[tuple[int, Record]]:
    records = [] if kept.journal is None else await records_of(kept.journal, whole=False)
    if not records or records[-1]["kind"] != "end":
        records.append(dict(kept.closing or {"kind": "stopped"}))
    for number, record in enumerate(records[seen:], seen + 1):
        yield number, record


async def _perform(
    work: Work, messages: Sequence[Message], feed: RunFeed, backend: SharedBackend, tell: Tell
) -> Outcome:
    if work.direct is None:
        return await converse(work, messages, backend, tell, feed)
    return await _perform_directly(work, messages, feed, backend, tell)


async def _perform_directly(
    work: Work, messages: Sequence[Message], feed: RunFeed, backend: SharedBackend, tell: Tell
) -> Outcome:
    """A plain reply, kept as a run of one candidate."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    model = backend.capabilities.model
    config = work.config.model_dump()
    task = detect_task(question_text(messages))
    header = Header(
        question_hash=hash_of(list(messages)), config_hash=hash_of(config), model=model, messages=list(messages),
        config=config, task=task, controls={"forces_final": False},
    )  # fmt: skip
    await feed.sink.write(header)
    feed.on_started(0, 0)

    def passed_on(update: Update) -> None:
        if isinstance(update, Piece):
            feed.on_text(update.content, update.reasoning)
        tell(update)

    outcome = await converse(work, messages, backend, passed_on)
    choice = outcome.choices[0]
    seconds = loop.time() - started
    candidate = Candidate(
        round=0,
        index=0,
        seed=work.config.seed,
        finish_reason=choice.finish_reason,
        usage=outcome.usage,
        started=0.0,
        seconds=seconds,
        reasoning=choice.reasoning,
        content=choice.content,
        answer=read_answer(choice.content, choice.finish_reason, task),
        tool_calls=choice.tool_calls,
    )
    end = End(finish_reason="answered", seconds=seconds)
    await feed.sink.write(candidate)
    await feed.sink.write(end)
    feed.on_solution(await retell(Journal(header, (candidate,), end), None, None))
    return outcome
