"""Allowances by the minute, accounts and prices; several upstreams, and another model for the final call."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from service_under_test import QUESTION, SMALL, ask, is_final, talk

from fake_openai import FakeServer, Reply, Request
from openzaya.backends.openai import OpenAIBackend
from openzaya.backends.upstreams import UpstreamPool, same_beginning
from openzaya.serve.app import create_app
from openzaya.serve.budgets import Bucket, Budgets
from openzaya.serve.config import Key, make_config
from openzaya.serve.errors import ApiError
from openzaya.serve.keys import hashed
from openzaya.serve.server import watch_upstreams
from openzaya.serve.service import Service

BODY = {"model": "zaya", "messages": QUESTION}
ALICE = {"authorization": "Bearer alice"}


def keys(**limits: Any) -> list[dict[str, Any]]:
    return [{"name": "alice", "sha256": hashed("alice"), **limits}]


def thinker(request: Request) -> Reply:
    return Reply(reasoning="six sevens", content="\\boxed{42}", cached_tokens=5 if is_final(request) else 0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_allowance_fills_up_evenly_and_a_debt_is_paid_back_by_waiting() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    bucket.take(100)
    assert bucket.level == -40
    assert bucket.seconds_until(1) == pytest.approx(41)
    clock.now = 1000.0
    assert bucket.level == 60


def test_a_request_that_cost_more_than_a_minute_is_followed_by_a_wait() -> None:
    clock = Clock()
    budgets = Budgets(clock)
    key = Key(name="alice", sha256="0" * 64, tokens_per_minute=600, requests_per_minute=2)
    budgets.admit(key)
    budgets.spend(key, 1800)
    with pytest.raises(ApiError, match="600 tokens a minute") as caught:
        budgets.admit(key)
    assert caught.value.headers["retry-after"] == "121"
    clock.now = 121.0
    budgets.admit(key)
    budgets.admit(key)
    with pytest.raises(ApiError, match="2 requests a minute"):
        budgets.admit(key)
    budgets.admit(None)


def test_a_key_that_has_had_its_minute_is_told_when_to_come_again() -> None:
    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post("/v1/chat/completions", json=BODY) for _ in range(3)]

    with FakeServer(thinker) as server:
        first, second, third = talk(
            server, use, headers=ALICE, keys=keys(requests_per_minute=2, tokens_per_minute=9999)
        )
        assert len(server.requests) == 14
    assert [response.status_code for response in (first, second, third)] == [200, 200, 429]
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert int(second.headers["x-ratelimit-remaining-tokens"]) < 9999
    assert 1 <= int(third.headers["retry-after"]) <= 30
    assert third.json()["error"]["code"] == "rate_limit_exceeded"


def test_usage_is_accounted_by_key_with_what_it_cost() -> None:
    prices = {"prompt": 1.0, "cached": 0.1, "completion": 4.0}

    async def use(client: httpx.AsyncClient) -> Any:
        usage = (await client.post("/v1/chat/completions", json=BODY)).json()["usage"]
        await client.post("/v1/chat/completions", json={**BODY, "model": "other"})
        return usage, (await client.get("/v1/spending")).json()["data"]

    with FakeServer(thinker) as server:
        usage, (account,) = talk(server, use, headers=ALICE, keys=keys(), prices=prices)
    cost = (usage["prompt_tokens"] - 5 + 0.5 + 4 * usage["completion_tokens"]) / 1e6
    assert usage["cost"] == pytest.approx(cost)
    assert account["cost"] == pytest.approx(cost)
    assert account["completion_tokens"] == usage["completion_tokens"]
    assert (account["owner"], account["requests"]) == ("alice", 1)
    with FakeServer(thinker) as server:
        assert "cost" not in ask(server).json()["usage"]


def test_another_model_gives_the_final_call_and_has_its_own_price() -> None:
    with FakeServer(thinker, models=("small",)) as small, FakeServer(thinker, models=("large",)) as large:
        final = {"backend": [large.url], "prices": {"prompt": 0, "completion": 1e6}}
        values = {"mrsa": SMALL, "name": "zaya", "final": final, "prices": {"prompt": 0, "completion": 0}}

        async def run() -> Any:
            sources = [OpenAIBackend([one.url]) for one in (small, large)]
            service = Service(make_config(values), sources[0], final=sources[1])
            app = create_app(service)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                document = (await client.post("/v1/chat/completions", json={**BODY, "n": 2})).json()
            await app.state.jobs.aclose()
            for source in sources:
                await source.aclose()
            return document

        document = asyncio.run(run())
        assert [is_final(request) for request in small.requests] == [False] * 12
        assert [is_final(request) for request in large.requests] == [True] * 2
    finals = [run["final"]["completion_tokens"] for run in document["mrsa"]["runs"]]
    assert document["usage"]["cost"] == pytest.approx(sum(finals))


def test_prompts_that_begin_alike_go_to_one_upstream_until_it_is_much_busier() -> None:
    pool = UpstreamPool(["http://a/v1", "http://b/v1", "http://c/v1"])
    same_beginning.set("a question")
    home = pool.pick()
    assert {pool.pick().address.api for _ in range(9)} == {home.address.api}
    home.busy = 5
    assert pool.pick() is not home
    same_beginning.set(None)
    home.busy = 0
    assert len({pool.pick().address.api for _ in range(3)}) == 3


def test_an_upstream_that_is_gone_is_put_aside_and_taken_again_when_it_is_back() -> None:
    async def run() -> list[bool]:
        with FakeServer(thinker) as server:
            backend = OpenAIBackend([server.url], backoff=0.01, connect_timeout=1)
            found = [await backend.any_answers()]
        pool = backend._fleet.pool
        found += [await backend.any_answers(), pool.has_ready()]
        with FakeServer(thinker, port=server.port):
            found += [await backend.any_answers(), pool.has_ready()]
        await backend.aclose()
        return found

    assert asyncio.run(run()) == [True, False, False, True, True]


def test_readiness_says_whether_an_upstream_answers() -> None:
    async def until(client: httpx.AsyncClient, status: int) -> int:
        """The status of liveness once readiness has this one."""
        while (await client.get("/health/ready")).status_code != status:
            await asyncio.sleep(0.01)
        return (await client.get("/health/live")).status_code

    async def run() -> list[int]:
        with FakeServer(thinker) as server:
            backend = OpenAIBackend([server.url], backoff=0.01, connect_timeout=1)
            await backend.discover()
            service = Service(make_config({"mrsa": SMALL, "health_check": 0.02}), backend)
            transport = httpx.ASGITransport(create_app(service))
            client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
            watching = asyncio.create_task(watch_upstreams(service))
            statuses = [await until(client, 200)]
        statuses.append(await until(client, 503))
        with FakeServer(thinker, port=server.port):
            statuses.append(await until(client, 200))
        watching.cancel()
        await client.aclose()
        await backend.aclose()
        return statuses

    assert asyncio.run(asyncio.wait_for(run(), 30)) == [200, 200, 200]
