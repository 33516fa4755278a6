"""`POST /v1/completions` and `/openapi.json`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
import torch
from service_under_test import events_of, talk

from fake_openai import FakeServer, Reply
from fake_openai.streams import ReplyWriter
from openzaya.backends.embedded import EmbeddedBackend
from openzaya.chat.tokenizer import Tokenizer
from openzaya.engine.weights import find_weights
from openzaya.model.checkpoint import load_model
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


def test_an_echo_with_logprobs_tells_how_likely_the_prompt_is() -> None:
    ids = Tokenizer.from_folder(find_weights("tiny")).encode(PROMPT)
    ask = {"prompt": [ids, ids[:4]], "echo": True, "logprobs": 2, "temperature": 0}
    one, none, text = embedded(
        {**ask, "max_tokens": 1}, {**ask, "max_tokens": 0}, {**ask, "max_tokens": 0, "prompt": PROMPT}
    )
    scores = torch.log_softmax(load_model(find_weights("tiny"), dtype="float32")(torch.tensor([ids]))[0].double(), -1)
    expected = [scores[place, token].item() for place, token in enumerate(ids[1:])]
    for document, extra in ((one, 1), (none, 0), (text, 0)):
        logprobs = document["choices"][0]["logprobs"]
        assert len(logprobs["tokens"]) == len(ids) + extra
        assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
        assert logprobs["token_logprobs"][1 : len(ids)] == pytest.approx(expected, abs=1e-4)
        assert "".join(logprobs["tokens"][: len(ids)]) == PROMPT
        best = [max(top.values()) for top in logprobs["top_logprobs"][1:]]
        assert best[: len(ids) - 1] == pytest.approx(scores.amax(-1)[: len(ids) - 1].tolist(), abs=1e-4)
    shorter = none["choices"][1]["logprobs"]
    assert shorter["token_logprobs"][1:] == pytest.approx(expected[:3], abs=1e-4)
    assert none["choices"][0]["text"] == text["choices"][0]["text"] == PROMPT
    assert none["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_with_logprobs_is_asked_of_the_source(stream: bool) -> None:
    with FakeServer(Reply(content="one two")) as server:
        whole = complete(server, echo=True, logprobs=1, max_tokens=2, stream=stream)
        nothing_more = complete(server, echo=True, logprobs=1, max_tokens=0, stream=stream)
        assert [request.body["echo"] for request in server.requests] == [True, True]
        assert [request.body["max_tokens"] for request in server.requests] == [2, 1]
        asked = server.requests[0].body["prompt"]
        count = len(server.tokenizer.encode(PROMPT))
    for response, extra, text in ((whole, 2, PROMPT + "one two"), (nothing_more, 0, PROMPT)):
        choices = [k["choices"][0] for k in (events_of(response) if stream else [response.json()]) if k["choices"]]
        told = [choice["logprobs"] for choice in choices if choice["logprobs"] is not None]
        places = [score for part in told for score in part["token_logprobs"]]
        assert places == [None, *[-0.5] * (count - 1 + extra)]
        assert [offset for part in told for offset in part["text_offset"]][:2] == [0, len(told[0]["tokens"][0])]
        assert "".join(choice["text"] for choice in choices) == text
    assert asked == PROMPT


def test_a_source_that_tells_nothing_of_the_prompt_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReplyWriter, "_logprobs", lambda *_: {})
    with FakeServer(Reply(content="one two")) as server:
        answer = complete(server, echo=True, logprobs=1)
    assert answer.status_code == 400
    assert "no logprobs of a prompt" in answer.json()["error"]["message"]


def test_the_embedded_engine_gives_the_form_that_was_asked_for_after_its_rounds() -> None:
    schema = {
        "type": "object",
        "properties": {"value": {"type": "integer", "minimum": -99, "maximum": 99}},
        "required": ["value"],
        "additionalProperties": False,
    }
    question = {"messages": [{"role": "user", "content": "Compute 17 + 25 - 9."}], "seed": 1}
    form = {"type": "json_schema", "json_schema": {"name": "value", "schema": schema}}
    rounds = {"candidates": 3, "rounds": 1, "tails": 2, "beta": 64, "tau": 32}
    plain, solved = embedded(
        {**question, "model": "zaya1-tiny@single", "response_format": form, "max_tokens": 400},
        {**question, "response_format": form, "mrsa": rounds},
        path="/v1/chat/completions",
    )
    for answer in (plain, solved):
        (choice,) = answer["choices"]
        assert choice["finish_reason"] == "stop"
        assert json.loads(choice["message"]["content"]).keys() == {"value"}
    assert solved["usage"]["completion_tokens"] > plain["usage"]["completion_tokens"]


def test_the_embedded_engine_refuses_a_form_that_cannot_be_held_to_before_any_rollout() -> None:
    question = {"messages": [{"role": "user", "content": PROMPT}]}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    tools = [{"type": "function", "function": {"name": "add"}}]
    form, choice = embedded(
        {**question, "response_format": schema},
        {**question, "tools": tools, "tool_choice": {"type": "function", "function": {"name": "multiply"}}},
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
