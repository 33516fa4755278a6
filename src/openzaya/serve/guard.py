"""What every request passes before anything reads it: its id, its host, its key."""

from __future__ import annotations

import json
import logging
import uuid
from typing import TypeVar

from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openzaya.serve.errors import UNFORESEEN, ApiError, as_api_error, refused
from openzaya.serve.keys import is_loopback
from openzaya.serve.service import Service

logger = logging.getLogger(__name__)

Body = TypeVar("Body", bound=BaseModel)

_OPEN_PATHS = ("/", "/health/live", "/health/ready")
_OPEN_FILES = "/page/"
"""The files of the page that asks for the key."""


def error_response(error: ApiError) -> Response:
    """The envelope with its status."""
    return JSONResponse(error.envelope(), status_code=error.status, headers=error.headers)


def as_response(error: BaseException) -> Response:
    """What a client is told of any failure; what nobody foresaw goes to the log alone."""
    return error_response(told(error))


def told(error: BaseException) -> ApiError:
    """Any failure as a client sees it, with what nobody foresaw on the log."""
    known = as_api_error(error)
    if known is None:
        logger.error("unforeseen failure of a request", exc_info=error)
    return known or UNFORESEEN


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request in JSON. Raises ApiError (413, 415)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page in a browser can send any other type to a service on this machine without asking.
        raise ApiError(415, f"the content type is {kind!r}; send JSON as Content-Type: application/json")
    too_large = ApiError(413, f"the body is larger than {most:,} bytes, the most this service reads", code="too_large")
    if int(request.headers.get("content-length") or 0) > most:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise too_large
    return bytes(body)


async def read_request(request: Request, kind: type[Body], most_bytes: int) -> Body:
    """The body of a request as its type; raises ApiError or pydantic's ValidationError."""
    content = await read_body(request, most_bytes)
    try:
        values = json.loads(content)
        if b"\\ud" in content.lower():
            json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise refused(f"the body is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise refused(f"the body is a JSON {type(values).__name__}; send an object")
    return kind.model_validate(values)


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._own_hosts = self._hosts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex}"

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
                route = scope.get("route")
                path = getattr(route, "path", "other")
                self._service.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            self._check(scope)
        except ApiError as error:
            await error_response(error)(scope, receive, marked)
            return
        await self._app(scope, receive, marked)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = _host_of(headers.get("host", ""))
        if self._own_hosts is not None and host not in self._own_hosts:
            # Else a page whose name was made to point here could speak with a service that asks for no key.
            raise ApiError(403, f"the host {host!r} is not this service's; use 127.0.0.1, or give the service a key")
        if scope["path"] not in _OPEN_PATHS and not scope["path"].startswith(_OPEN_FILES):
            scope.setdefault("state", {})["key"] = self._service.keyring.holder(headers.get("authorization"))

    def _hosts(self) -> frozenset[str] | None:
        """The names under which a service without keys answers; None where keys protect it."""
        if self._service.keyring or not is_loopback(self._service.config.host):
            return None
        return frozenset({"localhost", "127.0.0.1", "::1", self._service.config.host})


def _host_of(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
