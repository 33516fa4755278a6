"""Addresses, and which server takes the next request."""

from __future__ import annotations

import pytest

from openzaya.backends.upstreams import UpstreamPool, parse_base_url


@pytest.mark.parametrize(
    ("url", "api", "root"),
    [
        ("http://host:8000", "http://host:8000/v1", "http://host:8000"),
        ("http://host:8000/", "http://host:8000/v1", "http://host:8000"),
        ("http://host:8000/v1", "http://host:8000/v1", "http://host:8000"),
        ("http://host:8000/v1/", "http://host:8000/v1", "http://host:8000"),
        ("https://host/api/v1", "https://host/api/v1", "https://host/api"),
        ("https://host/proxy", "https://host/proxy/v1", "https://host/proxy"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai", "https://host/v1beta/openai"),
        ("https://host/paas/v4", "https://host/paas/v4", "https://host/paas"),
    ],
)
def test_a_base_url_is_taken_with_or_without_its_version(url: str, api: str, root: str) -> None:
    address = parse_base_url(url)
    assert (address.api, address.root) == (api, root)


def test_credentials_in_a_url_become_a_header_and_are_never_shown() -> None:
    address = parse_base_url("https://user:pa%40ss@host/v1")
    assert address.authorization == "Basic dXNlcjpwYUBzcw=="
    assert "pa" not in address.api
    assert "dXNl" not in repr(address)


@pytest.mark.parametrize("url", ["", "host:8000", "ftp://host", "http://", "http://host/v1?key=secret"])
def test_what_is_no_base_url_is_refused_without_repeating_a_secret(url: str) -> None:
    with pytest.raises(ValueError, match="base URL") as caught:
        parse_base_url(url)
    assert "secret" not in str(caught.value)


def test_the_least_busy_server_is_picked_and_equals_take_turns() -> None:
    pool = UpstreamPool(["http://a", "http://b", "http://c"])
    assert {pool.pick().address.api for _ in range(3)} == {"http://a/v1", "http://b/v1", "http://c/v1"}
    pool.upstreams[0].busy = pool.upstreams[1].busy = 2
    assert all(pool.pick() is pool.upstreams[2] for _ in range(3))


def test_an_unreachable_server_is_put_aside_for_a_growing_while_and_forgiven_when_it_answers() -> None:
    now = [0.0]
    pool = UpstreamPool(["http://a", "http://b"], clock=lambda: now[0])
    bad, good = pool.upstreams
    waits = []
    for _ in range(9):
        pool.unreachable(bad)
        waits.append(bad.aside_until - now[0])
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(waits) == 60.0
    assert all(pool.pick() is good for _ in range(4))
    now[0] = bad.aside_until
    assert {id(pool.pick()) for _ in range(2)} == {id(bad), id(good)}
    pool.answered(bad)
    pool.unreachable(bad)
    assert bad.aside_until - now[0] == 1.0


def test_with_every_server_aside_the_one_that_returns_soonest_is_picked() -> None:
    pool = UpstreamPool(["http://a", "http://b"], clock=lambda: 0.0)
    pool.asked_to_wait(pool.upstreams[0], 30)
    pool.asked_to_wait(pool.upstreams[1], 5)
    assert not pool.has_ready()
    assert pool.pick() is pool.upstreams[1]


@pytest.mark.parametrize(("urls", "words"), [([], "no base URL"), (["http://a", "http://a/v1"], "given twice")])
def test_a_pool_needs_servers_each_named_once(urls: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        UpstreamPool(urls)
