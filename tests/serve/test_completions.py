"""`POST /v1/completions` and `/openapi.json`."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from service_under_test import events_of, talk

from fake_openai import FakeServer, Reply
from openzaya.backends.embedded import EmbeddedBackend
from openzaya.serve.app import create_app
from openzaya.serve.config import make_config
from openzaya.serve.service import Service

PROMPT = "Compute 17 + 25."


def complete(server: FakeServer, **body: Any) -> httpx.Response:
    async def use(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/completions", json={"model": "zaya", "prompt": PROMPT, **body})

    return talk(server, use)


def embedded(*bodies: dict[str, Any], path: str = "/v1/completions") -> list[dict[str, Any]]:
    async def run() -> list[dict[str, Any]]:
        backend = await EmbeddedBackend.open("tiny", dtype="float32")
        service = Service(make_config({}), backend)
        transport = httpx.ASGITransport(create_app(service))
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return [(await client.post(path, json={"model": "zaya1-tiny", **body})).json() for body in bodies]
        finally:
            await backend.aclose()

    return asyncio.run(run())


def test_the_embedded_engine_continues_text_and_ids_with_logprobs() -> None:
    greedy = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0}
    plain, listed, echoed = embedded(
        {**greedy, "logprobs": 3}, {**greedy, "prompt": [PROMPT, "Hello"]}, {**greedy, "echo": True}
    )
    (choice,) = plain["choices"]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == plain["usage"]["completion_tokens"] == 6
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert all(
        top[token] == max(top.values()) == logprob
        for token, logprob, top in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
        )
    )
    assert logprobs["text_offset"][1] == len(logprobs["tokens"][0])
    assert [entry["index"] for entry in listed["choices"]] == [0, 1]
    assert listed["choices"][0]["text"] == choice["text"]
    assert echoed["choices"][0]["text"] == PROMPT + choice["text"]


def test_the_embedded_engine_refuses_a_constraint_before_any_rollout() -> None:
    question = {"messages": [{"role": "user", "content": PROMPT}]}
    tools = [{"type": "function", "function": {"name": "add"}}]
    form, choice = embedded(
        {**question, "response_format": {"type": "json_object"}},
        {**question, "tools": tools, "tool_choice": "required"},
        path="/v1/chat/completions",
    )
    assert form["error"]["param"] == "response_format"
    assert choice["error"]["param"] == "tool_choice"


def test_a_prompt_is_sent_as_it_is_and_streams() -> None:
    with FakeServer(Reply(content="one two three")) as server:
        chunks = events_of(complete(server, stream=True, stream_options={"include_usage": True}, n=2, stop="x", seed=3))
        assert {request.body["prompt"] for request in server.requests} == {PROMPT}
        assert {request.body["max_tokens"] for request in server.requests} == {16}
        assert len({request.body["seed"] for request in server.requests}) == 2
    texts = ["".join(c["text"] for k in chunks for c in k["choices"] if c["index"] == index) for index in (0, 1)]
    assert texts == ["one two three"] * 2
    assert chunks[-1]["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"model": "zaya@light"}, "no rounds"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of is 3"),
        ({"prompt": ""}, "empty"),
        ({"prompt": [[]]}, "empty"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"echo": True, "logprobs": 1}, "logprobs of the prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": ["a"] * 999}, "999 replies"),
    ],
)
def test_a_wrong_request_is_refused(body: Any, said: str) -> None:
    with FakeServer(Reply(content="x")) as server:
        response = complete(server, **body)
    assert response.status_code in (400, 404)
    assert said in response.json()["error"]["message"]
    assert not server.requests


def test_the_description_names_every_field_and_path() -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        return (await client.get("/openapi.json")).json()

    with FakeServer(Reply(content="x")) as server:
        described = talk(server, use)
    chat = described["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "mrsa", "rsa_t", "rsa_tail_window_len", "tail_window_len", "reasoning_effort"} <= set(chat)
    assert not [name for name in chat if name.startswith("\0") or name == "rsa"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics"} <= set(described["paths"])
    references = str(described).split("#/components/schemas/")[1:]
    assert {text.split("'")[0] for text in references} <= set(described["components"]["schemas"])
