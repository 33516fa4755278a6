"""Reading a request: its body as a type, and what its headers say about joining."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from openzaya.serve.errors import ApiError, refused
from openzaya.serve.jobs import Ask

Body = TypeVar("Body", bound=BaseModel)

_LONGEST_IDEMPOTENCY_KEY = 255


async def read_request(request: Request, kind: type[Body], most_bytes: int) -> tuple[Body, dict[str, Any]]:
    """The body of a request as its type, and as it was sent; raises ApiError or pydantic's ValidationError."""
    content = await read_body(request, most_bytes)
    try:
        values = json.loads(content)
        if b"\\ud" in content.lower():
            json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise refused(f"the body is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise refused(f"the body is a JSON {type(values).__name__}; send an object")
    return kind.model_validate(values), values


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


def ask_of(
    request: Request,
    kind: str,
    body: Mapping[str, Any],
    *,
    keep: float,
    needed: Mapping[str, Any],
    background: bool = False,
) -> Ask:
    """What is asked, with what its headers say about joining. Raises ApiError (400)."""
    idempotency = request.headers.get("idempotency-key")
    if idempotency is not None and not 0 < len(idempotency) <= _LONGEST_IDEMPOTENCY_KEY:
        raise refused(
            f"the Idempotency-Key has {len(idempotency)} characters; 1 to {_LONGEST_IDEMPOTENCY_KEY} are read"
        )
    retry = request.headers.get("x-stainless-retry-count", "0")
    return Ask(
        kind=kind,
        key=request.state.key,
        body=body,
        idempotency=idempotency,
        retry=int(retry) if retry.isdecimal() else 0,
        background=background,
        keep=keep,
        request=needed,
    )
