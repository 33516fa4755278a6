"""`reasoning_effort`: what each word runs, by the default it is measured from and by the operator's own choice."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from service_under_test import QUESTION, ask, talk

from fake_openai import FakeServer, Reply
from openzaya.backends.protocol import Capabilities
from openzaya.serve.chat_request import ChatRequest
from openzaya.serve.config import make_config
from openzaya.serve.menu import make_menu
from openzaya.serve.work import plan_work

FITTED = {"preset": "local", "candidates": 4, "tails": 2, "rounds": 1, "beta": 200, "tau": 8, "final_tokens": 300}


@pytest.fixture(scope="module")
def shared() -> Any:
    with FakeServer(Reply(content="\\boxed{42}"), context=1 << 20) as server:
        yield server


@pytest.fixture
def server(shared: FakeServer) -> FakeServer:
    shared.requests.clear()
    return shared


@pytest.mark.parametrize(
    ("effort", "candidates", "rounds", "beta"),
    [("low", 8, 2, 8192), ("medium", 16, 2, 16384), ("high", 16, 2, 40960), ("xhigh", 32, 8, 32768)],
)
def test_beside_the_published_presets_an_effort_is_one_of_them(
    effort: Any, candidates: int, rounds: int, beta: int
) -> None:
    settings = make_config({"name": "zaya", "mrsa": {"preset": "default"}})
    source = Capabilities(context=1 << 20)
    request = ChatRequest.model_validate({"model": "zaya", "messages": QUESTION, "reasoning_effort": effort})
    config = plan_work(request, make_menu(settings, source), source, settings.limits).config
    assert (config.candidates, config.rounds, config.beta) == (candidates, rounds, beta)


@pytest.mark.parametrize(("effort", "candidates"), [("low", 2), ("medium", 4), ("high", 8), ("xhigh", 16)])
def test_beside_a_preset_that_is_fitted_to_its_model_an_effort_is_its_width(
    server: FakeServer, effort: str, candidates: int
) -> None:
    ask(server, settings={"mrsa": FITTED}, reasoning_effort=effort)
    assert len(server.requests) == 2 * candidates + 1
    assert {request.body["max_tokens"] for request in server.requests[:candidates]} == {200}


@pytest.mark.parametrize(("effort", "template"), [("minimal", None), ("none", {"enable_thinking": False})])
def test_minimal_is_one_reply_and_none_is_one_without_reasoning(
    server: FakeServer, effort: str, template: dict[str, Any] | None
) -> None:
    document = ask(server, reasoning_effort=effort).json()
    (request,) = server.requests
    assert request.body.get("chat_template_kwargs") == template
    assert request.messages == QUESTION
    assert "mrsa" not in document


def test_responses_take_it_where_openai_puts_it(server: FakeServer) -> None:
    async def use(client: httpx.AsyncClient) -> httpx.Response:
        body = {"model": "zaya", "input": "6 times 7?", "reasoning": {"effort": "low"}}
        return await client.post("/v1/responses", json=body)

    document = talk(server, use, mrsa=FITTED).json()
    assert document["mrsa"]["config"]["candidates"] == 2
    assert document["reasoning"]["effort"] == "low"


def test_what_is_said_more_exactly_goes_before_it(server: FakeServer) -> None:
    ask(server, reasoning_effort="xhigh", model="zaya@single")
    assert len(server.requests) == 1
    server.requests.clear()
    ask(server, settings={"mrsa": FITTED}, reasoning_effort="xhigh", mrsa={"candidates": 3})
    assert len(server.requests) == 2 * 3 + 1


def test_an_operator_says_what_an_effort_runs(server: FakeServer) -> None:
    efforts = {"low": {"preset": "majority", "candidates": 5}}
    ask(server, settings={"efforts": efforts}, reasoning_effort="low")
    assert len(server.requests) == 5


def test_another_word_is_refused_with_those_that_there_are(server: FakeServer) -> None:
    answer = ask(server, reasoning_effort="most")
    assert answer.status_code == 400
    assert "'xhigh'" in answer.json()["error"]["message"]
    assert not server.requests
