"""A service over a scripted upstream, and a client that speaks to it without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from fake_openai import FakeServer, Request
from openzaya.backends.openai import OpenAIBackend
from openzaya.serve.app import create_app
from openzaya.serve.config import make_config
from openzaya.serve.service import Service
from openzaya.serve.store import Store

SMALL = {"preset": "default", "candidates": 3, "tails": 2, "rounds": 1, "beta": 200, "tau": 8, "final_tokens": 300}
QUESTION = [{"role": "user", "content": "What is 6 times 7?"}]


def talk(
    server: FakeServer, use: Callable[[httpx.AsyncClient], Awaitable[Any]], *, headers: Any = None, **settings: Any
) -> Any:
    """What `use` returns, given a client of a service over `server`."""

    async def run() -> Any:
        backend = OpenAIBackend([server.url], backoff=0.01)
        await backend.discover()
        config = make_config({"mrsa": SMALL, "name": "zaya", **settings})
        app = create_app(Service(config, backend, store=Store(config.store or ":memory:")))
        transport = httpx.ASGITransport(app)
        try:
            await app.state.jobs.open(app.state.resume)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
                return await use(client)
        finally:
            await app.state.jobs.aclose()
            await backend.aclose()

    return asyncio.run(run())


def ask(server: FakeServer, *, settings: Any = None, headers: Any = None, **body: Any) -> httpx.Response:
    """One chat request."""

    async def use(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/chat/completions", json={"model": "zaya", "messages": QUESTION, **body})

    return talk(server, use, headers=headers, **(settings or {}))


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The documents of a stream, which must end as OpenAI's do."""
    frames = [frame for frame in response.text.split("\n\n") if frame and not frame.startswith(":")]
    assert frames[-1] == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-1]]


def is_final(request: Request) -> bool:
    """Whether the upstream was asked for a final call: only that is sampled at other than 1.0 by default."""
    return request.body["temperature"] != 1.0
