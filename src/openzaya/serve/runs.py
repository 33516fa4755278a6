"""The runs of the playground: jobs that need no client, watched by their id, stopped only when asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from starlette.requests import Request

from openzaya.mrsa.journal import Journal
from openzaya.mrsa.prompts import question_text
from openzaya.serve.chat_request import ChatRequest
from openzaya.serve.config import Key
from openzaya.serve.conversation import Outcome, Tell, converse
from openzaya.serve.errors import ApiError, refused
from openzaya.serve.jobs import Doing, Jobs, kept_result
from openzaya.serve.plain_run import reply_directly
from openzaya.serve.reading import ask_of, read_request
from openzaya.serve.run_feed import RunFeed
from openzaya.serve.run_records import Record, records_of
from openzaya.serve.service import Service
from openzaya.serve.store import FAILED, Job
from openzaya.serve.turns import SharedBackend
from openzaya.serve.work import Work, plan_work

KIND = "run"


class Runs:
    """Every run that can be watched: those at work, and those that the store keeps, as long as it keeps responses."""

    def __init__(self, service: Service, jobs: Jobs) -> None:
        self._service = service
        self._jobs = jobs
        # The task of a job holds its feed: with the task it is gone, and the store has the journal.
        self._feeds: WeakValueDictionary[str, RunFeed] = WeakValueDictionary()

    async def start(self, request: Request) -> str:
        """Start a run from the body of a chat request and return its id, once it is kept.

        Raises ApiError or ConfigError where it cannot be had or is not admitted, PromptError without a question.
        """
        key = request.state.key
        asked, body = await read_request(request, ChatRequest, self._service.limits_of(key).body_bytes)
        work = self._work(asked, key)
        keep = self._service.config.keep_responses
        needed = {"body": body, "seed": work.config.seed}
        ask = ask_of(request, KIND, body, keep=keep, needed=needed, background=True)
        job, exchange = await self._jobs.enter(ask, lambda job: self._doing(job, asked, work))
        try:
            await self._jobs.kept(job.id, exchange)
        finally:
            await exchange.aclose()
        return job.id

    async def resume(self, job: Job) -> None:
        """Go on with a run of an earlier service."""
        keep = self._service.config.keep_responses
        try:
            asked = ChatRequest.model_validate(job.request["body"])
            doing = self._doing(job, asked, self._work(asked, self._service.keyring.named(job.owner)))
        except Exception as error:
            await self._jobs.store.end(job.id, FAILED, expires=time.time() + keep, result=kept_result(error))
            return
        self._jobs.resume(job, doing, keep)

    async def watch(self, key: Key | None, run_id: str, seen: int = 0) -> AsyncIterator[tuple[int, Record]]:
        """(records told so far, a record) of a run from record `seen` on. Raises ApiError (404) before the first."""
        job = await self._find(key, run_id)
        feed = self._feeds.get(run_id)
        return self._replay(job, seen) if feed is None else feed.watch(seen)

    async def journal(self, key: Key | None, run_id: str) -> Journal:
        """What is kept of a run. Raises ApiError (404)."""
        await self._find(key, run_id)
        journal = await self._jobs.store.sink(run_id).read()
        if journal is None:
            raise ApiError(404, f"nothing is kept of the run {run_id!r} yet", code="run_not_found")
        return journal

    async def stop(self, key: Key | None, run_id: str) -> None:
        """End a run with every rollout at its source; one that has ended stays as it is. Raises ApiError (404)."""
        await self._find(key, run_id)
        await self._jobs.cancel(run_id)

    async def _find(self, key: Key | None, run_id: str) -> Job:
        """A run of this key. Raises ApiError (404) for any other, as if there were none."""
        job = await self._jobs.find(key, run_id)
        if job is None or job.kind != KIND:
            raise ApiError(404, f"there is no run {run_id!r} here, or not any more", code="run_not_found")
        return job

    async def _replay(self, job: Job, seen: int) -> AsyncIterator[tuple[int, Record]]:
        journal = await self._jobs.store.sink(job.id).read()
        records = [] if journal is None else await records_of(journal, whole=False)
        if not records or records[-1]["kind"] != "end":
            records.append(_without_end(job.result or {}))
        for number, record in enumerate(records[seen:], seen + 1):
            yield number, record

    def _work(self, asked: ChatRequest, key: Key | None) -> Work:
        service = self._service
        limits = service.limits_of(key)
        work = plan_work(asked, service.menu, service.backend.capabilities, limits, progress=False)
        if work.choices > 1 or work.every_candidate:
            raise refused("a run has one reply; leave n and rsa_final_n out", param="n")
        return work

    def _doing(self, job: Job, asked: ChatRequest, work: Work) -> Doing:
        messages = [message.for_model() for message in asked.messages]
        question_text(messages)
        work = work.seeded(job.request["seed"])
        feed = self._feeds[job.id] = RunFeed(self._jobs.store.sink(job.id))
        if work.direct is None:
            perform = partial(converse, work, messages, recorder=feed)
        else:
            perform = partial(reply_directly, work, messages, feed)

        async def start(backend: SharedBackend, tell: Tell) -> Outcome:
            try:
                return await perform(backend, tell)
            except asyncio.CancelledError:
                # Its watchers come again where it goes on, if it is only suspended.
                asyncio.get_running_loop().call_soon(feed.close)
                raise

        def ended(how: Outcome | BaseException) -> Mapping[str, Any]:
            result = kept_result(how)
            feed.close(_without_end(result))
            return result

        return Doing(start, ended)


def _without_end(result: Mapping[str, Any]) -> Record:
    """The last record of a run that came to no answer."""
    return {"kind": "failed", "error": result["error"]} if "error" in result else {"kind": "stopped"}
