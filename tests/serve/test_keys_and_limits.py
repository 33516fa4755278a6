"""Who is let in, and how much one request may take."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest
from service_under_test import QUESTION, ask, talk

from fake_openai import Failure, FakeServer, Reply, Request
from openzaya.serve.config import make_config, read_config
from openzaya.serve.keys import hashed, keyring

KEY = "sk-a-long-and-secret-key"
KEYS = [{"name": "alice", "sha256": hashed(KEY)}]


def thinker(request: Request) -> Reply:
    return Reply(content="\\boxed{42}")


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {KEY}", "Bearer ", KEY])
def test_without_a_known_key_nothing_is_done(header: str | None) -> None:
    with FakeServer(thinker) as server:
        headers = {"authorization": header} if header else None
        response = ask(server, headers=headers, settings={"keys": KEYS})
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert not server.requests


def test_a_known_key_is_let_in_and_appears_in_no_log_and_no_upstream_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeServer(thinker) as server:
        response = ask(server, headers={"authorization": f"Bearer {KEY}"}, settings={"keys": KEYS})
    assert response.status_code == 200
    assert KEY not in caplog.text
    assert all(KEY not in str(request) for request in server.requests)


@pytest.mark.parametrize("script", [Reply(reasoning="six sevens", content="\\boxed{42} it is"), Failure(status=400)])
def test_what_people_ask_and_what_models_write_is_in_no_log(script: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeServer(script) as server:
        ask(server)
        ask(server, model="zaya@single", stream=True)
        ask(server, temperature=9, stop="a secret of mine")
    assert caplog.records
    for text in ("6 times 7", "six sevens", "boxed{42} it is", "a secret of mine"):
        assert text not in caplog.text


def test_a_public_address_needs_a_key() -> None:
    with pytest.raises(ValueError, match=r"0\.0\.0\.0.*no key"):
        keyring(make_config({"host": "0.0.0.0"}), None)
    assert keyring(make_config({"host": "0.0.0.0"}), KEY)
    assert keyring(make_config({"host": "0.0.0.0", "keys": KEYS}), None)
    assert not keyring(make_config({"host": "127.0.0.1"}), None)
    assert KEY not in repr(keyring(make_config({}), KEY))


def test_a_page_in_a_browser_cannot_use_a_service_without_keys() -> None:
    async def use(client: httpx.AsyncClient) -> list[int]:
        body = {"model": "zaya", "messages": QUESTION}
        rebound = await client.post("/v1/chat/completions", json=body, headers={"host": "evil.example:8000"})
        simple = await client.post("/v1/chat/completions", content=str(body), headers={"content-type": "text/plain"})
        here = await client.post("/v1/chat/completions", json=body, headers={"host": "127.0.0.1:8000"})
        return [rebound.status_code, simple.status_code, here.status_code]

    with FakeServer(thinker) as server:
        assert talk(server, use) == [403, 415, 200]


def test_a_large_body_is_refused_whether_or_not_it_says_its_length() -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b" " * 100

    async def use(client: httpx.AsyncClient) -> list[int]:
        kind = {"content-type": "application/json"}
        told = await client.post("/v1/chat/completions", content=b" " * 5000, headers=kind)
        untold = await client.post("/v1/chat/completions", content=chunks(), headers=kind)
        return [told.status_code, untold.status_code]

    with FakeServer(thinker) as server:
        assert talk(server, use, limits={"body_bytes": 2000}) == [413, 413]


def test_a_run_may_not_come_to_more_tokens_than_allowed() -> None:
    limits = {"limits": {"largest_run": 2000}}
    with FakeServer(thinker) as server:
        assert ask(server, settings=limits, max_tokens=200).status_code == 200  # 3 * 200 + 3 * 300 + 200
        large = ask(server, settings=limits, mrsa={"candidates": 4}, max_tokens=200)
        choices = ask(server, settings=limits, n=2, max_tokens=200)
        budget = ask(server, settings=limits, mrsa={"candidates": 4, "max_total_tokens": 2000}, max_tokens=200)
    assert (large.status_code, choices.status_code, budget.status_code) == (400, 400, 200)
    assert large.json()["error"]["code"] == "run_too_large"
    assert "2,200 tokens" in large.json()["error"]["message"]


def test_a_key_may_have_its_own_largest_run() -> None:
    keys = [{**KEYS[0], "largest_run": 100}]
    with FakeServer(thinker) as server:
        response = ask(server, headers={"authorization": f"Bearer {KEY}"}, settings={"keys": keys})
    assert response.json()["error"]["code"] == "run_too_large"


def test_more_requests_than_places_are_told_to_come_again() -> None:
    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        body = {"model": "zaya@single", "messages": QUESTION}
        first = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        await asyncio.sleep(0.1)
        second = await client.post("/v1/chat/completions", json=body)
        return [await first, second, await client.post("/v1/chat/completions", json=body)]

    with FakeServer(Reply(content="slow", first_delay=0.4)) as server:
        first, second, third = talk(server, use, limits={"requests_at_once": 1})
    assert [response.status_code for response in (first, second, third)] == [200, 429, 200]
    assert second.headers["retry-after"] == "5"
    assert second.json()["error"]["type"] == "rate_limit_error"


def test_no_more_rollouts_are_open_at_the_source_than_allowed() -> None:
    async def use(client: httpx.AsyncClient) -> None:
        body = {"model": "zaya", "messages": QUESTION}
        await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(3)))

    with FakeServer(Reply(content="\\boxed{42}", first_delay=0.02)) as server:
        talk(server, use, limits={"rollouts_at_once": 4})
        assert server.most_at_once == 4
        assert len(server.requests) == 3 * 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "prot is no setting"),
        ("port = 99999", "port is 99999"),
        ("[limits]\nrounds = 3", "limits.rounds is no setting"),
        ('[[keys]]\nname = "a"\nsha256 = "secret"', "keys.0.sha256 is …"),
        ("port = ", "not TOML"),
    ],
)
def test_a_wrong_setting_is_one_sentence(tmp_path: Any, text: str, said: str) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_config(path)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_operators_own_presets_are_chosen_like_the_bundled_ones() -> None:
    own = {"quick": {"preset": "light", "candidates": 2, "tails": 1, "rounds": 1, "beta": 100, "tau": 8}}

    async def use(client: httpx.AsyncClient) -> Any:
        asks = [
            {"model": "zaya@quick"},
            {"mrsa": {"preset": "quick", "candidates": 3}},
            {"reasoning_effort": "low"},
            {},
        ]
        bodies = [{"model": "zaya", "messages": QUESTION, **asked} for asked in asks]
        replies = [(await client.post("/v1/chat/completions", json=body)).json() for body in bodies]
        return replies, (await client.get("/v1/models")).json()["data"]

    with FakeServer(thinker) as server:
        settings = {"presets": own, "efforts": {"low": {"preset": "quick"}}, "mrsa": {"preset": "quick", "rounds": 0}}
        replies, models = talk(server, use, **settings)
    configs = [reply["mrsa"]["config"] for reply in replies]
    assert [(one["candidates"], one["rounds"], one["beta"]) for one in configs] == [
        (2, 1, 100), (3, 1, 100), (2, 1, 100), (2, 0, 100),
    ]  # fmt: skip
    assert models[1]["id"] == "zaya@quick"
    assert models[1]["mrsa"]["beta"] == 100


@pytest.mark.parametrize(
    ("presets", "said"),
    [
        ({"light": {"preset": "light"}}, "taken"),
        ({"mine": {"candidates": 2}}, "name one of"),
        ({"m": {"preset": "light", "tau": 0}}, "0"),
    ],
)
def test_a_preset_that_cannot_be_is_refused_at_the_start(presets: Any, said: str) -> None:
    with FakeServer(thinker) as server, pytest.raises(ValueError, match=said):
        ask(server, settings={"presets": presets})


def test_the_command_line_wins_over_the_file(tmp_path: Any) -> None:
    path = tmp_path / "serve.toml"
    path.write_text('port = 1\nbackend = ["http://a/v1"]\n[mrsa]\npreset = "light"')
    assert read_config(path, port=2).port == 2
    assert read_config(path, model="tiny").backend == ()
    assert read_config(path).mrsa == {"preset": "light"}
