"""Every document and every chunk of a stream, held against OpenAI's own description of its API."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from official_schemas import check
from service_under_test import QUESTION, ask, events_of, is_final, talk

from fake_openai import Failure, FakeServer, Reply, Request, ToolCall

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def answering(request: Request) -> Reply:
    if "tools" in request.body:
        return Reply(tool_calls=(ToolCall("add", '{"a": 1}'),))
    return Reply(reasoning="six sevens", content="It is \\boxed{42}." if is_final(request) else "\\boxed{42}")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"tools": TOOLS},
        {"n": 2},
        {"model": "zaya@single", "logprobs": True, "top_logprobs": 0},
        {"rsa_t": 1, "rsa_n": 2, "rsa_k": 1, "rsa_final_n": 2},
        {"mrsa": {"select": "majority"}},
    ],
)
def test_chat_completions_and_their_chunks(body: dict[str, Any]) -> None:
    with FakeServer(answering) as server:
        document = ask(server, **body)
        stream = ask(server, stream=True, stream_options={"include_usage": True}, **body)
    assert document.status_code == stream.status_code == 200
    check("CreateChatCompletionResponse", document.json())
    chunks = events_of(stream)
    assert len(chunks) > 3
    for chunk in chunks:
        check("CreateChatCompletionStreamResponse", chunk)


@pytest.mark.parametrize("body", [{}, {"logprobs": 1, "echo": True}, {"prompt": ["a b", "c"], "n": 2}])
def test_completions_and_their_chunks(body: dict[str, Any]) -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        asked = {"model": "zaya", "prompt": "40 + 2 =", **body}
        return [await client.post("/v1/completions", json={**asked, "stream": stream}) for stream in (False, True)]

    with FakeServer(Reply(content="it is 42")) as server:
        document, stream = talk(server, use)
    check("CreateCompletionResponse", _without_nulls(document.json()))
    ended, *_ = [chunk for chunk in events_of(stream) if chunk["choices"][0]["finish_reason"]]
    check("CreateCompletionResponse", _without_nulls(ended))


def test_models_and_errors() -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        wrong = await client.post("/v1/chat/completions", json={"model": "other", "messages": QUESTION})
        return (await client.get("/v1/models")).json(), (await client.get("/v1/models/zaya")).json(), wrong.json()

    with FakeServer(answering) as server:
        models, model, wrong = talk(server, use)
        server.script = Failure(status=500)
        failed = ask(server).json()
    check("ListModelsResponse", models)
    check("Model", model)
    check("ErrorResponse", wrong)
    check("ErrorResponse", failed)


def _without_nulls(document: dict[str, Any]) -> dict[str, Any]:
    """The description knows no null where OpenAI's service sends it for the first token of an echo."""
    for choice in document["choices"]:
        if choice["logprobs"] is not None:
            for name in ("token_logprobs", "top_logprobs"):
                choice["logprobs"][name] = [value for value in choice["logprobs"][name] if value is not None]
    return document
