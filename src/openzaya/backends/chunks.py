"""What one event of a streamed completion says, checked and freed of its server's spelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openzaya.backends.failures import UpstreamFailure, bounded, message_of
from openzaya.backends.protocol import ToolCallDelta, Usage
from openzaya.backends.retries import TRANSIENT_STATUSES

_FINISH_REASONS = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One event of a stream."""

    reasoning: str = ""
    content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    ids: tuple[int, ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()
    finish_reason: str | None = None
    stopped_by_string: bool = False
    usage: Usage | None = None
    tokens: int = 0
    """Completion tokens in this chunk, for progress; servers that send no ids nearly always send a chunk a token."""


def read_chunk(event: Any, shown_url: str) -> Chunk:
    """One event of a chat or text completion, streamed or whole.

    Raises UpstreamFailure for an error sent in the stream and for a reply that the server broke off itself.
    """
    if not isinstance(event, dict):
        raise UpstreamFailure(f"{shown_url} sent {bounded(repr(event))} where a chunk was due", retry=True)
    if event.get("error"):
        raise _stream_error(event, shown_url)
    choices = _items(event.get("choices"))
    choice = _fields(choices[0]) if choices else {}
    delta = _fields(choice.get("delta") or choice.get("message"))
    reasoning = _text(delta.get("reasoning")) or _text(delta.get("reasoning_content"))
    content = _text(delta.get("content")) or _text(choice.get("text"))
    tool_calls = tuple(_tool_calls(calls)) if (calls := delta.get("tool_calls")) else ()
    ids = _ids(choice.get("token_ids"))
    logprobs = tuple(_logprobs(given)) if (given := choice.get("logprobs")) else ()
    return Chunk(
        reasoning=reasoning,
        content=content,
        tool_calls=tool_calls,
        ids=ids,
        logprobs=logprobs,
        finish_reason=_finish_reason(choice.get("finish_reason"), shown_url),
        stopped_by_string=isinstance(choice.get("stop_reason"), str),
        usage=_usage(event.get("usage")),
        tokens=len(ids) or len(logprobs) or int(bool(reasoning or content or tool_calls)),
    )


def _fields(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _text(value: Any) -> str:
    """Text of a field; some servers send it in parts. Halves of surrogate pairs, which no request could carry on,
    become U+FFFD."""
    if not value:
        return ""
    if not isinstance(value, str):
        return "".join(_text(_fields(part).get("text")) for part in _items(value))
    return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _ids(value: Any) -> tuple[int, ...]:
    ids = _items(value)
    return tuple(ids) if ids and all(type(index) is int for index in ids) else ()


def _tool_calls(value: Any) -> list[ToolCallDelta]:
    pieces: list[ToolCallDelta] = []
    for place, call in enumerate(map(_fields, _items(value))):
        function = _fields(call.get("function"))
        index = call.get("index")
        pieces.append(
            ToolCallDelta(
                index=index if type(index) is int and 0 <= index < 1024 else place,
                id=_text(call.get("id")) or None,
                name=_text(function.get("name")) or None,
                arguments=_text(function.get("arguments")),
            )
        )
    return pieces


def _logprobs(value: Any) -> list[Mapping[str, Any]]:
    """Logprobs as chat completions give them (a list of entries) or as text completions do (parallel lists)."""
    given = _fields(value)
    if entries := _items(given.get("content")):
        return [
            {**_token(entry), "top_logprobs": [_token(other) for other in _items(_fields(entry).get("top_logprobs"))]}
            for entry in entries
        ]
    tops = _items(given.get("top_logprobs"))
    return [
        {
            "token": token,
            "logprob": logprob,
            "top_logprobs": [
                {"token": other, "logprob": its}
                for other, its in (_fields(tops[place]) if place < len(tops) else {}).items()
            ],
        }
        for place, (token, logprob) in enumerate(zip(_items(given.get("tokens")), _items(given.get("token_logprobs"))))
    ]


def _token(entry: Any) -> dict[str, Any]:
    """OpenAI's clients expect `bytes`, which not every server sends."""
    return {"bytes": None, **_fields(entry)}


def _usage(value: Any) -> Usage | None:
    if not isinstance(value, Mapping):
        return None

    def count(*path: str) -> int:
        place: Any = value
        for key in path:
            place = place.get(key) if isinstance(place, Mapping) else None
        return place if type(place) is int and place > 0 else 0

    return Usage(
        prompt_tokens=count("prompt_tokens"),
        completion_tokens=count("completion_tokens"),
        cached_tokens=count("prompt_tokens_details", "cached_tokens") or count("prompt_cache_hit_tokens"),
        reasoning_tokens=count("completion_tokens_details", "reasoning_tokens") or count("reasoning_tokens"),
    )


def _finish_reason(value: Any, shown_url: str) -> str | None:
    if not isinstance(value, str):
        return None
    if value == "content_filter":
        raise UpstreamFailure(f"{shown_url} ended the reply by its content filter; rephrase the problem")
    if value in ("abort", "error", "insufficient_system_resource"):
        raise UpstreamFailure(f"{shown_url} broke the reply off ({value})", retry=True)
    return _FINISH_REASONS.get(value, "stop")


def _stream_error(event: Mapping[str, Any], shown_url: str) -> UpstreamFailure:
    """An error that came after the reply had begun; without a status of its own it may be tried again."""
    message = message_of(event)
    status = int(message.code) if message.code.isdigit() and 400 <= int(message.code) < 600 else None
    said = message.text or "no explanation"
    return UpstreamFailure(
        f"{shown_url} broke the reply off: {said}",
        status=status,
        retry=status is None or status in TRANSIENT_STATUSES,
        message=message,
    )
