"""Counting, encoding and decoding through servers, or without them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pytest

from fake_openai import Failure, FakeServer, Reply, WordTokenizer
from openzaya.backends import ChatParams, collect
from openzaya.backends.openai import OpenAIBackend

T = TypeVar("T")
TEXT = "So x = 12,\n  é. </think> 😀"


def run_with(urls: Sequence[str], use: Callable[[OpenAIBackend], Awaitable[T]], **settings: Any) -> T:
    async def run() -> T:
        backend = OpenAIBackend(urls, "fake", **{"backoff": 0.01, **settings})
        try:
            return await use(backend)
        finally:
            await backend.aclose()

    return asyncio.run(run())


async def both_ways(backend: OpenAIBackend) -> tuple[int | None, str | None]:
    ids = await backend.encode(TEXT)
    assert await backend.count(TEXT) == (None if ids is None else len(ids))
    return (None, None) if ids is None else (len(ids), await backend.decode(ids))


@pytest.mark.parametrize("style", ["vllm", "sglang", "llamacpp"])
def test_every_servers_tokenize_endpoints_are_found_once_and_used(style: Any) -> None:
    with FakeServer(Reply(), tokenize=style) as server:

        async def use(backend: OpenAIBackend) -> tuple[int | None, str | None]:
            await both_ways(backend)
            asked = len(server.other_requests)
            result = await both_ways(backend)
            assert len(server.other_requests) - asked == 3
            assert backend.capabilities.tokenize
            return result

        assert run_with([server.url], use) == (len(server.tokenizer.encode(TEXT)), TEXT)
        added = [
            request.body.get("add_special_tokens", request.body.get("skip_special_tokens"))
            for request in server.other_requests
            if request.body
        ]
    assert set(added) == {False}


@pytest.mark.parametrize("style", [None, "wrong_shape"])
def test_no_endpoint_and_one_of_another_shape_are_both_none(style: Any) -> None:
    with FakeServer(Reply(), tokenize=style) as server:
        assert run_with([server.url], both_ways) == (None, None)


def test_a_local_tokenizer_serves_where_the_server_has_none() -> None:
    words = WordTokenizer()
    with FakeServer(Reply()) as server:
        assert run_with([server.url], both_ways, tokenizer=words) == (len(words.encode(TEXT)), TEXT)


def test_the_servers_tokenizer_comes_before_the_local_one() -> None:
    class Wrong:
        def encode(self, text: str) -> list[int]:
            raise AssertionError("the local tokenizer was asked")

        def decode(self, ids: Sequence[int]) -> str:
            raise AssertionError("the local tokenizer was asked")

    with FakeServer(Reply(), tokenize="vllm") as server:
        assert run_with([server.url], both_ways, tokenizer=Wrong())[1] == TEXT


def test_a_server_without_endpoint_does_not_hide_another_with_one() -> None:
    with FakeServer(Reply()) as bare, FakeServer(Reply(), tokenize="vllm") as full:
        assert run_with([bare.url, full.url], both_ways)[1] == TEXT


def test_nothing_is_asked_about_nothing() -> None:
    with FakeServer(Reply()) as server:

        async def use(backend: OpenAIBackend) -> tuple[Any, ...]:
            return await backend.encode(""), await backend.count(""), await backend.decode([])

        assert run_with([server.url], use) == ([], 0, "")
        assert not server.other_requests


def test_a_server_that_is_down_has_no_tokenizer_and_raises_nothing() -> None:
    assert run_with(["http://127.0.0.1:9/v1"], both_ways, retries=0) == (None, None)


def test_a_server_still_loading_is_waited_for() -> None:
    with FakeServer([Failure(status=503), Reply(content="4")], vendor="llamacpp", tokenize="llamacpp") as server:

        async def use(backend: OpenAIBackend) -> str:
            return (await collect(backend.chat([{"role": "user", "content": "2+2"}], ChatParams()))).content

        assert run_with([server.url], use) == "4"
