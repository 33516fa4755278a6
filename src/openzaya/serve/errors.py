"""What a client is told when something went wrong: OpenAI's error envelope, and which failure has which status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from openzaya.backends.protocol import BackendError
from openzaya.mrsa import ConfigError, JournalError, MrsaError, PromptError
from openzaya.serve.database import StoreError


class ApiError(Exception):
    """A failure as a client sees it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def envelope(self) -> dict[str, Any]:
        """The document in OpenAI's shape."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refused(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that can never work."""
    return ApiError(400, message, param=param, code=code)


def invalid(error: ValidationError) -> ApiError:
    """The first thing that pydantic found wrong with a body, in one sentence."""
    first = error.errors()[0]
    # A union's branches name themselves in the place; only names and numbers of the body are of use to a client.
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("list[", "function-", "tagged")))
    said = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    shown = repr(first.get("input"))
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    missing = first["type"] == "missing"
    return refused(f"{place}: {said}" + ("" if missing else f" (it is {shown})"), param=place or None)


def as_api_error(error: BaseException) -> ApiError | None:
    """The failure as a client sees it; None where nobody foresaw it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return invalid(error)
    if isinstance(error, ConfigError | PromptError):
        return refused(str(error), param="mrsa")
    if isinstance(error, BackendError):
        return _of_source(error, error.status, "upstream_failed")
    if isinstance(error, MrsaError):
        return _of_source(error, error.status, "rollouts_failed")
    if isinstance(error, JournalError):
        return ApiError(409, f"what had been done cannot be gone on with: {error}", code="cannot_resume")
    if isinstance(error, StoreError):
        return ApiError(503, str(error), code="store_failed", headers={"retry-after": "5"})
    return None


def _of_source(error: Exception, status: int | None, code: str) -> ApiError:
    """A refusal of the source is one of this service; what is wrong with the source itself is a bad gateway."""
    if status in (400, 413, 422):
        return refused(str(error), code="refused_by_model")
    if status == 429:
        return ApiError(429, str(error), code="upstream_busy", headers={"retry-after": "5"})
    return ApiError(502, str(error), code=code)


UNFORESEEN = ApiError(500, "the server failed on this request; its log says why", code="internal_error")
