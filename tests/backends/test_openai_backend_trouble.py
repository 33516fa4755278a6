"""The backend when servers fail, stall, lie or vanish, and when its caller leaves."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import httpx
import pytest

from fake_openai import Failure, FakeServer, Reply, Request
from openzaya.backends import BackendError, ChatParams, collect
from openzaya.backends import Reply as Collected
from openzaya.backends.openai import OpenAIBackend
from openzaya.backends.retries import RetryPolicy

T = TypeVar("T")
HELLO = [{"role": "user", "content": "What is 2 + 2?"}]
ANSWER = Reply(reasoning="two and two", content="4")
KEY = "sk-secret-123456"


def run_with(urls: Sequence[str], use: Callable[[OpenAIBackend], Awaitable[T]], **settings: Any) -> T:
    async def run() -> T:
        backend = OpenAIBackend(urls, **{"model": "fake", "backoff": 0.01, **settings})
        try:
            return await use(backend)
        finally:
            await backend.aclose()

    return asyncio.run(run())


def ask_once(backend: OpenAIBackend) -> Awaitable[Collected]:
    return collect(backend.chat(HELLO, ChatParams()))


def failure_of(script: Any, **settings: Any) -> tuple[BackendError, FakeServer]:
    """The error that a scripted server earns, and the server."""
    with FakeServer(script) as server:
        with pytest.raises(BackendError) as caught:
            run_with([server.url], ask_once, **settings)
        return caught.value, server


def closed_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_survived(status: int) -> None:
    with FakeServer([Failure(status=status), Failure(status=status), ANSWER]) as server:
        assert run_with([server.url], ask_once).content == "4"
        assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_lasting_failure_is_told_at_once(status: int) -> None:
    error, server = failure_of(Failure(status=status, message="because"))
    assert (error.status, error.transient, len(server.requests)) == (status, False, 1)
    assert f"answered {status}: because" in str(error)


def test_retries_are_bounded_and_counted_in_the_error() -> None:
    error, server = failure_of(Failure(status=503, message="busy"), retries=2)
    assert len(server.requests) == 3
    assert str(error) == f"{server.url}/chat/completions answered 503: busy (after 3 tries)"
    assert error.transient


def test_the_wait_is_as_long_as_the_server_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = []

    def no_wait(policy: RetryPolicy, attempt: int, retry_after: float | None, rng: Any) -> float:
        asked.append(retry_after)
        return 0.0

    monkeypatch.setattr(RetryPolicy, "delay", no_wait)
    with FakeServer([Failure(status=429, headers={"Retry-After": "7"}), Failure(status=500), ANSWER]) as server:
        run_with([server.url], ask_once)
    assert asked == [7.0, None]


def test_a_stream_that_dies_before_its_first_word_is_asked_again() -> None:
    for accident in ({"cut_after": 0}, {"garble_after": 1}, {"error_after": 1}):
        with FakeServer([Reply(content="4", **accident), ANSWER]) as server:
            assert run_with([server.url], ask_once).content == "4"
            assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("accident", "words"),
    [({"cut_after": 3}, "broke"), ({"garble_after": 3}, "not JSON"), ({"error_after": 3}, "the engine died")],
)
def test_a_stream_that_dies_after_its_first_word_is_an_error_and_never_said_twice(
    accident: dict[str, int], words: str
) -> None:
    heard: list[str] = []

    async def listen(backend: OpenAIBackend) -> None:
        async for delta in backend.chat(HELLO, ChatParams()):
            heard.append(delta.reasoning)

    with FakeServer(Reply(reasoning="one two three four", **accident)) as server:
        with pytest.raises(BackendError, match=words) as caught:
            run_with([server.url], listen)
        assert len(server.requests) == 1
    assert caught.value.transient
    assert "".join(heard) == "one"


def test_a_server_that_falls_silent_is_given_up_and_not_asked_twice() -> None:
    for stall in (0, 3):
        error, server = failure_of(Reply(reasoning="one two three", stall_after=stall), silence_timeout=0.2)
        assert "said nothing for 0.2 s" in str(error)
        assert (error.transient, len(server.requests)) == (True, 1)


def test_comments_keep_a_slow_reply_alive() -> None:
    slow = {"content": "4", "delay": 0.6}
    with FakeServer(Reply(keep_alive_comments=True, **slow), usage=False) as server:
        assert run_with([server.url], ask_once, silence_timeout=0.45).content == "4"
    error, _ = failure_of(Reply(**slow), silence_timeout=0.45)
    assert "said nothing" in str(error)


def test_nobody_listening_is_told_with_the_address() -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(BackendError, match="is the server running there") as caught:
        run_with([url], ask_once, retries=1)
    assert url in str(caught.value)
    assert caught.value.transient


def test_another_server_takes_over_at_once_from_one_that_is_down() -> None:
    with FakeServer(ANSWER) as server:
        urls = [f"http://127.0.0.1:{closed_port()}/v1", server.url]

        async def many(backend: OpenAIBackend) -> list[Collected]:
            return [await ask_once(backend) for _ in range(6)]

        replies = run_with(urls, many, retries=0)
        assert [reply.content for reply in replies] == ["4"] * 6
        assert len(server.requests) == 6


def test_discovery_does_not_wait_for_a_server_that_is_down_while_another_answers() -> None:
    with FakeServer(ANSWER, models=("zaya",)) as server:
        urls = [f"http://127.0.0.1:{closed_port()}/v1", server.url]
        start = time.monotonic()
        known = run_with(urls, lambda backend: backend.discover(), model=None, retries=40)
        assert time.monotonic() - start < 60
    assert known.model == "zaya"


def test_discovery_of_nothing_but_dead_servers_is_an_error() -> None:
    with pytest.raises(BackendError, match="is the server running there"):
        run_with([f"http://127.0.0.1:{closed_port()}/v1"], lambda backend: backend.discover(), retries=1)


def test_load_is_spread_over_servers_and_concurrency_is_bounded() -> None:
    slow = Reply(content="4", delay=0.02)
    with FakeServer(slow) as a, FakeServer(slow) as b:

        async def many(backend: OpenAIBackend) -> None:
            await asyncio.gather(*(ask_once(backend) for _ in range(16)))

        run_with([a.url, b.url], many, concurrency=4)
        assert len(a.requests) + len(b.requests) == 16
        assert min(len(a.requests), len(b.requests)) >= 5
        assert a.most_at_once + b.most_at_once <= 4 + 2  # a server counts a reply until its last byte is gone
        assert max(a.most_at_once, b.most_at_once) >= 2


def test_a_server_that_asked_for_time_gets_it_while_another_works() -> None:
    with (
        FakeServer(Failure(status=429, headers={"Retry-After": "30"})) as tired,
        FakeServer(ANSWER) as fresh,
    ):

        async def many(backend: OpenAIBackend) -> None:
            for _ in range(4):
                await ask_once(backend)

        start = time.monotonic()
        run_with([tired.url, fresh.url], many)
        assert time.monotonic() - start < 25
        assert len(tired.requests) == 1


@pytest.mark.parametrize("style", ["reasoning", "plain"])
def test_closing_the_stream_stops_the_work_at_its_source(style: Any) -> None:
    async def leave(backend: OpenAIBackend) -> None:
        stream = backend.chat(HELLO, ChatParams())
        async for delta in stream:
            if delta.tokens:
                break
        await stream.aclose()

    with FakeServer(Reply(reasoning="one two three four", stall_after=4), style=style) as server:
        run_with([server.url], leave)
        server.wait_until(lambda server: bool(server.aborts))
        assert len(server.requests) == len(server.aborts) == 1


def test_cancelling_a_task_reaches_every_open_request_and_frees_its_place() -> None:
    stalls = 12

    def script(request: Request) -> Reply:
        return Reply(reasoning="one two three", stall_after=2) if request.index < stalls else ANSWER

    with FakeServer(script) as server:

        async def cancel_all(backend: OpenAIBackend) -> str:
            tasks = [asyncio.create_task(ask_once(backend)) for _ in range(stalls)]
            while len(server.requests) < stalls:
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(server.wait_until, lambda server: len(server.aborts) == stalls)
            return (await ask_once(backend)).content

        assert run_with([server.url], cancel_all, concurrency=stalls) == "4"


def test_requests_cancelled_at_any_moment_leave_no_connection_open() -> None:
    with FakeServer(lambda request: Reply(content="so " * 40, delay=0.001)) as server:

        async def use(backend: OpenAIBackend) -> None:
            await ask_once(backend)
            moments = random.Random(0)
            for _ in range(6):
                tasks = [asyncio.ensure_future(ask_once(backend)) for _ in range(40)]
                for task in moments.sample(tasks, 30):
                    await asyncio.sleep(moments.uniform(0, 0.004))
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(server.wait_until, lambda seen: seen.connections == 0, 30)
            assert (await ask_once(backend)).content.startswith("so so")

        run_with([server.url], use, concurrency=64)


def test_cancelling_while_waiting_to_retry_sends_nothing_more() -> None:
    with FakeServer(Failure(status=503, headers={"Retry-After": "30"})) as server:

        async def cancel(backend: OpenAIBackend) -> None:
            task = asyncio.create_task(ask_once(backend))
            while not server.requests:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        run_with([server.url], cancel)
        assert len(server.requests) == 1


def test_a_wrong_key_is_told_with_its_variable_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeServer(ANSWER, api_key="right") as server:
        backend = OpenAIBackend([server.url], api_key=KEY)
        with pytest.raises(BackendError) as caught:
            run_with([server.url], ask_once, api_key=KEY, api_key_env="MY_KEY")
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert run_with([server.url], ask_once, api_key="right").content == "4"
    assert caught.value.status == 401
    assert "MY_KEY holds a key that this server accepts" in str(caught.value)
    for shown in (str(caught.value), repr(caught.value), repr(backend), caplog.text):
        assert KEY not in shown


def test_credentials_in_the_url_are_sent_as_a_header_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeServer(Failure(status=400, message="no")) as server:
        url = server.url.replace("http://", f"http://user:{KEY}@")
        with pytest.raises(BackendError) as caught:
            run_with([url], ask_once)
        assert server.requests[0].headers["authorization"].startswith("Basic ")
    assert KEY not in str(caught.value) + caplog.text


def test_a_redirect_is_not_followed_and_no_other_host_sees_the_key() -> None:
    with FakeServer(ANSWER) as other:
        target = {"Location": f"{other.url}/chat/completions?token={KEY}"}
        error, _ = failure_of(Failure(status=307, headers=target), api_key=KEY)
        assert not other.requests
    assert f"give {other.url}/chat/completions as the base URL" in str(error)
    assert KEY not in str(error)


def test_certificates_are_verified_and_a_bad_one_is_not_tried_again() -> None:
    tries: list[str] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        tries.append(str(request.url))
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")

    with pytest.raises(BackendError, match="certificate that cannot be verified"):
        run_with(["https://host/v1"], ask_once, transport=httpx.MockTransport(refuse))
    assert tries == ["https://host/v1/models", "https://host/v1/chat/completions"]


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 1
            yield b"data: " + b"x" * (1 << 20)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        return httpx.Response(200, content=endless(), headers={"content-type": "text/event-stream"})

    with pytest.raises(BackendError, match="longer than 16777216 bytes"):
        run_with(["http://host"], ask_once, transport=httpx.MockTransport(answer))
    assert sent < 20


def test_a_long_error_page_is_shortened() -> None:
    error, _ = failure_of(Failure(status=400, body="<html>" + "x" * 100_000))
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"concurrency": 0}, "concurrency is 0"), ({"retries": -1}, "retries is -1"), ({"silence_timeout": 0}, "silence")],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OpenAIBackend(["http://host"], **settings)
