"""The ASGI application: which address does what."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openzaya.backends.protocol import BackendError
from openzaya.mrsa import MrsaError
from openzaya.serve.chat_reply import ChatReply
from openzaya.serve.chat_request import ChatRequest
from openzaya.serve.completions import CompletionReply, CompletionRequest, continue_all, plan_completion
from openzaya.serve.conversation import converse
from openzaya.serve.database import StoreError
from openzaya.serve.errors import ApiError
from openzaya.serve.exchange import Exchange, Finished, Reply
from openzaya.serve.guard import Guard, as_response
from openzaya.serve.jobs import Doing, Jobs, owner_of
from openzaya.serve.menu import configured
from openzaya.serve.openapi import document
from openzaya.serve.playground import Playground
from openzaya.serve.reading import Ask, ask_of, read_request
from openzaya.serve.responses import ResponseEndpoints
from openzaya.serve.runs import Runs
from openzaya.serve.service import Service
from openzaya.serve.store import Job
from openzaya.serve.streaming import ClientLeft, EventStream, unless_client_leaves
from openzaya.serve.work import plan_work


def create_app(service: Service) -> Starlette:
    """The application over a service. Its `state.jobs` are opened, with `state.resume`, and closed by the caller."""
    jobs = Jobs(service)
    endpoints, responses, runs = _Endpoints(service, jobs), ResponseEndpoints(service, jobs), Runs(service, jobs)
    handled = (ApiError, BackendError, MrsaError, StoreError, ValueError, ClientLeft, HTTPException, Exception)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
            Route("/v1/completions", endpoints.complete, methods=["POST"]),
            *responses.routes(),
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{name:path}", endpoints.model),
            Route("/health/live", endpoints.live),
            Route("/health/ready", endpoints.ready),
            Route("/v1/spending", endpoints.spending),
            Route("/metrics", endpoints.metrics),
            Route("/openapi.json", endpoints.openapi),
            *Playground(service, runs).routes(),
        ],
        middleware=[Middleware(Guard, service=service)],
        exception_handlers=dict.fromkeys(handled, _explain),
    )
    app.state.jobs, app.state.resume = jobs, {"response": responses.resume, "run": runs.resume}
    return app


async def _explain(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientLeft):
        return Response(status_code=499)  # nobody reads it
    if isinstance(error, HTTPException):
        where = f"{request.method} {request.url.path}"
        said = {404: f"there is no {where}", 405: f"{where} is not allowed"}.get(error.status_code, error.detail)
        return as_response(ApiError(error.status_code, said, headers=error.headers))
    return as_response(error)


class _Endpoints:
    def __init__(self, service: Service, jobs: Jobs) -> None:
        self._service = service
        self._jobs = jobs
        self._since = int(time.time())

    async def chat(self, request: Request) -> Response:
        service = self._service
        limits = service.limits_of(request.state.key)
        asked, body = await read_request(request, ChatRequest, limits.body_bytes)
        capabilities = service.backend.capabilities
        work = plan_work(asked, service.menu, capabilities, limits, progress=service.config.progress)
        messages = [message.for_model() for message in asked.messages]

        def doing_of(job: Job) -> Doing:
            sinks = partial(self._jobs.store.sink, job.id)
            return Doing(partial(converse, work.seeded(job.request["seed"]), messages, sinks=sinks))

        ask = self._ask(request, "chat", body, seed=work.config.seed)
        job, exchange = await self._jobs.enter(ask, doing_of)
        return await self._answer(request, exchange, ChatReply(asked, work, job.id), stream=bool(asked.stream))

    async def complete(self, request: Request) -> Response:
        service = self._service
        limits = service.limits_of(request.state.key)
        asked, body = await read_request(request, CompletionRequest, limits.body_bytes)
        work = plan_completion(asked, service.menu, context=service.backend.capabilities.context, limits=limits)
        doing = Doing(partial(continue_all, work))
        job, exchange = await self._jobs.enter(self._ask(request, "completion", body), lambda _: doing)
        return await self._answer(request, exchange, CompletionReply(asked, work, job.id), stream=bool(asked.stream))

    def _ask(self, request: Request, kind: str, body: dict[str, Any], **needed: Any) -> Ask:
        keep = self._service.config.keep_replies
        return ask_of(request, kind, body, keep=keep, needed=needed)

    async def _answer(self, request: Request, exchange: Exchange | Finished, reply: Reply, *, stream: bool) -> Response:
        """The response to an admitted request, whose work ends with it or with its client."""
        if not stream:
            try:
                outcome = await unless_client_leaves(request, exchange.outcome())
            finally:
                await exchange.aclose()
            return JSONResponse(reply.document(outcome))
        try:
            await unless_client_leaves(request, exchange.begun())
        except BaseException:
            await exchange.aclose()
            raise
        frames = exchange.frames(reply)
        return EventStream(frames, on_close=exchange.aclose, keep_alive=self._service.config.keep_alive)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self._service.menu.models()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._service.menu.models():
            raise ApiError(404, f"there is no model {name!r} here", code="model_not_found", param="model")
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        menu = self._service.menu
        context = self._service.backend.capabilities.context
        recipe = menu.default if name == menu.name else {"preset": name.removeprefix(f"{menu.name}@")}
        config = configured(menu.unfolded(recipe))
        shape = {key: getattr(config, key) for key in ("candidates", "tails", "rounds", "beta", "tau", "final_tokens")}
        entry: dict[str, Any] = {"id": name, "object": "model", "created": self._since, "owned_by": "openzaya"}
        entry["mrsa"] = {"preset": recipe["preset"], **shape}
        return entry if context is None else {**entry, "max_model_len": context}

    async def live(self, request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(self, request: Request) -> Response:
        if self._service.draining:
            return JSONResponse({"status": "draining"}, status_code=503)
        if not self._service.reachable:
            return JSONResponse({"status": "no upstream answers"}, status_code=503)
        return JSONResponse({"status": "ready"})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(document())

    async def spending(self, request: Request) -> Response:
        """What the key that asks has spent by day."""
        return JSONResponse({"object": "list", "data": await self._jobs.store.spending(owner_of(request.state.key))})

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
