"""`/v1/responses`: created, followed, polled, resumed, cancelled and deleted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openzaya.serve.config import Key, Limits
from openzaya.serve.conversation import Outcome, Tell, Update, converse
from openzaya.serve.errors import ApiError, refused
from openzaya.serve.event_log import EventLog
from openzaya.serve.exchange import Exchange, Finished
from openzaya.serve.guard import told
from openzaya.serve.jobs import Doing, Jobs
from openzaya.serve.reading import ask_of, read_request
from openzaya.serve.response_request import Item, ResponseRequest
from openzaya.serve.response_writer import ResponseWriter, error_of, head_of
from openzaya.serve.service import Service
from openzaya.serve.store import FAILED, Job
from openzaya.serve.streaming import EventStream, unless_client_leaves
from openzaya.serve.turns import SharedBackend
from openzaya.serve.work import Work, plan_work

_MOST_EARLIER = 1000
"""Responses in one conversation."""


class ResponseEndpoints:
    """The addresses below `/v1/responses`."""

    def __init__(self, service: Service, jobs: Jobs) -> None:
        self._service = service
        self._jobs = jobs
        # The task of a job holds its writer: with the task it is gone, and the store has the document.
        self._writers: WeakValueDictionary[str, ResponseWriter] = WeakValueDictionary()

    def routes(self) -> list[Route]:
        one = "/v1/responses/{id}"
        return [
            Route("/v1/responses", self.create, methods=["POST"]),
            Route(one, self.get),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/cancel", self.cancel, methods=["POST"]),
            Route(f"{one}/input_items", self.input_items),
        ]

    # ---- new ones

    async def create(self, request: Request) -> Response:
        key = request.state.key
        limits = self._service.limits_of(key)
        asked, body = await read_request(request, ResponseRequest, limits.body_bytes)
        background = bool(asked.background)
        if background and not asked.kept:
            raise refused("a background response has to be stored; leave store out", param="store")
        items = asked.items()
        history = [*await self._history(key, asked.previous_response_id), *items]
        work = self._work(asked, history, limits)
        keep = self._service.config.keep_responses if asked.kept else 0.0
        needed = {"body": body, "items": items, "seed": work.config.seed}
        ask = ask_of(request, "response", body, keep=keep, needed=needed, background=background)
        job, exchange = await self._jobs.enter(ask, lambda job: self._doing(job, asked, history, work))
        writer = self._writers.get(job.id)
        try:
            if background:
                await self._jobs.kept(job.id, exchange)
            elif asked.stream:
                await unless_client_leaves(request, exchange.begun())
            else:
                await unless_client_leaves(request, exchange.outcome())
        except BaseException:
            await exchange.aclose()
            raise
        if asked.stream:
            return self._stream(self._events_of(job), exchange)
        await exchange.aclose()
        return JSONResponse(writer.document() if writer is not None else await self._document(key, job))

    async def resume(self, job: Job) -> None:
        """Go on with a background response of an earlier service."""
        key = self._service.keyring.named(job.owner)
        asked = ResponseRequest.model_validate(job.request["body"])
        try:
            earlier = await self._history(key, asked.previous_response_id)
            history = [*earlier, *job.request["items"]]
            work = self._work(asked, history, self._service.limits_of(key))
        except Exception as error:
            document = {**head_of(job, asked), "status": "failed", "error": error_of(told(error))}
            expires = time.time() + self._service.config.keep_responses
            await self._jobs.store.end(job.id, FAILED, expires=expires, result={"document": document})
            return
        self._jobs.resume(job, self._doing(job, asked, history, work), self._service.config.keep_responses)

    def _work(self, asked: ResponseRequest, history: Sequence[Item], limits: Limits) -> Work:
        service = self._service
        capabilities = service.backend.capabilities
        chat = asked.chat(history)
        return plan_work(chat, service.menu, capabilities, limits, progress=service.config.progress)

    def _doing(self, job: Job, asked: ResponseRequest, history: Sequence[Item], work: Work) -> Doing:
        store = self._jobs.store
        log = EventLog(store, job.id) if job.background else EventLog()
        writer = self._writers[job.id] = ResponseWriter(job, asked, log)
        messages = [message.for_model() for message in asked.chat(history).messages]

        async def start(backend: SharedBackend, tell: Tell) -> Outcome:
            def both(update: Update) -> None:
                writer.tell(update)
                tell(update)

            try:
                await writer.open()
                seeded = work.seeded(job.request["seed"])
                return await converse(seeded, messages, backend, both, sinks=partial(store.sink, job.id))
            except asyncio.CancelledError:
                asyncio.get_running_loop().call_soon(writer.close)  # also where the job is only suspended
                raise

        return Doing(start, writer.result_of)

    async def _history(self, key: Key | None, id: str | None) -> list[Item]:
        """The items of the conversation up to and with the response `id`. Raises ApiError (400)."""
        turns: list[list[Item]] = []
        while id is not None:
            job = await self._jobs.find(key, id)
            document = (job.result or {}).get("document") if job is not None and job.kind == "response" else None
            if job is None or document is None or document["status"] not in ("completed", "incomplete"):
                said = "is not complete" if job is not None else "is not known here, or not any more"
                raise refused(
                    f"the previous response {id!r} {said}",
                    param="previous_response_id",
                    code="previous_response_not_found",
                )
            turns.append([*job.request["items"], *document["output"]])
            id = job.request["body"].get("previous_response_id")
            if len(turns) > _MOST_EARLIER:
                raise refused(f"the conversation has more than {_MOST_EARLIER} responses", param="previous_response_id")
        return [item for turn in reversed(turns) for item in turn]

    # ---- those that there are

    async def get(self, request: Request) -> Response:
        job = await self._find(request)
        if request.query_params.get("stream") not in ("true", "True", "1"):
            return JSONResponse(await self._document(request.state.key, job))
        if not job.background:
            raise refused("only the stream of a background response can be resumed", param="stream")
        after = request.query_params.get("starting_after")
        if after is not None and not after.lstrip("-").isdecimal():
            raise refused(f"starting_after is {after!r}; give the number of an event", param="starting_after")
        return self._stream(self._events_of(job, 0 if after is None else max(0, int(after) + 1)), None)

    async def delete(self, request: Request) -> Response:
        job = await self._find(request)
        await self._jobs.delete(job.id)
        return JSONResponse({"id": job.id, "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        job = await self._find(request)
        if not job.background:
            raise refused("only a background response can be cancelled; close the connection of any other")
        await self._jobs.cancel(job.id)
        return JSONResponse(await self._document(request.state.key, job))

    async def input_items(self, request: Request) -> Response:
        job = await self._find(request)
        items: list[Item] = list(job.request["items"])
        if request.query_params.get("order", "desc") != "asc":
            items.reverse()
        limit = request.query_params.get("limit", "20")
        if not limit.isdecimal() or not 1 <= int(limit) <= 100:
            raise refused(f"limit is {limit!r}; give 1 to 100", param="limit")
        after = request.query_params.get("after")
        start = 1 + next((place for place, item in enumerate(items) if item["id"] == after), -1)
        page = items[start : start + int(limit)]
        ids = {"first_id": page[0]["id"] if page else "", "last_id": page[-1]["id"] if page else ""}
        return JSONResponse({"object": "list", "data": page, **ids, "has_more": start + len(page) < len(items)})

    async def _find(self, request: Request) -> Job:
        id = request.path_params["id"]
        job = await self._jobs.find(request.state.key, id)
        if job is None or job.kind != "response":
            raise ApiError(404, f"there is no response {id!r} here, or not any more", code="response_not_found")
        return job

    async def _document(self, key: Key | None, job: Job) -> dict[str, object]:
        kept = await self._jobs.find(key, job.id) or job
        if kept.result is not None and "document" in kept.result:
            return dict(kept.result["document"])
        writer = self._writers.get(job.id)
        if writer is not None:
            return writer.document()
        return head_of(job, ResponseRequest.model_validate(job.request["body"]))

    # ---- streams

    def _events_of(self, job: Job, first: int = 0) -> AsyncIterator[str]:
        writer = self._writers.get(job.id)
        return self._kept_events(job, first) if writer is None else writer.log.follow(first)

    async def _kept_events(self, job: Job, first: int) -> AsyncIterator[str]:
        kept = await self._jobs.store.events(job.id, first)
        for event in kept:
            yield event
        if kept or first or job.result is None or "outcome" not in job.result:
            return
        # It was streamed to the client that asked for it; one that joins later is told the whole reply at once.
        writer = ResponseWriter(job, ResponseRequest.model_validate(job.request["body"]), EventLog())
        await writer.open()
        writer.result_of(Outcome.from_json(job.result["outcome"]))
        async for event in writer.log.follow():
            yield event

    def _stream(self, events: AsyncIterator[str], exchange: Exchange | Finished | None) -> Response:
        async def close() -> None:
            if exchange is not None:
                await exchange.aclose()

        return EventStream(_frames(events), on_close=close, keep_alive=self._service.config.keep_alive)


async def _frames(events: AsyncIterator[str]) -> AsyncIterator[bytes]:
    async for event in events:
        kind = event.split('"', 4)[3]  # every event begins with its type
        yield f"event: {kind}\ndata: {event}\n\n".encode()
