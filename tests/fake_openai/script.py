"""What the fake server is asked, and what it is told to answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Style = Literal["reasoning_content", "reasoning", "think_tags", "prompt_opened", "plain"]
"""How a reply marks its reasoning: a field of either name, both tags in the content, only the closing tag (the prompt
opened the reasoning), or not at all: reasoning and content are simply joined."""


@dataclass(slots=True)
class Request:
    """A request as it arrived, and what became of it."""

    index: int
    """Its place among the requests for completions, from 0; other requests have -1."""
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    aborted: bool = False
    """The client left before the reply ended."""
    answered: bool = False
    """The reply, or the failure, was sent to its end."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation of a chat request."""
        return list(self.body["messages"])

    @property
    def prompt(self) -> str:
        """The text of the last message."""
        return str(self.messages[-1]["content"])


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call of a reply; its arguments are streamed in pieces."""

    name: str
    arguments: str
    id: str = "call_0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply to a completion. It is cut at the request's token limit, as a model would be."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    """None: "length" where the limit cut it, else "tool_calls" or "stop"."""
    cached_tokens: int = 0
    delay: float = 0.0
    """Seconds before each chunk."""
    first_delay: float = 0.0
    """Seconds before the response begins."""
    tokens_per_chunk: int = 1
    stall_after: int | None = None
    """After this many chunks say nothing more, until the client leaves."""
    cut_after: int | None = None
    """After this many chunks close the socket."""
    garble_after: int | None = None
    """After this many chunks send an event that is not JSON."""
    error_after: int | None = None
    """After this many chunks send an error in the stream and end it."""
    keep_alive_comments: bool = False
    """Send comments before each chunk, spread over its delay."""
    bytes_per_write: int | None = None
    """Cut the stream into writes of this size, through lines and characters."""
    line_ending: str = "\n"
    done: bool = True
    """End with `[DONE]`."""
    whole: bool = False
    """Ignore `stream` and send one JSON document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An HTTP error in place of a reply. `body` None is OpenAI's shape around `message`."""

    status: int
    message: str = "scripted failure"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None

    def json(self) -> Any:
        """The document to send."""
        if self.body is not None:
            return self.body
        return {"error": {"message": self.message, "type": "error", "code": self.code, "param": self.param}}


Answer = Reply | Failure
Script = Answer | Sequence[Answer] | Callable[[Request], Answer]
"""One answer for all requests, answers in the order of requests (the last one repeats), or a function of the request;
the function runs in the server's thread."""


def answer_for(script: Script, request: Request) -> Answer:
    """What the script says to a request."""
    if callable(script):
        return script(request)
    if isinstance(script, Sequence):
        return script[min(request.index, len(script) - 1)]
    return script
