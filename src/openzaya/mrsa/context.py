"""How much of a model's context a run needs, and what it leaves for a reply."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openzaya.backends.protocol import Backend, BackendError, Message
from openzaya.mrsa.config import MrsaConfig, check_context
from openzaya.mrsa.prompts import Prompts, Task
from openzaya.mrsa.tails import Tokenizer

_TEMPLATE_TOKENS = 32
"""Role marks and other tokens that a chat template puts around a conversation of a few turns."""
_SEAM_TOKENS = 2
"""A tail that is encoded anew can take slightly more tokens where it was cut."""
_CHARACTERS_PER_TOKEN = 3
"""A cautious guess for models whose tokenizer cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalRequest:
    """What the reply itself must be like: these fields shape the final call only, never a rollout."""

    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    response_format: Mapping[str, Any] | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    """Token limit of the final call alone; None is that of the last round."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def forces_final(self) -> bool:
        """Whether a candidate of the last round cannot simply be returned."""
        return bool(self.tools or self.response_format or self.stop)


@dataclass(frozen=True, slots=True)
class Room:
    """The context of the model (None where it is not known) and what the conversation takes of it."""

    context: int | None
    question_tokens: int
    overhead: int

    def clip(self, limit: int | None, tail_tokens: Sequence[int]) -> int | None:
        """`limit`, or less where a prompt with tails of these lengths leaves less; at least 1."""
        if limit is None or self.context is None:
            return limit
        overhead = self.overhead if tail_tokens else _TEMPLATE_TOKENS
        prompt = self.question_tokens + overhead + sum(tokens + _SEAM_TOKENS for tokens in tail_tokens)
        return max(1, min(limit, self.context - prompt))


async def measure_room(
    config: MrsaConfig,
    messages: Sequence[Message],
    task: Task,
    prompts: Prompts,
    final: FinalRequest,
    backend: Backend,
    tokenizer: Tokenizer | None,
) -> Room:
    """Count the conversation and the wording; raises ConfigError where `config` does not fit the model's context."""
    context = backend.capabilities.context
    if context is None:
        return Room(None, 0, 0)
    question = await _count(_all_text(messages, final), backend, tokenizer)
    overhead = _TEMPLATE_TOKENS
    if config.rounds:
        overhead += await _count(prompts.fixed_text(task, config.tails), backend, tokenizer)
    check_context(config, question, context, overhead)
    return Room(context, question, overhead)


def _all_text(messages: Sequence[Message], final: FinalRequest) -> str:
    texts: list[str] = []
    for message in messages:
        content = message.get("content") or ""
        parts = [content] if isinstance(content, str) else [str(part.get("text", "")) for part in content]
        texts.extend(parts)
        if message.get("tool_calls"):
            texts.append(json.dumps(message["tool_calls"], default=str))
    texts.extend(json.dumps(tool, default=str) for tool in final.tools)
    return "\n".join(texts)


async def _count(text: str, backend: Backend, tokenizer: Tokenizer | None) -> int:
    try:
        counted = await backend.count(text)
    except BackendError:
        counted = None
    if counted is None and tokenizer is not None:
        counted = len(tokenizer.encode(text))
    return len(text) // _CHARACTERS_PER_TOKEN + 1 if counted is None else counted
