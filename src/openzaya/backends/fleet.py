"""Requests to a fleet of servers of one model: bounded concurrency, bounded retries, the least busy server first."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from openzaya.backends import acquaintance
from openzaya.backends.chunks import read_chunk
from openzaya.backends.failures import UpstreamFailure, bounded
from openzaya.backends.protocol import BackendError, Capabilities, Delta
from openzaya.backends.reply_stream import ReplyReader
from openzaya.backends.retries import RetryPolicy
from openzaya.backends.sse import Event
from openzaya.backends.tokenize_endpoint import TokenizeEndpoint
from openzaya.backends.transport import Transport
from openzaya.backends.upstreams import Upstream, UpstreamPool

logger = logging.getLogger(__name__)
T = TypeVar("T")

_SELF_HOSTED = frozenset({"vllm", "sglang", "llamacpp"})
"""Vendors by their own word in /models: they honour a seed, and have endpoints beyond OpenAI's API."""

_MOST_REWRITES = 12
"""Refusals of one request that are answered by writing it again; each normally removes a field."""


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """A streamed request, written for whichever server takes it."""

    path: str
    body: Callable[[Upstream, str | None], dict[str, Any]]
    """From the server and the model's name to the JSON body."""
    thinking: bool = True
    plain: bool = False
    """The reply is content from its first token."""
    kept: Mapping[str, Any] = field(default_factory=dict)
    """Fields that the caller put in, which no refusal may remove."""


class Fleet:
    """Sends requests to the servers of a pool and keeps `capabilities` up to date with what they show."""

    def __init__(
        self,
        pool: UpstreamPool,
        transport: Transport,
        *,
        model: str | None,
        retry: RetryPolicy,
        concurrency: int,
        capabilities: Capabilities,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be at least 1")
        self.pool = pool
        self.transport = transport
        self.model = model
        self.capabilities = capabilities
        self._retry = retry
        self._slots = asyncio.Semaphore(concurrency)
        self._rng = random.Random()

    async def acquaint_all(self) -> None:
        """Ask every server what it offers; raises BackendError when none of them answers.

        Tries are repeated only while no server has answered: one that is down must not hold up the others.
        """
        upstreams = self.pool.upstreams
        if None in await asyncio.gather(*map(self._first_failure, upstreams)):
            return
        await asyncio.sleep(self._retry.delay(0, None, self._rng))
        failures = await asyncio.gather(*map(self._last_failure, upstreams))
        if (failure := failures[0]) is not None and None not in failures:
            raise failure

    async def any_answers(self) -> bool:
        """Ask every server once; those that are back take requests again, those that are gone are put aside."""
        return any(await asyncio.gather(*map(self._answers, self.pool.upstreams)))

    async def _answers(self, upstream: Upstream) -> bool:
        try:
            await acquaintance.read_models(self.transport, upstream, self.model)
        except UpstreamFailure as failure:
            self._put_aside(upstream, failure)
            return not failure.unreachable
        if upstream.unreachable_in_a_row:
            self.pool.answered(upstream)
        return True

    async def _first_failure(self, upstream: Upstream) -> UpstreamFailure | None:
        """Why a server did not tell what it offers at the first try; None where it did."""
        try:
            await self._find_tokenizer(upstream)
        except UpstreamFailure as failure:
            self._put_aside(upstream, failure)
            return failure
        return None

    async def _last_failure(self, upstream: Upstream) -> BackendError | None:
        """Why a server did not tell what it offers after all tries; None where it did."""
        try:
            await self._with_retries(upstream, partial(self._find_tokenizer, upstream))
        except BackendError as error:
            return error
        return None

    async def stream(self, request: StreamRequest) -> AsyncGenerator[Delta]:
        """The deltas of a request, tried again on transient failures as long as no text has been given out."""
        started = False
        attempt = 0
        moves = len(self.pool.upstreams) - 1
        while True:
            async with self._slots:
                upstream = self.pool.pick()
                try:
                    with upstream.at_work():
                        async with aclosing(self._attempt(upstream, request)) as deltas:
                            async for delta in deltas:
                                started = started or _carries_text(delta)
                                yield delta
                    return
                except UpstreamFailure as error:
                    failure = error
            self._put_aside(upstream, failure)
            if started or not failure.retry:
                raise _backend_error(failure, upstream, attempt) from None
            if failure.unreachable and moves > 0 and self.pool.has_ready():
                moves -= 1
                continue
            if attempt >= self._retry.retries:
                raise _backend_error(failure, upstream, attempt) from None
            # A server that asked for time is put aside; another one that is ready need not wait for it.
            asked_for = None if self.pool.has_ready() else failure.retry_after
            await asyncio.sleep(self._retry.delay(attempt, asked_for, self._rng))
            attempt += 1

    async def ask_tokenizers(
        self, ask: Callable[[Upstream, TokenizeEndpoint], Awaitable[T | None]], *, needs_decode: bool = False
    ) -> T | None:
        """The first answer of a tokenize endpoint, the least busy server first; None where none can be had."""
        for upstream in sorted(self.pool.upstreams, key=lambda upstream: (upstream.aside_until, upstream.busy)):
            try:
                answer = await self._with_retries(upstream, partial(self._ask_tokenizer, upstream, ask, needs_decode))
            except BackendError as error:
                logger.warning("no tokenizer there: %s", error)
                continue
            if answer is not None:
                return answer
        return None

    async def _attempt(self, upstream: Upstream, request: StreamRequest) -> AsyncGenerator[Delta]:
        """One try at one server, written again where the server refuses a field."""
        await self._acquaint(upstream)
        url = upstream.address.api + request.path
        for rewrite in range(_MOST_REWRITES + 1):
            body = request.body(upstream, self.model)
            reader = ReplyReader(upstream, url, thinking=request.thinking, plain=request.plain)
            try:
                async with aclosing(self.transport.events(upstream.address, url, body)) as events:
                    async for delta in _read(events, reader, url):
                        yield delta
            except UpstreamFailure as failure:
                refused_a_field = failure.status in (400, 422) and rewrite < _MOST_REWRITES
                learned = upstream.dialect.learn(body, request.kept, failure.message) if refused_a_field else None
                if learned is None:
                    raise
                logger.warning("%s: %s", upstream.address.api, learned)
                continue
            self.pool.answered(upstream)
            self._note_reply(upstream, reader)
            return

    def _put_aside(self, upstream: Upstream, failure: UpstreamFailure) -> None:
        if failure.unreachable:
            self.pool.unreachable(upstream)
        elif failure.retry_after is not None:
            self.pool.asked_to_wait(upstream, failure.retry_after)

    async def _with_retries(self, upstream: Upstream, call: Callable[[], Awaitable[T]]) -> T:
        """A short call to one server, tried again on transient failures; raises BackendError."""
        attempt = 0
        while True:
            try:
                return await call()
            except UpstreamFailure as failure:
                self._put_aside(upstream, failure)
                if not failure.retry or attempt >= self._retry.retries:
                    raise _backend_error(failure, upstream, attempt) from None
                delay = self._retry.delay(attempt, failure.retry_after, self._rng)
            await asyncio.sleep(delay)
            attempt += 1

    async def _acquaint(self, upstream: Upstream) -> None:
        """Learn once what a server lists; where it names itself, also what its tokenizer and template show."""
        if upstream.acquainted:
            return
        async with upstream.learning:
            if upstream.acquainted:
                return
            await acquaintance.read_models(self.transport, upstream, self.model)
            if self.model is None:
                self.model = _only_model(upstream)
            if upstream.dialect.vendor in _SELF_HOSTED:
                await acquaintance.find_tokenizer(self.transport, upstream, self.model)
                await acquaintance.learn_thinking_start(self.transport, upstream, self.model)
            upstream.acquainted = True
            self._note_upstream(upstream)

    async def _find_tokenizer(self, upstream: Upstream) -> None:
        await self._acquaint(upstream)
        async with upstream.learning:
            if not upstream.tokenize_looked_for:
                await acquaintance.find_tokenizer(self.transport, upstream, self.model)
        self._note_upstream(upstream)

    async def _ask_tokenizer(
        self,
        upstream: Upstream,
        ask: Callable[[Upstream, TokenizeEndpoint], Awaitable[T | None]],
        needs_decode: bool,
    ) -> T | None:
        await self._find_tokenizer(upstream)
        endpoint = upstream.tokenize
        if endpoint is None or (needs_decode and not endpoint.decodes):
            return None
        return await ask(upstream, endpoint)

    def _note_upstream(self, upstream: Upstream) -> None:
        known = self.capabilities
        contexts = [context for context in (known.context, upstream.context) if context is not None]
        self.capabilities = replace(
            known,
            model=self.model,
            context=min(contexts, default=None),
            tokenize=known.tokenize or (upstream.tokenize is not None and upstream.tokenize.decodes),
            seed=known.seed or (upstream.dialect.vendor in _SELF_HOSTED and "seed" not in upstream.dialect.refused),
        )

    def _note_reply(self, upstream: Upstream, reader: ReplyReader) -> None:
        known = self.capabilities
        self.capabilities = replace(
            known,
            token_ids=known.token_ids or reader.saw_ids,
            logprobs=known.logprobs or reader.saw_logprobs,
            prefix_cache=known.prefix_cache or reader.cached_tokens > 0,
            seed=known.seed and "seed" not in upstream.dialect.refused,
        )


async def _read(events: AsyncIterator[Event], reader: ReplyReader, url: str) -> AsyncIterator[Delta]:
    """Events made into deltas; raises UpstreamFailure where they are no reply."""
    complete = False
    async for event in events:
        if event.name == "end":
            complete = True
            break
        try:
            parsed = json.loads(event.data)
        except ValueError:
            raise UpstreamFailure(f"{url} sent a chunk that is not JSON: {bounded(event.data)}", retry=True) from None
        if event.name == "error" and not (isinstance(parsed, Mapping) and parsed.get("error")):
            parsed = {"error": parsed or "no explanation"}
        for delta in reader.feed(read_chunk(parsed, url)):
            yield delta
    for delta in reader.finish(complete=complete):
        yield delta


def _only_model(upstream: Upstream) -> str:
    if len(upstream.models) == 1:
        return upstream.models[0]
    listed = bounded(", ".join(upstream.models)) or "none"
    count = len(upstream.models)
    raise UpstreamFailure(
        f"{upstream.address.api} lists {count} models ({listed}); name the one to use with --backend-model"
    )


def _backend_error(failure: UpstreamFailure, upstream: Upstream, attempt: int) -> BackendError:
    sentence = str(failure)
    if failure.status == 404 and upstream.models:
        sentence += f" (the server lists {bounded(', '.join(upstream.models))})"
    if attempt:
        sentence += f" (after {attempt + 1} tries)"
    return BackendError(sentence, status=failure.status, transient=failure.transient)


def _carries_text(delta: Delta) -> bool:
    return bool(delta.reasoning or delta.content or delta.tool_calls)
