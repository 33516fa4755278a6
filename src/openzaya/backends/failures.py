"""What a server said when it refused, and the one sentence that a person reads about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openzaya.backends.retries import TRANSIENT_STATUSES

MESSAGE_LIMIT = 300
"""Characters of a server's own words that an error repeats."""


@dataclass(frozen=True, slots=True)
class ServerMessage:
    """A server's explanation: its words, and the machine-readable code and parameter where it gives them."""

    text: str = ""
    code: str = ""
    param: str = ""


class UpstreamFailure(Exception):
    """One try at one server failed.

    `retry`: the same request may be sent again. `transient`: it may succeed later, though a blind repetition could do
    harm (a silent server may still be computing). `unreachable`: no connection came about, so another server can
    take the request at once.
    """

    def __init__(
        self,
        sentence: str,
        *,
        status: int | None = None,
        retry: bool = False,
        transient: bool | None = None,
        unreachable: bool = False,
        retry_after: float | None = None,
        message: ServerMessage | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.retry = retry
        self.transient = retry if transient is None else transient
        self.unreachable = unreachable
        self.retry_after = retry_after
        self.message = message or ServerMessage()


def read_server_message(body: bytes) -> ServerMessage:
    """The explanation inside an error body: OpenAI's, FastAPI's or pydantic's JSON, else the text itself."""
    text = body.decode("utf-8", "replace")
    try:
        parsed = json.loads(text)
    except ValueError:
        return ServerMessage(bounded(text))
    return message_of(parsed)


def message_of(parsed: Any) -> ServerMessage:
    """The explanation inside a decoded error, of whatever shape."""
    if isinstance(parsed, Mapping):
        inner = next((parsed[key] for key in ("error", "detail", "message") if parsed.get(key)), None)
        if isinstance(inner, Mapping):
            words = inner.get("message") or inner.get("detail") or inner
            text = words if isinstance(words, str) else json.dumps(words)
            code = inner.get("code") or inner.get("type") or ""
            return ServerMessage(bounded(text), str(code), str(inner.get("param") or ""))
        if isinstance(inner, Sequence) and not isinstance(inner, str):
            return ServerMessage(bounded("; ".join(_validation_line(item) for item in inner)))
        if inner is not None:
            return ServerMessage(bounded(str(inner)), str(parsed.get("code") or ""), str(parsed.get("param") or ""))
    return ServerMessage(bounded(parsed if isinstance(parsed, str) else json.dumps(parsed)))


def _validation_line(item: Any) -> str:
    """One entry of pydantic's list of errors as `body.field: what is wrong`."""
    if isinstance(item, Mapping) and "msg" in item:
        place = ".".join(str(part) for part in item.get("loc", ()))
        return f"{place}: {item['msg']}" if place else str(item["msg"])
    return str(item)


def bounded(text: str) -> str:
    """`text` on one line and not longer than an error should be."""
    line = " ".join(text.split())
    return line if len(line) <= MESSAGE_LIMIT else line[:MESSAGE_LIMIT] + "…"


def status_failure(
    status: int,
    url: str,
    message: ServerMessage,
    *,
    retry_after: float | None = None,
    api_key_env: str | None = None,
    key_was_sent: bool = False,
    location: str | None = None,
) -> UpstreamFailure:
    """The failure for an HTTP status that is not 2xx; `url` is shown and must carry no credentials."""
    said = f": {message.text}" if message.text else ""
    # OpenAI answers 429 both for "slow down" and for "your account is empty"; waiting helps only with the first.
    out_of_credit = message.code == "insufficient_quota"
    retry = status in TRANSIENT_STATUSES and not out_of_credit
    return UpstreamFailure(
        f"{url} answered {status}{said}{_remedy(status, api_key_env, key_was_sent, location, out_of_credit)}",
        status=status,
        retry=retry,
        retry_after=retry_after,
        message=message,
    )


def _remedy(status: int, key_env: str | None, key_was_sent: bool, location: str | None, out_of_credit: bool) -> str:
    variable = f"the environment variable {key_env}" if key_env else "the environment variable named by --api-key-env"
    if status == 401:
        state = "holds a key that this server accepts" if key_was_sent else "is set; no key was sent"
        return f" (check that {variable} {state})"
    if status == 403:
        return f" (the key in {variable} may lack access to this model)" if key_was_sent else f" (set {variable})"
    if out_of_credit:
        return " (the account of this key has no credit left)"
    if status == 413:
        return " (the request is too large for this server)"
    if 300 <= status < 400:
        return (
            f" (redirects are not followed; give {location} as the base URL)" if location else " (give the final URL)"
        )
    return ""
