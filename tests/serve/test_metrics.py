"""`/metrics`: what Prometheus reads after requests of several kinds."""

from __future__ import annotations

import httpx
from service_under_test import QUESTION, talk

from fake_openai import Failure, FakeServer, Reply, Request


def answer(request: Request) -> Reply | Failure:
    return Failure(status=400) if request.index == 0 else Reply(content="\\boxed{42}")


def test_requests_tokens_and_rollouts_are_counted() -> None:
    async def use(client: httpx.AsyncClient) -> tuple[int, str]:
        reply = await client.post("/v1/chat/completions", json={"model": "zaya", "messages": QUESTION})
        await client.post("/v1/chat/completions", json={"model": "other", "messages": QUESTION})
        await client.get("/nothing")
        return reply.json()["usage"]["completion_tokens"], (await client.get("/metrics")).text

    with FakeServer(answer) as server:
        tokens, text = talk(server, use)
    lines = text.splitlines()
    assert 'openzaya_requests_total{path="/v1/chat/completions",status="200"} 1.0' in lines
    assert 'openzaya_requests_total{path="/v1/chat/completions",status="404"} 1.0' in lines
    assert 'openzaya_requests_total{path="other",status="404"} 1.0' in lines
    assert 'openzaya_rollouts_total{outcome="failed"} 1.0' in lines
    assert 'openzaya_rollouts_total{outcome="ended"} 5.0' in lines
    assert f'openzaya_tokens_total{{kind="completion"}} {float(tokens)}' in lines
    assert "openzaya_requests_open 0.0" in lines
    assert "openzaya_reply_seconds_count 1.0" in lines
