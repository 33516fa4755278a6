"""Which requests are the same one: Idempotency-Key, retries, and first attempts that are not."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from service_under_test import QUESTION, events_of, talk

from fake_openai import Failure, FakeServer, Reply, Request

BODY = {"model": "zaya", "messages": QUESTION}
CHAT = "/v1/chat/completions"
ONE_RUN = 3 + 3 + 1


def thinker(request: Request) -> Reply:
    return Reply(content=f"\\boxed{{42}} {request.index}", first_delay=0.05)


def retry(count: int = 1) -> dict[str, str]:
    return {"x-stainless-retry-count": str(count)}


async def together(client: httpx.AsyncClient, *headers: dict[str, str], body: Any = BODY) -> list[httpx.Response]:
    """Requests one shortly after another, all of them open at once."""
    tasks = []
    for one in headers:
        tasks.append(asyncio.create_task(client.post(CHAT, json=body, headers=one)))
        await asyncio.sleep(0.03)
    return await asyncio.gather(*tasks)


def test_identical_first_attempts_are_separate_samples() -> None:
    with FakeServer(thinker) as server:
        first, second = talk(server, lambda client: together(client, {}, {}))
        assert len(server.requests) == 2 * ONE_RUN
    assert first.json()["id"] != second.json()["id"]


def test_a_retry_joins_the_run_that_its_client_lost_sight_of() -> None:
    with FakeServer(thinker) as server:
        first, second = talk(server, lambda client: together(client, retry(0), retry()))
        assert len(server.requests) == ONE_RUN
    assert first.json() == second.json() | {"created": first.json()["created"]}


@pytest.mark.parametrize("stream", [False, True])
def test_an_idempotency_key_joins_what_runs_and_gets_what_has_ended(stream: bool) -> None:
    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        once, body = {"idempotency-key": "once"}, {**BODY, "stream": stream}
        responses = await together(client, once, once, body=body)
        return [*responses, await client.post(CHAT, json=body, headers=once)]

    with FakeServer(thinker) as server:
        responses = talk(server, use)
        assert len(server.requests) == ONE_RUN
    if stream:
        texts = ["".join(_delta(chunk) for chunk in events_of(response)) for response in responses]
    else:
        texts = [response.json()["choices"][0]["message"]["content"] for response in responses]
    assert texts[0].startswith("\\boxed{42}")
    assert texts == [texts[0]] * 3


def _delta(chunk: dict[str, Any]) -> str:
    return chunk["choices"][0]["delta"].get("content", "") if chunk["choices"] else ""


def test_an_idempotency_key_belongs_to_one_body_and_one_client_key() -> None:
    async def use(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        once = {"idempotency-key": "once"}
        await client.post(CHAT, json=BODY, headers=once)
        return (
            await client.post(CHAT, json={**BODY, "temperature": 0.5}, headers=once),
            await client.post(CHAT, json=BODY, headers={"idempotency-key": ""}),
        )

    with FakeServer(thinker) as server:
        other, empty = talk(server, use)
        assert len(server.requests) == ONE_RUN
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert empty.status_code == 400


def test_a_client_that_left_and_comes_back_finds_what_had_finished() -> None:
    def first_round_only(request: Request) -> Reply:
        return Reply(content="\\boxed{42}", stall_after=1 if 3 <= request.index < 6 else None)

    async def use(client: httpx.AsyncClient) -> httpx.Response:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):
                await client.post(CHAT, json=BODY)
        return await client.post(CHAT, json=BODY, headers=retry())

    with FakeServer(first_round_only) as server:
        response = talk(server, use)
        server.wait_until(lambda server: len(server.aborts) == 3)
        assert len(server.requests) == 3 + 3 + 3 + 1  # round 0 once, round 1 again, the final call
    assert response.json()["usage"]["completion_tokens"] > 0
    assert response.json()["mrsa"]["votes"] == {"42": 3}


def test_a_retry_after_a_refusal_is_a_sample_of_its_own() -> None:
    """Else a request that was told to come again would come back as a copy of another with the same body."""

    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        first = asyncio.create_task(client.post(CHAT, json=BODY))
        await asyncio.sleep(0.05)
        refused = await client.post(CHAT, json=BODY)
        assert refused.status_code == 429
        again = await client.post(CHAT, json=BODY, headers=retry())
        return [again, await first]

    with FakeServer(thinker) as server:
        again, _ = talk(server, use, limits={"requests_at_once": 1})
    assert again.status_code == 429  # not the first one's reply: there was still no place


def test_a_failed_run_goes_on_under_its_idempotency_key() -> None:
    failing = True

    def script(request: Request) -> Any:
        return Failure(status=400) if failing and request.index >= 3 else thinker(request)

    async def use(client: httpx.AsyncClient) -> list[int]:
        nonlocal failing
        once = {"idempotency-key": "once"}
        first = await client.post(CHAT, json=BODY, headers=once)
        failing = False
        return [first.status_code, (await client.post(CHAT, json=BODY, headers=once)).status_code]

    with FakeServer(script) as server:
        assert talk(server, use) == [400, 200]
        assert len(server.requests) == 3 + 3 + 3 + 1


def test_with_two_clients_the_run_ends_with_the_second_that_leaves() -> None:
    async def use(client: httpx.AsyncClient) -> None:
        first = asyncio.create_task(client.post(CHAT, json=BODY))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(client.post(CHAT, json=BODY, headers=retry()))
        await asyncio.sleep(0.1)
        for task, left in ((first, 0), (second, 3)):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0.2)
            assert len(server.aborts) == left

    with FakeServer(Reply(content="for ever", stall_after=1)) as server:
        talk(server, use)
