"""The servers behind one backend: their addresses, what was learned of each, and which takes the next request."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import unquote, urlsplit, urlunsplit

from openzaya.backends.dialect import Dialect
from openzaya.backends.tokenize_endpoint import TokenizeEndpoint

_API_VERSION = re.compile(r"v\d+((alpha|beta)\d*)?")
_LONGEST_ASIDE = 60.0
_WORTH_A_CACHE = 4
"""Requests by which the server that may have a prompt's beginning in its cache may be busier than another."""

same_beginning: ContextVar[str | None] = ContextVar("same_beginning", default=None)
"""Set to one value around requests whose prompts begin alike, so that they go to the same server while it has room."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is. `api` ends in its version (`…/v1`), `root` does not; neither carries credentials."""

    api: str
    root: str
    authorization: str | None = field(default=None, repr=False)
    """From `user:password@` in the URL, kept out of it so that no log or error can show it."""


def parse_base_url(url: str) -> Address:
    """The address that a base URL means, with or without `/v1` and a trailing slash.

    Raises ValueError for anything but an http(s) URL without query and fragment.
    """
    parts = urlsplit(url.strip())
    shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{shown!r} is no base URL of a server; give one such as http://127.0.0.1:8000/v1")
    if parts.query or parts.fragment:
        raise ValueError(f"the base URL {shown} carries a query or a fragment; give it without them")
    segments = [segment for segment in parts.path.split("/") if segment]
    if not any(_API_VERSION.fullmatch(segment) for segment in segments):
        segments.append("v1")
    root_segments = segments[:-1] if _API_VERSION.fullmatch(segments[-1]) else segments
    host = parts.netloc.rpartition("@")[2]

    def place(path: Sequence[str]) -> str:
        return urlunsplit((parts.scheme, host, "/".join(["", *path]), "", ""))

    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return Address(api=place(segments), root=place(root_segments), authorization=authorization)


class ThinkingStart(Enum):
    """Who opens and marks the reasoning of a reply."""

    UNKNOWN = "not known yet"
    MODEL = "the model writes both tags, or does not reason"
    PROMPT = "the template opened the reasoning; the reply holds only the closing tag"
    SERVER = "the server sends reasoning in a field of its own"


@dataclass(slots=True)
class Upstream:
    """One server, its load, and what is known of it."""

    address: Address
    dialect: Dialect = field(default_factory=Dialect)
    thinking: ThinkingStart = ThinkingStart.UNKNOWN
    think_ids: tuple[int | None, int | None] = (None, None)
    """Ids of the opening and the closing tag, where each is one token."""
    models: tuple[str, ...] = ()
    context: int | None = None
    tokenize: TokenizeEndpoint | None = None
    tokenize_looked_for: bool = False
    acquainted: bool = False
    learning: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    busy: int = 0
    """Requests that it is answering now."""
    unreachable_in_a_row: int = 0
    aside_until: float = 0.0
    """By the pool's clock: not asked before then while another can be."""

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count one request as running here."""
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1


def _affinity(beginning: str, upstream: Upstream) -> bytes:
    """Which server a prompt prefers: when one comes or goes, only its own prompts move."""
    return hashlib.sha256(f"{beginning} {upstream.address.api}".encode()).digest()


class UpstreamPool:
    """Picks the least busy server; puts unreachable ones aside for a growing while.

    Raises ValueError without any URL, or for a URL given twice.
    """

    def __init__(self, base_urls: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.upstreams = [Upstream(parse_base_url(url)) for url in base_urls]
        self._clock = clock
        self._turn = 0
        addresses = [upstream.address.api for upstream in self.upstreams]
        if not addresses:
            raise ValueError("no base URL was given; name at least one server, such as http://127.0.0.1:8000/v1")
        if twice := {address for address in addresses if addresses.count(address) > 1}:
            raise ValueError(f"the base URL {min(twice)} is given twice; name each server once")

    def pick(self) -> Upstream:
        """The least busy server that is not put aside, in turns among equals; else the one that returns soonest.

        Prompts of the `same_beginning` go to one server as long as it is not much busier than the least busy one.
        """
        now = self._clock()
        count = len(self.upstreams)
        in_turn = [self.upstreams[(self._turn + i) % count] for i in range(count)]
        self._turn = (self._turn + 1) % count
        if ready := [upstream for upstream in in_turn if upstream.aside_until <= now]:
            least = min(ready, key=lambda upstream: upstream.busy)
            beginning = same_beginning.get()
            if beginning is None:
                return least
            home = max(ready, key=lambda upstream: _affinity(beginning, upstream))
            return home if home.busy <= least.busy + _WORTH_A_CACHE else least
        return min(in_turn, key=lambda upstream: upstream.aside_until)

    def has_ready(self) -> bool:
        """Whether any server is not put aside."""
        return any(upstream.aside_until <= self._clock() for upstream in self.upstreams)

    def unreachable(self, upstream: Upstream) -> None:
        """Put a server aside: one second, then twice as long each time, at most a minute."""
        upstream.aside_until = self._clock() + min(_LONGEST_ASIDE, 2.0**upstream.unreachable_in_a_row)
        upstream.unreachable_in_a_row = min(upstream.unreachable_in_a_row + 1, 10)

    def asked_to_wait(self, upstream: Upstream, seconds: float) -> None:
        """Put a server aside for as long as it asked (Retry-After)."""
        upstream.aside_until = max(upstream.aside_until, self._clock() + min(seconds, _LONGEST_ASIDE))

    def answered(self, upstream: Upstream) -> None:
        """Forget the failures of a server that answered."""
        upstream.unreachable_in_a_row = 0
        upstream.aside_until = 0.0
