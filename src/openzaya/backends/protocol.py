"""What everything above the engine knows of a source of tokens.

`mrsa`, `evals`, `data` and the command line see only these types: no torch, no HTTP. Cancelling the iterator that
`chat` or `complete` returns (closing it, or cancelling the task that reads it) cancels the work at its source.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, Protocol, runtime_checkable

from openzaya.engine.params import SamplingParams

Message = Mapping[str, Any]
"""A chat message as in OpenAI's API: `role`, `content` and, for tools, `tool_calls` or `tool_call_id`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatParams(SamplingParams):
    """Sampling of one chat reply, and how the conversation is put to the model."""

    enable_thinking: bool = True
    force_answer: int = 0
    """When the limit falls inside the reasoning, close the reasoning and grant this many tokens for the answer
    (only where `Capabilities.continue_message` holds; 0 is off)."""
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    response_format: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request body, passed through to servers as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that one reply cost, as its source counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that were not computed again."""
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """A piece of a tool call; pieces with the same `index` belong together, `arguments` is JSON text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of a reply, in order. `complete` fills only `content`."""

    reasoning: str = ""
    content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    reasoning_ids: tuple[int, ...] = ()
    """Token ids of the reasoning in this piece, where the source gives them; the tags themselves are in neither."""
    content_ids: tuple[int, ...] = ()
    tokens: int = 0
    """Completion tokens that this piece stands for, where the source says; for progress only, `usage` is the count."""
    logprobs: tuple[Mapping[str, Any], ...] = ()
    finish_reason: str | None = None
    """On the last piece: "stop", "length" or "tool_calls"."""
    usage: Usage | None = None
    """On the last piece, where the source counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a source can do; each is False or None until it is known to hold."""

    token_ids: bool = False
    logprobs: bool = False
    tokenize: bool = False
    """`encode`, `decode` and `count` are exact."""
    continue_message: bool = False
    n: bool = False
    seed: bool = False
    prefix_cache: bool = False
    expert_ids: bool = False
    swap_weights: bool = False
    context: int | None = None
    """Prompt and completion tokens together."""
    model: str | None = None
    """Identity of the model, for journals."""
    local: bool = False
    """Runs in this process."""


class BackendError(RuntimeError):
    """The source failed for good: unreachable, refused, or gone mid-reply after every retry.

    `status` is the HTTP status where there was one; `transient` says whether a later try might succeed.
    """

    def __init__(self, message: str, *, status: int | None = None, transient: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.transient = transient


@runtime_checkable
class Backend(Protocol):
    """A source of tokens. `chat` and `complete` are async generators: iterate them, close them to cancel."""

    capabilities: Capabilities

    def chat(self, messages: Sequence[Message], params: ChatParams) -> AsyncIterator[Delta]: ...

    def complete(self, prompt: str | Sequence[int], params: SamplingParams) -> AsyncIterator[Delta]: ...

    async def count(self, text: str) -> int | None:
        """Tokens of `text` by the model's own tokenizer, or None where that is not known."""
        ...

    async def encode(self, text: str) -> list[int] | None: ...

    async def decode(self, ids: Sequence[int]) -> str | None: ...

    async def swap_weights(self, source: Any) -> None: ...

    async def aclose(self) -> None: ...


class Reply:
    """A whole reply put together from its pieces, in time and memory linear in its length."""

    def __init__(
        self,
        *,
        reasoning: str = "",
        content: str = "",
        reasoning_ids: Iterable[int] = (),
        content_ids: Iterable[int] = (),
        finish_reason: str | None = None,
        usage: Usage | None = None,
    ) -> None:
        self._reasoning, self._content = StringIO(), StringIO()
        self._calls: list[_Call] = []
        self.reasoning_ids: list[int] = []
        self.content_ids: list[int] = []
        self.logprobs: list[Mapping[str, Any]] = []
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.add(
            Delta(
                reasoning=reasoning,
                content=content,
                reasoning_ids=tuple(reasoning_ids),
                content_ids=tuple(content_ids),
                finish_reason=finish_reason,
                usage=usage,
            )
        )

    @property
    def reasoning(self) -> str:
        return self._reasoning.getvalue()

    @property
    def content(self) -> str:
        return self._content.getvalue()

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """Each with its `id`, `name` and `arguments`."""
        return [{"id": one.id, "name": one.name, "arguments": one.arguments.getvalue()} for one in self._calls]

    def add(self, delta: Delta) -> None:
        """Append one piece."""
        self._reasoning.write(delta.reasoning)
        self._content.write(delta.content)
        self.reasoning_ids.extend(delta.reasoning_ids)
        self.content_ids.extend(delta.content_ids)
        self.logprobs.extend(delta.logprobs)
        for piece in delta.tool_calls:
            while len(self._calls) <= piece.index:
                self._calls.append(_Call())
            call = self._calls[piece.index]
            call.id = call.id or piece.id
            call.name = call.name or piece.name
            call.arguments.write(piece.arguments)
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.usage = delta.usage or self.usage


@dataclass(slots=True)
class _Call:
    id: str | None = None
    name: str | None = None
    arguments: StringIO = field(default_factory=StringIO)


async def collect(stream: AsyncIterator[Delta]) -> Reply:
    """Read a stream to its end."""
    reply = Reply()
    async for delta in stream:
        reply.add(delta)
    return reply
