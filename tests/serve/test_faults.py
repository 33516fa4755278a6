"""A source that fails in every way that sources fail: every request ends, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import random
import tracemalloc
from typing import Any

import httpx
import pytest
from service_under_test import QUESTION

from fake_openai import Failure, FakeServer, Reply, Request
from openzaya.backends.openai import OpenAIBackend
from openzaya.serve.app import create_app
from openzaya.serve.config import make_config
from openzaya.serve.service import Service
from openzaya.serve.store import Store

DEADLINE = 2.0
SETTINGS = {
    "name": "zaya",
    "mrsa": {
        "preset": "default", "candidates": 3, "tails": 2, "rounds": 1, "beta": 60, "tau": 8, "final_tokens": 60,
        "deadline": DEADLINE,
    },
    "limits": {"requests_at_once": 2000, "rollouts_at_once": 64},
    "keep_replies": 0,
}  # fmt: skip
FAULTS = (
    Failure(status=500),
    Failure(status=429, headers={"Retry-After": "0"}),
    Reply(content="and then nothing more comes", stall_after=2),
    Reply(content="cut in the middle of it all", cut_after=3),
    Reply(content="this is not JSON any more", garble_after=2),
    Reply(content="a b c d e f g h i j k l m n o p", delay=0.4),  # slow loris: something, but never enough
)


def faulty(share: float) -> Any:
    """A source of whose answers this share are faults, the same ones in every run."""

    def script(request: Request) -> Any:
        drawn = random.Random(request.body["seed"])
        return drawn.choice(FAULTS) if drawn.random() < share else Reply(content="It is \\boxed{42}.")

    return script


class Watch:
    """Seconds in which this process could have done something: on a busy machine the others do not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            self.seconds += 0.05

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def one_request(client: httpx.AsyncClient, number: int, watch: Watch) -> tuple[str, float]:
    """How a request ended, and after how many seconds; raises AssertionError for an end that is none."""
    stream, single = number % 2 == 1, number % 3 == 2
    body = {"model": "zaya@single" if single else "zaya", "messages": QUESTION, "stream": stream, "seed": number}
    if single:
        body["mrsa"] = {"preset": "single", "deadline": DEADLINE}
        body["model"] = "zaya"
    began = watch.seconds
    response = await client.post("/v1/chat/completions", json=body)
    seconds = watch.seconds - began
    if response.status_code != 200:
        assert response.status_code in (429, 502, 504), response.text
        assert response.json()["error"]["message"]
        return f"error {response.status_code}", seconds
    if not stream:
        assert response.json()["choices"][0]["finish_reason"] in ("stop", "length")
        return "answer", seconds
    assert response.text.endswith("data: [DONE]\n\n")
    return ("error in the stream" if '"error":{' in response.text else "answer"), seconds


async def many(server: FakeServer, count: int, at_once: int) -> tuple[dict[str, int], float, dict[str, int]]:
    """How the requests ended, the longest of them in seconds, and what is left behind."""
    backend = OpenAIBackend([server.url], backoff=0.01, retries=1, concurrency=64)
    await backend.discover()
    app = create_app(Service(make_config(SETTINGS), backend, store=Store()))
    await app.state.jobs.open(app.state.resume)
    places = asyncio.Semaphore(at_once)
    ends: dict[str, int] = {}
    longest = 0.0
    before = len(asyncio.all_tasks())
    watch = Watch()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:

        async def one(number: int) -> None:
            nonlocal longest
            async with places:
                end, seconds = await one_request(client, number, watch)
            ends[end] = ends.get(end, 0) + 1
            longest = max(longest, seconds)

        # Warmed up first, then twice the same work: what a service keeps for a request would be there a second time.
        await asyncio.gather(*map(one, range(count // 5)))
        tracemalloc.start()
        held = []
        for first, last in ((count // 5, count * 3 // 5), (count * 3 // 5, count)):
            await asyncio.gather(*map(one, range(first, last)))
            server.requests.clear()
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        metrics = (await client.get("/metrics")).text
    await watch.aclose()
    await asyncio.sleep(0.1)
    left = {
        "tasks": len(asyncio.all_tasks()) - before,
        "jobs": len(await app.state.jobs.store.unfinished()),
        "open": 0 if "openzaya_requests_open 0.0" in metrics else 1,
        "waiting": 0 if "openzaya_rollouts_waiting 0.0" in metrics else 1,
        "more bytes": held[1] - held[0],
    }
    await app.state.jobs.aclose()
    await backend.aclose()
    return ends, longest, left


def check(server: FakeServer, count: int, at_once: int) -> None:
    ends, longest, left = asyncio.run(many(server, count, at_once))
    assert sum(ends.values()) == count
    assert ends["answer"] > 0, ends
    assert len(ends) > 1, "no fault reached a client: the test tries nothing"
    assert longest < DEADLINE + 1, "a request outlived its deadline"
    more = left.pop("more bytes")
    assert not any(left.values()), left
    # Up to 64 connections are kept open, of some kilobytes each on both sides, and tables double; no more comes with
    # more requests.
    assert more < 600_000, f"{more:,} more bytes are held after as many requests again"
    server.wait_until(lambda server: server.open_now == 0)


def test_with_a_fifth_of_failures_every_request_ends_and_nothing_is_left() -> None:
    with FakeServer(faulty(0.2)) as server:
        check(server, 60, 20)


@pytest.mark.slow
def test_a_thousand_requests_with_a_fifth_of_failures() -> None:
    with FakeServer(faulty(0.2)) as server:
        check(server, 1000, 64)
