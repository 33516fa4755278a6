"""HTTP as the backend needs it: JSON calls and event streams, bounded in size, with failures in one sentence."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import httpx

from openzaya.backends.failures import ServerMessage, UpstreamFailure, bounded, read_server_message, status_failure
from openzaya.backends.retries import parse_retry_after
from openzaya.backends.sse import Event, EventReader, MalformedStreamError
from openzaya.backends.upstreams import Address

_ERROR_BYTES = 64 << 10
_JSON_BYTES = 64 << 20
_SHORT_CALL_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds before giving up on a connection, and on a server that says nothing while it should answer.

    Long by default: a model may think for minutes behind a queue, and not every server sends signs of life.
    """

    connect: float = 10.0
    silence: float = 600.0

    def __post_init__(self) -> None:
        for name, value in (("connect", self.connect), ("silence", self.silence)):
            if not value > 0:
                raise ValueError(f"the {name} timeout is {value} s; it must be above 0")


_KEPT = 64
"""Idle connections that are kept to a server."""


class Transport:
    """HTTP to all servers of a backend. It verifies certificates and follows no redirect, so a key reaches only the
    hosts that were named.

    Every exchange has a client, and so a connection, of its own. One that ends well is kept for the next; one that is
    cut off is closed as a whole, because a pool that requests share keeps connections for ever whose request was
    cancelled at the wrong moment (httpx 0.28 with httpcore 1.0).
    """

    def __init__(
        self,
        *,
        api_key: str | None,
        api_key_env: str | None,
        timeouts: Timeouts,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._api_key = api_key
        self._api_key_env = api_key_env
        self._timeouts = timeouts
        self._new_client = partial(
            httpx.AsyncClient,
            transport=transport,
            verify=_verifying_context(),
            follow_redirects=False,
            # Compressed events would wait for a full block, and a small body could unpack into a huge one.
            headers={"Accept-Encoding": "identity"},
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
        )
        self._idle: dict[str, list[httpx.AsyncClient]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def get_json(self, address: Address, url: str) -> Any:
        """The JSON at a URL; raises UpstreamFailure."""
        return await self._call("GET", address, url, None)

    async def post_json(self, address: Address, url: str, body: Mapping[str, Any]) -> Any:
        """The JSON that a short POST returns; raises UpstreamFailure."""
        return await self._call("POST", address, url, body)

    async def events(self, address: Address, url: str, body: Mapping[str, Any]) -> AsyncGenerator[Event]:
        """The events of a streamed answer, ending with one named "end" where the server announced its end.

        A server that ignores `stream` and sends the whole reply as JSON gives one event. Raises UpstreamFailure.
        Closing the iterator closes the connection, which tells the server to stop.
        """
        reader = EventReader()
        async with self._response("POST", address, url, body, self._timeouts.silence) as response:
            if "json" in response.headers.get("content-type", ""):
                yield Event("message", (await self._read(response, url, _JSON_BYTES)).decode("utf-8", "replace"))
                yield Event("end", "")
                return
            async for data in response.aiter_bytes():
                for event in self._parsed(url, reader, data):
                    if event.data == "[DONE]":
                        yield Event("end", "")
                        return
                    yield event
            for event in reader.finish():
                yield Event("end", "") if event.data == "[DONE]" else event

    async def aclose(self) -> None:
        """Close every connection."""
        for clients in self._idle.values():
            while clients:
                self._close(clients.pop())
        while self._closing:
            await asyncio.wait(self._closing)

    def _parsed(self, url: str, reader: EventReader, data: bytes) -> list[Event]:
        try:
            return reader.feed(data)
        except MalformedStreamError as error:
            raise UpstreamFailure(f"{url} sent no readable stream: {error}", transient=True) from None

    async def _call(self, method: str, address: Address, url: str, body: Mapping[str, Any] | None) -> Any:
        silence = min(self._timeouts.silence, _SHORT_CALL_SECONDS)
        async with self._response(method, address, url, body, silence) as response:
            content = await self._read(response, url, _JSON_BYTES)
        try:
            return json.loads(content)
        except ValueError:
            said = bounded(content[:_ERROR_BYTES].decode("utf-8", "replace"))
            raise UpstreamFailure(f"{url} answered with something that is not JSON: {said}") from None

    @asynccontextmanager
    async def _response(
        self, method: str, address: Address, url: str, body: Mapping[str, Any] | None, silence: float
    ) -> AsyncIterator[httpx.Response]:
        """An answer with a 2xx status; every failure of HTTP inside the block becomes an UpstreamFailure."""
        timeout = httpx.Timeout(silence, connect=self._timeouts.connect, pool=None)
        try:
            async with (
                self._connection(address) as client,
                client.stream(method, url, json=body, headers=self._headers(address), timeout=timeout) as response,
            ):
                if not response.is_success:
                    raise await self._status_failure(response, url)
                yield response
        except httpx.HTTPError as error:
            raise self._http_failure(error, url, silence) from None

    @asynccontextmanager
    async def _connection(self, address: Address) -> AsyncIterator[httpx.AsyncClient]:
        """A client for one exchange."""
        idle = self._idle.setdefault(address.api, [])
        client = idle.pop() if idle else self._new_client()
        try:
            yield client
        except BaseException:
            self._close(client)
            raise
        if len(idle) < _KEPT:
            idle.append(client)
        else:
            self._close(client)

    def _close(self, client: httpx.AsyncClient) -> None:
        """Close a client in a task of its own, which no cancellation of the exchange interrupts."""
        task = asyncio.get_running_loop().create_task(client.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _headers(self, address: Address) -> dict[str, str]:
        if self._api_key:
            return {"Authorization": f"Bearer {self._api_key}"}
        return {"Authorization": address.authorization} if address.authorization else {}

    async def _read(self, response: httpx.Response, url: str, limit: int) -> bytes:
        body = bytearray()
        async for data in response.aiter_bytes():
            body += data
            if len(body) > limit:
                raise UpstreamFailure(f"{url} sent more than {limit} bytes")
        return bytes(body)

    async def _status_failure(self, response: httpx.Response, url: str) -> UpstreamFailure:
        body = bytearray()
        try:
            async for data in response.aiter_bytes():
                body += data
                if len(body) > _ERROR_BYTES:
                    break
        except httpx.HTTPError:
            pass  # the status says enough
        message = read_server_message(bytes(body[:_ERROR_BYTES]))
        location = response.headers.get("location")
        return status_failure(
            response.status_code,
            url,
            ServerMessage(self._without_key(message.text), message.code, message.param),
            retry_after=parse_retry_after(response.headers.get("retry-after")),
            api_key_env=self._api_key_env,
            key_was_sent="authorization" in response.request.headers,
            location=_shown_location(location) if location else None,
        )

    def _without_key(self, text: str) -> str:
        """Servers like to repeat the key that they refuse."""
        return text.replace(self._api_key, "***") if self._api_key else text

    def _http_failure(self, error: httpx.HTTPError, url: str, silence: float) -> UpstreamFailure:
        said = bounded(self._without_key(str(error)))
        if isinstance(error, httpx.ConnectError) and "CERTIFICATE" in said.upper():
            return UpstreamFailure(f"{url} shows a certificate that cannot be verified: {said}")
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
            detail = f" ({said})" if said else ""
            return UpstreamFailure(
                f"no connection to {url}{detail}; is the server running there?", retry=True, unreachable=True
            )
        if isinstance(error, httpx.ReadTimeout):
            # It may still be computing: sending the request again would have it done twice.
            return UpstreamFailure(f"{url} said nothing for {silence:g} s; raise the timeout", transient=True)
        if isinstance(error, httpx.TransportError):
            return UpstreamFailure(f"the connection to {url} broke ({said or type(error).__name__})", retry=True)
        return UpstreamFailure(f"the request to {url} failed ({said or type(error).__name__})")


@cache
def _verifying_context() -> ssl.SSLContext:
    """The certificates of this machine's trust store, read once: it takes longer than a request."""
    return httpx.create_ssl_context()


def _shown_location(location: str) -> str:
    """A redirect's target without credentials and query."""
    try:
        url = httpx.URL(location)
    except httpx.InvalidURL:
        return "the address it names"
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))
