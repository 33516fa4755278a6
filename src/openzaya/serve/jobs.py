"""Requests as jobs: kept while they run, joined by retries, gone on with after a restart, forgotten in time."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from openzaya.mrsa.journal import hash_of
from openzaya.serve.config import Key
from openzaya.serve.conversation import Outcome, Tell
from openzaya.serve.database import StoreError
from openzaya.serve.errors import ApiError
from openzaya.serve.exchange import Exchange, Finished, Start, Undertaking
from openzaya.serve.guard import told
from openzaya.serve.service import Service
from openzaya.serve.store import CANCELLED, COMPLETED, FAILED, LEFT, Job
from openzaya.serve.turns import SharedBackend

logger = logging.getLogger(__name__)

_PREFIXES = {"chat": "chatcmpl-", "completion": "cmpl-", "response": "resp_"}
_REFUSED_FOR = 300.0
"""Seconds in which a retry is taken for the answer to a refusal or failure that its client was told."""
_SWEEP = 60.0
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One attempt of a client to have something done."""

    kind: str
    key: Key | None
    body: Mapping[str, Any]
    idempotency: str | None = None
    retry: int = 0
    """Which retry of its client's it says to be."""
    background: bool = False
    keep: float
    """Seconds for which the job is kept after its end; 0 keeps nothing."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """What the job needs to be gone on with."""

    @property
    def owner(self) -> str:
        return owner_of(self.key)

    @property
    def fingerprint(self) -> str:
        """The same for the same body and key."""
        return hash_of([self.kind, self.owner, self.body])


def owner_of(key: Key | None) -> str:
    """Whose jobs a key can see."""
    return "" if key is None else key.name


@dataclass(slots=True)
class _AtWork:
    job: Job
    undertaking: Undertaking
    kept: asyncio.Event = field(default_factory=asyncio.Event)
    """It is in the store."""
    cancelled: bool = False


def kept_result(ended: Outcome | BaseException) -> Mapping[str, Any]:
    """What is kept of how a job ended: its `outcome`, its `error`, or nothing where it was stopped."""
    if isinstance(ended, Outcome):
        return {"outcome": ended.as_json()}
    return {} if isinstance(ended, asyncio.CancelledError) else told(ended).envelope()


@dataclass(frozen=True, slots=True)
class Doing:
    """How a job is done, and what is kept of how it ended."""

    start: Start
    result_of: Callable[[Outcome | BaseException], Mapping[str, Any]] = kept_result
    """With `outcome` where it came to one."""


DoingOf = Callable[[Job], Doing]
"""How a job is done that may have begun before."""

Resume = Callable[[Job], Awaitable[None]]
"""Go on with a job of an earlier service."""


class Jobs:
    """Every job of a service: those at work here, and those in its store."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.store = service.store
        self._at_work: dict[str, _AtWork] = {}
        self._refused: dict[str, list[float]] = defaultdict(list)
        self._suspended = False
        self._sweeping: asyncio.Task[None] | None = None

    # ---- from the first job to the last

    async def open(self, resume: Mapping[str, Resume]) -> None:
        """Open the store and go on with what runs without a client, by its kind. Raises StoreError."""
        await self.store.open()
        for job in await self.store.unfinished():
            if job.background:
                await resume[job.kind](job)
            else:  # its client went away with the service before
                await self.store.end(job.id, LEFT, expires=time.time() + self._service.config.keep_replies)
        self._sweeping = asyncio.create_task(self._sweep())

    async def suspend(self) -> None:
        """Stop what runs without a client; it goes on when a service opens this store again."""
        self._suspended = True
        background = [one for one in self._at_work.values() if one.job.background]
        await asyncio.gather(*(one.undertaking.stop() for one in background))

    async def aclose(self) -> None:
        """Stop everything and close the store."""
        self._suspended = True
        await asyncio.gather(*(one.undertaking.stop() for one in self._at_work.values()))
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await self.store.aclose()

    async def _sweep(self) -> None:
        while True:
            try:
                await self.store.expire(time.time())
            except StoreError as error:
                logger.error("%s", error)
            now = time.monotonic()
            self._refused = defaultdict(
                list, {name: times for name, times in self._refused.items() if times[-1] > now - _REFUSED_FOR}
            )
            await asyncio.sleep(_SWEEP)

    # ---- one request

    async def enter(self, ask: Ask, doing_of: DoingOf) -> tuple[Job, Exchange | Finished]:
        """The job that does what is asked: one that it may join, else a new one.

        Raises ApiError (409, 429, 503).
        """
        kept = await self._kept(ask)
        same = self._same_at_work(ask, kept)  # looked for after the store was: another may have come meanwhile
        if same is not None:
            return same.job, Exchange(same.undertaking)
        if kept is not None and kept.status == COMPLETED and kept.result is not None and "outcome" in kept.result:
            return kept, Finished(Outcome.from_json(kept.result["outcome"]))
        job = kept or Job(
            id=_PREFIXES.get(ask.kind, f"{ask.kind}_") + uuid.uuid4().hex,
            kind=ask.kind,
            owner=ask.owner,
            request=ask.request,
            fingerprint=ask.fingerprint,
            idempotency=ask.idempotency,
            background=ask.background,
            created=time.time(),
        )
        try:
            at_work = self._begin(job, ask.key, doing_of(job), ask.keep)
        except ApiError:
            self._refused[ask.fingerprint].append(time.monotonic())
            raise
        return job, Exchange(at_work.undertaking)

    async def kept(self, id: str, exchange: Exchange | Finished) -> None:
        """Wait until a job is in the store, so that nothing loses it any more; raises what ended it before."""
        at_work = self._at_work.get(id)
        if at_work is None:
            return
        kept: asyncio.Future[Any] = asyncio.ensure_future(at_work.kept.wait())
        try:
            await asyncio.wait({kept, at_work.undertaking.task}, return_when=asyncio.FIRST_COMPLETED)
            if not kept.done():
                await exchange.outcome()
        finally:
            kept.cancel()

    def resume(self, job: Job, doing: Doing, keep: float) -> None:
        """Go on with a job of an earlier service, whose place it keeps."""
        self._begin(job, self._service.keyring.named(job.owner), doing, keep, resumed=True)

    async def find(self, key: Key | None, id: str) -> Job | None:
        """A job that this key may see."""
        if not _ID.fullmatch(id):
            return None  # not every database would take it
        job = await self.store.find(id)
        expired = job is not None and job.expires is not None and job.expires <= time.time()
        return None if job is None or expired or job.owner != owner_of(key) else job

    def is_at_work(self, id: str) -> bool:
        """Whether a job is being worked on here."""
        return id in self._at_work

    async def cancel(self, id: str) -> None:
        """End a job with every rollout at its source; one that has ended stays as it is."""
        at_work = self._at_work.get(id)
        if at_work is not None:
            at_work.cancelled = True
            await at_work.undertaking.stop()

    async def delete(self, id: str) -> None:
        """Cancel a job and forget it."""
        await self.cancel(id)
        await self.store.delete(id)

    # ---- joining

    async def _kept(self, ask: Ask) -> Job | None:
        """The job in the store that this attempt goes on with."""
        if ask.idempotency is not None:
            job = await self.store.find_by_idempotency(ask.owner, ask.idempotency)
            if job is not None and job.fingerprint != ask.fingerprint:
                raise ApiError(
                    409,
                    f"the Idempotency-Key {ask.idempotency!r} was sent with another body before; use a new one",
                    code="idempotency_key_reused",
                )
            return job
        if not ask.retry or self._was_refused(ask.fingerprint):
            return None
        return await self.store.find_left(ask.fingerprint)

    def _same_at_work(self, ask: Ask, kept: Job | None) -> _AtWork | None:
        if kept is not None and kept.id in self._at_work:
            return self._at_work[kept.id]
        if ask.idempotency is not None:
            wanted = (ask.owner, ask.idempotency)
            same = (one for one in self._at_work.values() if (one.job.owner, one.job.idempotency) == wanted)
            return next(same, None)
        if kept is not None or not ask.retry or self._take_refusal(ask.fingerprint):
            return None
        return next((one for one in self._at_work.values() if one.job.fingerprint == ask.fingerprint), None)

    def _was_refused(self, fingerprint: str) -> bool:
        times = self._refused.get(fingerprint)
        return bool(times) and times[-1] > time.monotonic() - _REFUSED_FOR  # type: ignore[index]

    def _take_refusal(self, fingerprint: str) -> bool:
        """Whether the attempt before this was answered with a failure: then there is nothing of it to join.

        Without this a sample that was refused would come back as a copy of another that was asked for at the same time.
        """
        if not self._was_refused(fingerprint):
            return False
        times = self._refused[fingerprint]
        times.pop(0)
        if not times:
            del self._refused[fingerprint]
        return True

    # ---- at work

    def _begin(self, job: Job, key: Key | None, doing: Doing, keep: float, *, resumed: bool = False) -> _AtWork:
        async def perform(backend: SharedBackend, tell: Tell) -> Outcome:
            return await self._perform(job, doing, keep, backend, tell)

        undertaking = Undertaking(self._service, key, perform, unattended=job.background, resumed=resumed)
        at_work = self._at_work[job.id] = _AtWork(job, undertaking)
        undertaking.task.add_done_callback(lambda _: self._at_work.pop(job.id, None))
        return at_work

    async def _perform(self, job: Job, doing: Doing, keep: float, backend: SharedBackend, tell: Tell) -> Outcome:
        try:
            await self.store.create(replace(job, status="running"))
            self._at_work[job.id].kept.set()
            outcome = await doing.start(backend, tell)
            outcome = replace(outcome, cost=self._service.cost(outcome.usage, outcome.final_usage))
            await self._end(job, COMPLETED, keep, doing.result_of(outcome))
            return outcome
        except asyncio.CancelledError as error:
            status = CANCELLED if self._at_work[job.id].cancelled else LEFT
            if not (job.background and self._suspended and status == LEFT):
                self.store.begin_ending(job.id, status, expires=time.time() + keep, result=doing.result_of(error))
            raise
        except Exception as error:
            if not isinstance(error, StoreError):
                self.store.begin_ending(job.id, FAILED, expires=time.time() + keep, result=doing.result_of(error))
            self._refused[job.fingerprint].append(time.monotonic())
            raise

    async def _end(self, job: Job, status: str, keep: float, result: Mapping[str, Any]) -> None:
        """Keep the end of a job; an answer that cannot be kept is given all the same."""
        try:
            if keep > 0:
                await self.store.end(job.id, status, expires=time.time() + keep, result=result)
            else:
                await self.store.delete(job.id)
        except StoreError as error:
            logger.error("%s", error)
