"""The death of the service at any moment, and what the next one does."""

from __future__ import annotations

import json
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_process import BODY, CONFIG, serving

from fake_openai import FakeServer, Reply, Request

ASK = {"model": "zaya", "input": "What is 6 times 7?", "background": True}


def configured(tmp_path: Path) -> Path:
    path = tmp_path / "serve.toml"
    path.write_text(f'store = "{tmp_path / "jobs.sqlite"}"\n{CONFIG}')
    return path


def ended(url: str, id: str) -> dict[str, Any]:
    """The document of a response once it has ended."""
    until = time.monotonic() + 60
    while (document := httpx.get(f"{url}/v1/responses/{id}", timeout=60).json())["status"] in ("queued", "in_progress"):
        assert time.monotonic() < until, document
        time.sleep(0.02)
    return document


class Upstream:
    """Counts the seeds that it answers to the end, and holds back the requests from `hold` on."""

    def __init__(self, hold: int) -> None:
        self.hold: int | None = hold

    def __call__(self, request: Request) -> Reply:
        held = self.hold is not None and request.index >= self.hold
        return Reply(content="\\boxed{42} all of it", stall_after=3 if held else None)


@pytest.mark.parametrize("hold", [3, *(pytest.param(hold, marks=pytest.mark.slow) for hold in (0, 1, 2, 4, 5, 6))])
def test_killed_at_any_moment_no_finished_rollout_is_lost_and_the_job_goes_on(tmp_path: Path, hold: int) -> None:
    path = configured(tmp_path)
    upstream = Upstream(hold)
    round_of = 0 if hold < 3 else 3 if hold < 6 else 6
    open_ones = 3 - (hold - round_of) if hold < 6 else 1
    with FakeServer(upstream) as server:
        with serving("--backend", server.url, "--config", str(path)) as (url, process):
            id = httpx.post(f"{url}/v1/responses", json=ASK, timeout=60).json()["id"]
            server.wait_until(lambda server: len(server.requests) == hold + open_ones)
            server.wait_until(lambda server: sum(request.answered for request in server.requests) == hold)
            time.sleep(0.3)  # what was answered reaches the store
            process.kill()
        upstream.hold = None
        finished = {request.body["seed"] for request in server.requests if request.answered}
        before = len(server.requests)
        with serving("--backend", server.url, "--config", str(path)) as (url, _):
            document = ended(url, id)
            stream = httpx.get(f"{url}/v1/responses/{id}", params={"stream": "true"}, timeout=60).text
    again = [request.body["seed"] for request in server.requests[before:]]
    assert document["status"] == "completed"
    assert document["output"][-1]["content"][0]["text"] == "\\boxed{42} all of it"
    assert len(finished) == hold
    assert not finished & set(again)
    assert len(again) == 7 - hold
    events = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"


def test_a_run_of_the_playground_goes_on_after_the_death_of_the_service(tmp_path: Path) -> None:
    path = configured(tmp_path)
    upstream = Upstream(hold=4)
    with FakeServer(upstream) as server:
        with serving("--backend", server.url, "--config", str(path)) as (url, process):
            id = httpx.post(f"{url}/runs", json=BODY, timeout=60).json()["id"]
            server.wait_until(lambda server: len(server.requests) == 6 and server.requests[3].answered)
            seen = told(url, id, until="rollout", of_round=1)
            process.kill()
        upstream.hold = None
        finished = {request.body["seed"] for request in server.requests if request.answered}
        with serving("--backend", server.url, "--config", str(path)) as (url, _):
            whole = told(url, id, until="end")
            rest = told(url, id, until="end", after=len(seen))
    again = [request.body["seed"] for request in server.requests[6:]]
    assert len(finished) == 4
    assert len(again) == 2 + 1
    assert not finished & set(again)
    assert [record["kind"] for record in whole] == ["header", *["rollout"] * 7, "end"]
    assert whole[-1]["text"] == "\\boxed{42} all of it"
    assert whole[: len(seen)] == seen
    assert rest == whole[len(seen) :]


def told(url: str, id: str, *, until: str, of_round: int | None = None, after: int = 0) -> list[dict[str, Any]]:
    """The records of a run as its watcher gets them, until the first of a kind."""
    records = []
    with httpx.stream("GET", f"{url}/runs/{id}/events", params={"after": after}, timeout=60) as response:
        for line in response.iter_lines():
            if not line.startswith("data: ") or (record := json.loads(line.removeprefix("data: ")))["kind"] == "now":
                continue
            records.append(record)
            if record["kind"] == until and record.get("round") == of_round:
                break
    return records


def test_a_retry_after_the_death_of_the_service_goes_on_with_the_chat(tmp_path: Path) -> None:
    path = configured(tmp_path)
    upstream = Upstream(hold=3)
    with FakeServer(upstream) as server:
        with serving("--backend", server.url, "--config", str(path)) as (url, process):

            def ask() -> None:
                with suppress(httpx.HTTPError):
                    httpx.post(f"{url}/v1/chat/completions", json=BODY, timeout=30)

            asking = threading.Thread(target=ask)
            asking.start()
            server.wait_until(lambda server: len(server.requests) == 6)
            process.kill()
            asking.join()
        upstream.hold = None
        with serving("--backend", server.url, "--config", str(path)) as (url, _):
            headers = {"x-stainless-retry-count": "1"}
            reply = httpx.post(f"{url}/v1/chat/completions", json=BODY, headers=headers, timeout=30).json()
    assert reply["mrsa"]["votes"] == {"42": 3}
    assert len(server.requests) == 6 + 3 + 1


def test_sigterm_stops_background_work_which_the_next_service_goes_on_with(tmp_path: Path) -> None:
    path = configured(tmp_path)
    upstream = Upstream(hold=4)
    with FakeServer(upstream) as server:
        with serving("--backend", server.url, "--config", str(path)) as (url, process):
            id = httpx.post(f"{url}/v1/responses", json=ASK, timeout=60).json()["id"]
            server.wait_until(lambda server: len(server.requests) == 6 and server.requests[3].answered)
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        server.wait_until(lambda server: len(server.aborts) == 2)
        upstream.hold = None
        with serving("--backend", server.url, "--config", str(path)) as (url, _):
            assert ended(url, id)["status"] == "completed"
    assert len(server.requests) == 6 + 2 + 1


def test_the_openai_client_uses_responses_in_the_background(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    path = configured(tmp_path)
    with (
        FakeServer(Reply(content="\\boxed{42} all of it", delay=0.02)) as server,
        serving("--backend", server.url, "--config", str(path)) as (url, _),
    ):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        plain = client.responses.create(model="zaya", input="6 times 7?", extra_body={"mrsa": {"candidates": 4}})
        assert plain.output_text == "\\boxed{42} all of it"
        assert client.responses.retrieve(plain.id).output_text == plain.output_text
        with client.responses.stream(model="zaya", input="6 times 7?") as stream:
            kinds = [event.type for event in stream]
            assert stream.get_final_response().output_text == plain.output_text
        assert kinds.count("response.output_text.delta") > 3
        seen = []
        stream = client.responses.create(model="zaya", input="6 times 7?", background=True, stream=True)
        for event in stream:
            seen.append(event)
            if event.sequence_number == 6:
                break
        stream.close()
        rest = list(client.responses.retrieve(seen[0].response.id, stream=True, starting_after=6))
        assert rest[0].sequence_number == 7
        assert rest[-1].type == "response.completed"
        more = client.responses.create(model="zaya", input="And 7?", previous_response_id=plain.id, background=True)
        assert client.responses.cancel(more.id).status == "cancelled"
        assert [item.type for item in client.responses.input_items.list(plain.id)] == ["message"]
        client.responses.delete(plain.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(plain.id)
