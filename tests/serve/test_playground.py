"""The playground's addresses, without a browser: its files, and runs that are started, watched, stopped and kept."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_under_test import QUESTION, is_final, talk

from fake_openai import Failure, FakeServer, Reply, Request
from openzaya.mrsa.journal import JsonLinesSink
from openzaya.serve.keys import hashed
from openzaya.serve.run_feed import RunFeed

FOUND = Reply(reasoning="six sevens", content="It is \\boxed{42}.")


async def start(client: httpx.AsyncClient, **body: Any) -> str:
    answer = await client.post("/runs", json={"model": "zaya", "messages": QUESTION, **body})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def records(client: httpx.AsyncClient, run: str, after: int = 0) -> list[tuple[int, dict[str, Any]]]:
    """Every record of a run to its end, with its number."""
    answer = await client.get(f"/runs/{run}/events", params={"after": after})
    assert answer.status_code == 200, answer.text
    frames = [frame for frame in answer.text.split("\n\n") if frame.startswith("id: ")]
    parts = [frame.split("\ndata: ") for frame in frames]
    return [(int(number.removeprefix("id: ")), json.loads(data)) for number, data in parts]


def kept(told: list[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The records without those that only say how far the writing is."""
    return [record for _, record in told if record["kind"] != "now"]


@pytest.fixture(scope="module")
def server() -> Any:
    with FakeServer(FOUND) as server:
        yield server


def test_a_run_is_told_as_the_records_of_its_journal(server: FakeServer) -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        return await records(client, await start(client))

    told = kept(talk(server, use))
    assert [record["kind"] for record in told] == ["header", *["rollout"] * 7, "end"]
    assert told[0]["messages"] == QUESTION
    assert {(record["round"], record["group"]) for record in told[1:-1]} == {(0, 0), (1, 0), (2, 0)}
    assert told[-1]["answer"] == "42"
    assert told[-1]["text"] == "It is \\boxed{42}."
    assert told[-1]["chosen"] == [2, 0]
    assert told[-1]["usage"]["completion_tokens"] == sum(r["usage"]["completion_tokens"] for r in told[1:-1])


def test_a_run_is_reopened_with_the_same_records(server: FakeServer) -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        run = await start(client)
        return await records(client, run), await records(client, run), await records(client, run, after=8)

    live, again, rest = talk(server, use)
    assert kept(live) == kept(again)
    assert [number for number, _ in again] == list(range(1, 10))
    assert rest == again[8:]


def test_the_reasoning_is_left_to_who_asks_for_it(server: FakeServer) -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        run = await start(client)
        told = kept(await records(client, run))
        return told[1], await client.get(f"/runs/{run}/rollouts/0/0"), await client.get(f"/runs/{run}/rollouts/0/9")

    record, whole, none = talk(server, use)
    assert "reasoning" not in record
    assert record["reasoning_characters"] == len("six sevens")
    assert whole.json()["reasoning"] == "six sevens"
    assert none.status_code == 404


def test_the_final_text_arrives_while_it_is_written() -> None:
    def script(request: Request) -> Reply:
        return Reply(content="one two three four \\boxed{4}", delay=0.12) if is_final(request) else FOUND

    async def use(client: httpx.AsyncClient) -> Any:
        return await records(client, await start(client))

    with FakeServer(script) as server:
        told = [record for _, record in talk(server, use)]
    pieces = [record for record in told if record["kind"] == "now" and record["text"]]
    assert len(pieces) >= 2
    text = ""
    for piece in pieces:
        text = text[: piece["from"]] + piece["text"]
    assert told[-1]["text"].startswith(text)


def test_equivalent_answers_are_one_group_from_round_to_round() -> None:
    answers = {0: "0.5", 1: "1/2", 2: "3"}

    def script(request: Request) -> Reply:
        return Reply(reasoning="so", content=f"\\boxed{{{answers[request.index % 3]}}}")

    async def use(client: httpx.AsyncClient) -> Any:
        return kept(await records(client, await start(client)))

    with FakeServer(script) as scripted:
        told = talk(scripted, use)
    groups = {record["answer"]: record["group"] for record in told if record["kind"] == "rollout"}
    assert groups["0.5"] == groups["1/2"] != groups["3"]


def test_stopping_ends_every_rollout_and_keeps_what_had_finished() -> None:
    def script(request: Request) -> Reply:
        return FOUND if request.index == 0 else Reply(content="for ever", stall_after=1)

    async def use(client: httpx.AsyncClient) -> Any:
        run = await start(client)
        while len(server.requests) < 3 or not await finished(client, run):
            await asyncio.sleep(0.01)
        stopped = await client.post(f"/runs/{run}/cancel")
        return stopped.status_code, kept(await records(client, run)), await client.get("/metrics")

    async def finished(client: httpx.AsyncClient, run: str) -> bool:
        places = [await client.get(f"/runs/{run}/rollouts/0/{index}") for index in range(3)]
        return any(place.status_code == 200 for place in places)

    with FakeServer(script) as server:
        status, told, metrics = talk(server, use)
        server.wait_until(lambda server: len(server.aborts) == 2)
    assert status == 200
    assert [record["kind"] for record in told] == ["header", "rollout", "stopped"]
    assert "openzaya_requests_open 0.0" in metrics.text


def test_a_run_that_fails_says_why_and_goes_on_saying_it() -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        run = await start(client)
        return kept(await records(client, run)), kept(await records(client, run))

    with FakeServer(Failure(status=400, message="no such thing")) as server:
        live, again = talk(server, use)
    assert live == again
    assert live[-1]["kind"] == "failed"
    assert "no such thing" in live[-1]["error"]["message"]


def test_a_plain_reply_is_a_run_of_one_candidate(server: FakeServer) -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        run = await start(client, model="zaya@single")
        return kept(await records(client, run)), kept(await records(client, run))

    live, again = talk(server, use)
    assert [record["kind"] for record in live] == ["header", "rollout", "end"]
    assert (live[-1]["answer"], live[-1]["chosen"]) == ("42", [0, 0])
    assert live == again


def test_a_run_is_seen_by_the_key_that_started_it_alone(server: FakeServer) -> None:
    keys = [{"name": name, "sha256": hashed(name)} for name in ("alice", "bob")]

    async def use(client: httpx.AsyncClient) -> Any:
        alice, bob = ({"authorization": f"Bearer {name}"} for name in ("alice", "bob"))
        run = (await client.post("/runs", json={"model": "zaya", "messages": QUESTION}, headers=alice)).json()["id"]
        paths = (f"/runs/{run}/events", f"/runs/{run}/page", f"/runs/{run}/rollouts/0/0")
        own = [(await client.get(path, headers=alice)).status_code for path in paths]
        others = [(await client.get(path, headers=bob)).status_code for path in paths]
        others.append((await client.post(f"/runs/{run}/cancel", headers=bob)).status_code)
        nobody = (await client.get(paths[0])).status_code
        return own, others, nobody, (await client.get("/")).status_code, (await client.get("/page/app.js")).status_code

    own, others, nobody, page, script = talk(server, use, keys=keys)
    assert own == [200, 200, 200]
    assert others == [404, 404, 404, 404]
    assert nobody == 401
    assert (page, script) == (200, 200)


@pytest.mark.parametrize(
    ("body", "said"), [({"n": 2}, "one reply"), ({"model": "other"}, "no model"), ({"mrsa": {"candidates": 0}}, "0")]
)
def test_what_cannot_be_run_is_refused_at_once(server: FakeServer, body: dict[str, Any], said: str) -> None:
    async def use(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/runs", json={"model": "zaya", "messages": QUESTION, **body})

    answer = talk(server, use)
    assert answer.status_code in (400, 404)
    assert said in answer.json()["error"]["message"]


def test_the_page_runs_nothing_and_speaks_to_nobody_else(server: FakeServer) -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        page = await client.get("/")
        names = [part.split('"')[0] for part in page.text.split('src="')[1:]]
        files = [await client.get(f"/{name}") for name in [*names, "page/style.css", "page/icon.svg"]]
        return page, files, await client.get("/page/app.js", headers={"if-none-match": files[0].headers["etag"]})

    page, files, _ = talk(server, use)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in page.text
    assert "//" not in page.text.replace("<!doctype", "")
    assert all(file.status_code == 200 and file.headers["x-content-type-options"] == "nosniff" for file in files)


def test_models_tell_the_shape_of_their_preset(server: FakeServer) -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        return (await client.get("/v1/models")).json()["data"]

    models = {model["id"]: model["mrsa"] for model in talk(server, use)}
    assert models["zaya"]["candidates"] == 3
    assert models["zaya@single"]["rounds"] == 0


@pytest.mark.parametrize("model", ["zaya", "zaya@single"])
def test_the_next_service_goes_on_with_runs_and_reopens_those_that_had_ended(tmp_path: Path, model: str) -> None:
    left_asks = [{"role": "user", "content": "seven eights?"}]

    def script(request: Request) -> Reply:
        hangs = holding and "seven eights" in str(request.body["messages"]) and (single or is_final(request))
        return Reply(content="It is", stall_after=1) if hangs else FOUND

    async def begin(client: httpx.AsyncClient) -> tuple[str, str]:
        ended, left = await start(client, model=model), await start(client, model=model, messages=left_asks)
        await records(client, ended)
        while len(server.requests) < (2 if single else 14):
            await asyncio.sleep(0.01)
        return ended, left

    async def reopen(client: httpx.AsyncClient) -> Any:
        return [await records(client, run) for run in runs], await records(client, runs[1], after=3)

    holding, single = True, model == "zaya@single"
    store = str(tmp_path / "store.sqlite")
    with FakeServer(script) as server:
        runs = talk(server, begin, store=store)
        before, holding = len(server.requests), False
        (ended, left), rest = talk(server, reopen, store=store)
        asked_again = len(server.requests) - before
    assert [record["kind"] for record in kept(ended)] == ["header", *["rollout"] * (1 if single else 7), "end"]
    assert [record["kind"] for record in kept(left)] == [record["kind"] for record in kept(ended)]
    assert kept(left)[-1]["text"] == FOUND.content
    assert asked_again == 1
    assert kept(rest) == kept(left)[3:]


def test_a_watcher_gets_the_end_that_comes_while_it_is_sent_what_was_before(tmp_path: Path) -> None:
    async def watch() -> list[str]:
        feed = RunFeed(JsonLinesSink(tmp_path / "run.jsonl"))
        feed._records.append({"kind": "header"})
        told = []
        async for _, record in feed.watch():
            told.append(record["kind"])
            feed.close({"kind": "end"})
        return told

    assert asyncio.run(watch()) == ["header", "end"]


def test_a_run_that_the_next_service_cannot_go_on_with_says_why(tmp_path: Path) -> None:
    async def begin(client: httpx.AsyncClient) -> str:
        return await start(client)

    async def reopen(client: httpx.AsyncClient) -> Any:
        return kept(await records(client, run))

    store = str(tmp_path / "store.sqlite")
    with FakeServer(Reply(content="for ever", stall_after=1)) as server:
        run = talk(server, begin, store=store)
        told = talk(server, reopen, store=store, name="another")
    assert told[-1]["kind"] == "failed"
    assert "there is no model 'zaya'" in told[-1]["error"]["message"]
