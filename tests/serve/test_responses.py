"""`/v1/responses`, judged by OpenAI's own description of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from official_schemas import check
from service_under_test import is_final, talk

from fake_openai import Failure, FakeServer, Reply, Request, ToolCall

URL = "/v1/responses"
ASK = {"model": "zaya", "input": "What is 6 times 7?"}
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": False}


def thinker(request: Request) -> Reply:
    if is_final(request):
        return Reply(reasoning="all agree", content="It is \\boxed{42}.", cached_tokens=5)
    return Reply(reasoning="six sevens", content="\\boxed{42}")


def slow(request: Request) -> Reply:
    return Reply(content="\\boxed{42} and so on", delay=0.03)


def respond(server: FakeServer, *, settings: Any = None, **body: Any) -> httpx.Response:
    return talk(server, lambda client: client.post(URL, json={**ASK, **body}), **(settings or {}))


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each of which is what its name says and valid, numbered from its first on."""
    events = []
    for frame in response.text.split("\n\n"):
        if frame and not frame.startswith(":"):
            name, data = frame.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            check("ResponseStreamEvent", event)
            events.append(event)
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(events))) if numbers else True
    return events


def text_of(document: dict[str, Any]) -> str:
    parts = [part for item in document["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


def test_a_response_is_the_reply_of_a_run_in_openais_shape() -> None:
    with FakeServer(thinker) as server:
        response = respond(server, metadata={"who": "me"}, instructions="Be brief.", max_output_tokens=50)
        assert len(server.requests) == 3 + 3 + 1
        assert server.requests[-1].messages[0] == {"role": "system", "content": "Be brief."}
        assert server.requests[-1].body["max_tokens"] == 50
    document = response.json()
    check("Response", document)
    assert document["status"] == "completed"
    assert [item["type"] for item in document["output"]] == ["reasoning", "message"]
    assert document["output"][0]["content"][0]["text"] == "all agree"
    assert "2 of 3 done" in document["output"][0]["summary"][0]["text"]
    assert text_of(document) == "It is \\boxed{42}."
    assert document["mrsa"]["votes"] == {"42": 3}
    assert document["usage"]["input_tokens_details"]["cached_tokens"] == 5
    assert document["metadata"] == {"who": "me"}


def test_a_stream_tells_of_every_item_and_ends_with_the_document() -> None:
    with FakeServer(thinker) as server:
        events = events_of(respond(server, stream=True))
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-1] == "response.completed"
    said = {
        kind: "".join(event["delta"] for event in events if event["type"] == kind)
        for kind in set(kinds)
        if "delta" in kind
    }
    assert said["response.output_text.delta"] == "It is \\boxed{42}."
    assert said["response.reasoning_text.delta"] == "all agree"
    assert "42 leads with 3 votes" in said["response.reasoning_summary_text.delta"]
    document = events[-1]["response"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert document["output"] == done
    assert kinds.count("response.output_item.added") == len(done) == 2


def test_function_tools_come_back_as_calls_and_their_outputs_go_to_the_model() -> None:
    def caller(request: Request) -> Reply:
        if any(message["role"] == "tool" for message in request.messages):
            return Reply(content="It is 3.")
        if "tools" in request.body:
            return Reply(tool_calls=(ToolCall("add", '{"a": 1, "b": 2}'), ToolCall("add", "{}", id="call_1")))
        return Reply(content="\\boxed{3}")

    async def use(client: httpx.AsyncClient) -> Any:
        first = await client.post(
            URL, json={**ASK, "tools": [TOOL], "tool_choice": {"type": "function", "name": "add"}}
        )
        streamed = await client.post(URL, json={**ASK, "tools": [TOOL], "stream": True})
        document = first.json()
        call = document["output"][-2]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "3"}
        second = await client.post(
            URL,
            json={"model": "zaya@single", "input": [output], "previous_response_id": document["id"], "tools": [TOOL]},
        )
        return document, streamed, second.json(), (await client.get(f"{URL}/{second.json()['id']}/input_items")).json()

    with FakeServer(caller) as server:
        document, streamed, second, items = talk(server, use)
        messages = server.requests[-1].messages
        final = server.requests[6]
    check("Response", document)
    check("ResponseItemList", items)
    assert final.body["tools"][0]["function"]["name"] == "add"
    assert final.body["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    calls = [item for item in document["output"] if item["type"] == "function_call"]
    assert [call["arguments"] for call in calls] == ['{"a": 1, "b": 2}', "{}"]
    events = events_of(streamed)
    pieces = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(pieces) == '{"a": 1, "b": 2}{}'
    assert text_of(second) == "It is 3."
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"] == calls[0]["call_id"]
    assert [item["type"] for item in items["data"]] == ["function_call_output"]


def test_a_conversation_goes_on_from_a_previous_response_but_not_its_instructions() -> None:
    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        first = await client.post(URL, json={**ASK, "instructions": "Be brief."})
        more = {"model": "zaya", "input": [{"role": "user", "content": "And 7 times 7?"}]}
        second = await client.post(URL, json={**more, "previous_response_id": first.json()["id"]})
        third = await client.post(URL, json={**more, "previous_response_id": second.json()["id"]})
        unknown = await client.post(URL, json={**more, "previous_response_id": "resp_none"})
        return [third, unknown]

    with FakeServer(thinker) as server:
        third, unknown = talk(server, use)
        messages = server.requests[-1].messages
    assert third.json()["status"] == "completed"
    roles = [message["role"] for message in messages]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert messages[0]["content"] == "What is 6 times 7?"
    assert messages[1]["content"] == "It is \\boxed{42}."
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "previous_response_not_found")


def test_structured_output_and_effort_reach_the_final_call() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    with FakeServer(thinker) as server:
        document = respond(server, text={"format": form}, reasoning={"effort": "minimal"}).json()
        (request,) = server.requests
    check("Response", document)
    assert request.body["response_format"]["json_schema"] == {"name": "answer", "schema": schema, "strict": True}


async def poll(client: httpx.AsyncClient, id: str) -> dict[str, Any]:
    """The document of a response once it has ended."""
    async with asyncio.timeout(20):
        while True:
            document = (await client.get(f"{URL}/{id}")).json()
            check("Response", document)
            if document["status"] not in ("queued", "in_progress"):
                return document
            await asyncio.sleep(0.02)


def test_a_background_response_is_polled_and_deleted() -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        created = (await client.post(URL, json={**ASK, "background": True})).json()
        check("Response", created)
        ended = await poll(client, created["id"])
        deleted = (await client.delete(f"{URL}/{created['id']}")).json()
        return created, ended, deleted, (await client.get(f"{URL}/{created['id']}")).status_code

    with FakeServer(slow) as server:
        created, ended, deleted, status = talk(server, use)
    assert created["status"] in ("queued", "in_progress")
    assert ended["status"] == "completed"
    assert text_of(ended) == "\\boxed{42} and so on"
    assert deleted == {"id": created["id"], "object": "response", "deleted": True}
    assert status == 404


def test_a_background_response_that_is_cancelled_stops_at_its_source() -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        created = (await client.post(URL, json={**ASK, "background": True})).json()
        await asyncio.sleep(0.2)
        cancelled = await client.post(f"{URL}/{created['id']}/cancel")
        again = await client.post(f"{URL}/{created['id']}/cancel")
        foreground = (await client.post(URL, json={**ASK, "model": "zaya@single", "max_output_tokens": 2})).json()
        refused = await client.post(f"{URL}/{foreground['id']}/cancel")
        return cancelled.json(), again.json(), foreground, refused.status_code

    with FakeServer(lambda request: Reply(content="on and on", stall_after=1 if request.index < 3 else None)) as server:
        cancelled, again, foreground, refused = talk(server, use)
        server.wait_until(lambda server: len(server.aborts) == 3)
    check("Response", cancelled)
    assert cancelled["status"] == again["status"] == "cancelled"
    assert (foreground["status"], foreground["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert refused == 400


@pytest.mark.parametrize("ended", [False, True])
def test_a_background_stream_is_resumed_after_any_event(ended: bool) -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        created = (await client.post(URL, json={**ASK, "background": True})).json()
        if ended:
            await poll(client, created["id"])
        whole, rest = await asyncio.gather(
            client.get(f"{URL}/{created['id']}", params={"stream": "true"}),
            client.get(f"{URL}/{created['id']}", params={"stream": "true", "starting_after": 3}),
        )
        return events_of(whole), events_of(rest)

    with FakeServer(slow) as server:
        whole, rest = talk(server, use)
    assert whole[0]["type"] == "response.created"
    assert whole[-1]["type"] == "response.completed"
    assert rest == whole[4:]


def test_a_response_that_is_not_to_be_stored_cannot_be_found() -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        kept, forgotten = [(await client.post(URL, json={**ASK, "store": store})).json() for store in (True, False)]
        found = [(await client.get(f"{URL}/{one['id']}")).status_code for one in (kept, forgotten)]
        both = await client.post(URL, json={**ASK, "store": False, "background": True})
        return forgotten, found, both.status_code

    with FakeServer(thinker) as server:
        forgotten, found, both = talk(server, use)
    assert text_of(forgotten) == "It is \\boxed{42}."
    assert found == [200, 404]
    assert both == 400


def test_nobody_sees_the_responses_of_another_key() -> None:
    from openzaya.serve.keys import hashed

    keys = [{"name": name, "sha256": hashed(name)} for name in ("alice", "bob")]

    async def use(client: httpx.AsyncClient) -> list[int]:
        alice, bob = ({"authorization": f"Bearer {name}"} for name in ("alice", "bob"))
        id = (await client.post(URL, json=ASK, headers=alice)).json()["id"]
        asked = [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")]
        others = [
            (await client.request(method, f"{URL}/{id}{path}", headers=bob)).status_code for method, path in asked
        ]
        return [*others, (await client.get(f"{URL}/{id}", headers=alice)).status_code]

    with FakeServer(thinker) as server:
        assert talk(server, use, keys=keys) == [404, 404, 404, 404, 200]


def test_a_failure_is_a_status_before_the_stream_and_an_event_in_it_and_a_status_of_the_job() -> None:
    def breaks_late(request: Request) -> Any:
        return Reply(content="half an answer", cut_after=3) if is_final(request) else thinker(request)

    async def use(client: httpx.AsyncClient) -> Any:
        early = await client.post(URL, json={**ASK, "model": "zaya@single", "stream": True})
        created = (await client.post(URL, json={**ASK, "background": True})).json()
        return early, await poll(client, created["id"])

    with FakeServer(Failure(status=500)) as server:
        early, failed = talk(server, use)
    assert early.status_code == 502
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    with FakeServer(breaks_late) as server:
        events = events_of(respond(server, stream=True))
    document = events[-1]["response"]
    assert text_of(document) == "\\boxed{42}"  # the largest group answers in the place of the final call
    partial = [event["item"] for event in events if event["type"] == "response.output_item.done"][-2]
    assert partial["status"] == "incomplete"
    assert partial not in document["output"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input_audio"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"model": "other"}, "no model"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"mrsa": {"candidats": 3}}, "candidats"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_asked(body: dict[str, Any], said: str) -> None:
    with FakeServer(thinker) as server:
        response = respond(server, **body)
        assert not server.requests
    assert response.status_code in (400, 404)
    check("ErrorResponse", response.json())
    assert said in response.text


def test_an_idempotency_key_finds_a_finished_response_and_its_stream(tmp_path: Path) -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        once = {"idempotency-key": "once"}
        first = await client.post(URL, json={**ASK, "stream": True}, headers=once)
        return first, await client.post(URL, json={**ASK, "stream": True}, headers=once)

    with FakeServer(thinker) as server:
        first, second = (events_of(response) for response in talk(server, use))
        assert len(server.requests) == 7
    assert first[-1]["response"]["id"] == second[-1]["response"]["id"]
    assert text_of(first[-1]["response"]) == text_of(second[-1]["response"])
