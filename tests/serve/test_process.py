"""A real process: `openzaya serve`, its address, its clients that leave, and its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_under_test import QUESTION

from fake_openai import FakeServer, Reply, Request

CONFIG = """
name = "zaya"
[mrsa]
preset = "default"
candidates = 3
tails = 2
rounds = 1
beta = 200
tau = 8
final_tokens = 300
"""
BODY = {"model": "zaya", "messages": QUESTION}


@contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The base URL of a service and its process."""
    command = [sys.executable, "-m", "openzaya", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        assert process.stderr is not None
        said = ""
        while (found := re.search(r"at (http://\S+)/v1", said)) is None:
            line = process.stderr.readline()
            assert line, f"it ended: {said}"
            said += line
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield found.group(1), process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeServer]:
    with FakeServer(Reply(content="\\boxed{42}")) as server:
        yield server


@pytest.fixture(scope="module")
def service(upstream: FakeServer, tmp_path_factory: Any) -> Iterator[str]:
    path: Path = tmp_path_factory.mktemp("serve") / "serve.toml"
    path.write_text(CONFIG)
    with serving("--backend", upstream.url, "--config", str(path)) as (url, _):
        yield url


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_every_rollout_at_its_source(
    service: str, upstream: FakeServer, stream: bool
) -> None:
    upstream.script = Reply(content="for ever and ever", stall_after=2)
    upstream.requests.clear()
    body = {**BODY, "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{service}/v1/chat/completions", json=body, timeout=1)  # it reads streams too
    upstream.wait_until(lambda server: len(server.aborts) == 3)
    assert len(upstream.requests) == 3
    assert "openzaya_requests_open 0.0" in httpx.get(f"{service}/metrics").text


def test_the_openai_client_reads_replies_streams_tools_and_errors(service: str, upstream: FakeServer) -> None:
    openai = pytest.importorskip("openai")
    upstream.requests.clear()
    upstream.script = thinker
    client = openai.OpenAI(base_url=f"{service}/v1", api_key="none", max_retries=0)
    reply = client.chat.completions.create(**BODY, extra_body={"mrsa": {"candidates": 4}})
    assert reply.choices[0].message.content == "It is \\boxed{42}."
    assert reply.usage.prompt_tokens > 100
    assert reply.mrsa["votes"] == {"42": 4}
    with client.chat.completions.stream(**BODY, stream_options={"include_usage": True}) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("content.delta") > 3
    assert final.choices[0].message.content == "It is \\boxed{42}."
    assert final.usage.completion_tokens_details.reasoning_tokens > 0
    assert next(model.id for model in client.models.list()) == "zaya"
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.chat.completions.create(model="other", messages=QUESTION)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**BODY, temperature=7)
    assert caught.value.param == "temperature"


def thinker(request: Request) -> Reply:
    if request.body["temperature"] == 1.0:
        return Reply(reasoning="six sevens", content="\\boxed{42}")
    return Reply(reasoning="all agree", content="It is \\boxed{42}.")


def test_sigterm_lets_an_open_request_end_and_takes_no_new_one(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(CONFIG)
    with (
        FakeServer(Reply(content="done", first_delay=1.5)) as server,
        serving("--backend", server.url, "--config", str(path)) as (url, process),
        httpx.Client() as client,
    ):
        assert client.get(f"{url}/health/ready").status_code == 200
        replies: list[httpx.Response] = []
        body = {**BODY, "model": "zaya@single"}
        asking = threading.Thread(
            target=lambda: replies.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20))
        )
        asking.start()
        server.wait_until(lambda server: len(server.requests) == 1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health/live")
        asking.join(20)
        assert replies[0].json()["choices"][0]["message"]["content"] == "done"
        assert process.wait(10) == 0


def test_the_bundled_model_is_served_without_any_setting() -> None:
    with serving() as (url, _):
        models = httpx.get(f"{url}/v1/models").json()["data"]
        body = {"model": "zaya1-tiny", "messages": [{"role": "user", "content": "Compute 17 + 25 - 9."}], "seed": 1}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json()
        echo = {"model": "zaya1-tiny@single", "messages": QUESTION, "max_tokens": 5, "logprobs": True}
        single = httpx.post(f"{url}/v1/chat/completions", json=echo, timeout=60).json()
    assert models[0]["id"] == "zaya1-tiny"
    assert {"zaya1-tiny@tiny", "zaya1-tiny@single"} <= {model["id"] for model in models}
    assert reply["mrsa"]["exactness"] == "ids"
    assert reply["mrsa"]["config"]["candidates"] == 16
    assert reply["choices"][0]["message"]["content"]
    assert len(single["choices"][0]["logprobs"]["content"]) == single["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "there is no key"),
        (["--config", "/nonexistent.toml"], "No such file"),
        (["--model", "tiny", "--backend", "http://x/v1"], "two sources"),
    ],
)
def test_a_service_that_cannot_be_run_says_why_in_one_sentence(arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "openzaya", "serve", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
