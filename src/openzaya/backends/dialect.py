"""What a server's API understands: parameters to request body, and what a refusal teaches."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openzaya.backends.failures import ServerMessage
from openzaya.backends.protocol import ChatParams, Message
from openzaya.engine.params import SamplingParams

SAMPLING_OFF: Mapping[str, Mapping[str, Any]] = {
    "vllm": {"top_k": -1, "min_p": 0.0},
    "sglang": {"top_k": -1, "min_p": 0.0},
    "llamacpp": {"top_k": 0, "min_p": 0.0},
}
"""Servers whose own defaults cut the distribution (llama.cpp: top-k 40 and min-p 0.05; vLLM and SGLang: whatever the
model's generation_config.json says), and the values that switch the cut off. A rollout at top-p 1.0 must be told."""

GIVES_TOKEN_IDS = frozenset({"vllm", "sglang"})
"""Servers that understand `return_token_ids`; others may refuse the whole request over it."""

OPTIONAL_FIELDS = frozenset(
    {
        "chat_template_kwargs",
        "min_p",
        "return_token_ids",
        "seed",
        "stream_options",
        "temperature",
        "top_k",
        "top_p",
    }
)
"""Fields without which a request is still worth making; all others, where refused, are the caller's to change."""

_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")

_REFUSAL = re.compile(
    r"unknown|unrecogni[sz]ed|unexpected|unsupported|not supported|n.t support|not support|extra (input|field|param)"
    r"|not permitted|not allowed|additional propert|forbidden|no such (field|param)|not a valid (field|param|argument)"
    r"|not available|not implemented"
)
"""Words by which servers refuse a field itself, as against its value."""


@dataclass(slots=True)
class Dialect:
    """What one server understands, as far as its refusals have shown. `vendor` is its name for itself in /models."""

    vendor: str | None = None
    refused: set[str] = field(default_factory=set)
    token_limit: str = "max_tokens"

    def chat_body(
        self, model: str | None, messages: Sequence[Message], params: ChatParams, *, token_ids: bool
    ) -> dict[str, Any]:
        """The body of a streamed chat completion."""
        body: dict[str, Any] = {"messages": [dict(message) for message in messages], **self._sampling(params)}
        if params.logprobs is not None:
            body["logprobs"] = True
            body["top_logprobs"] = params.logprobs
        if params.tools:
            body["tools"] = [dict(tool) for tool in params.tools]
        if params.tool_choice is not None:
            body["tool_choice"] = params.tool_choice
        if params.response_format is not None:
            body["response_format"] = dict(params.response_format)
        if not params.enable_thinking:
            body["chat_template_kwargs"] = {"enable_thinking": False}
        return self._finished(model, body, params.extra, token_ids)

    def completion_body(
        self, model: str | None, prompt: str | Sequence[int], params: SamplingParams, *, token_ids: bool
    ) -> dict[str, Any]:
        """The body of a streamed text completion, from text or from token ids."""
        body = {"prompt": prompt if isinstance(prompt, str) else list(prompt), **self._sampling(params)}
        if "max_completion_tokens" in body:
            body["max_tokens"] = body.pop("max_completion_tokens")
        elif params.max_tokens is None and self.vendor == "vllm":
            body["max_tokens"] = None  # without it vLLM ends a completion after 16 tokens
        if params.logprobs is not None:
            body["logprobs"] = params.logprobs
        if params.echo:
            body["echo"] = True
        return self._finished(model, body, getattr(params, "extra", {}), token_ids)

    def learn(self, body: Mapping[str, Any], kept: Mapping[str, Any], message: ServerMessage) -> str | None:
        """What a refusal (400, 422) of `body` says about the fields in it: a sentence for the log, None if nothing.

        After a sentence the request should be built and sent again. Fields in `kept` are the caller's own and stay.
        """
        said = f"{message.text} {message.code}".lower()
        if not _REFUSAL.search(said):
            return None
        named = {name for name in body if name not in kept and _names(name, said, message.param)}
        for limit, other in (_TOKEN_LIMITS, _TOKEN_LIMITS[::-1]):
            if limit in named and other not in self.refused:
                self.refused.add(limit)
                self.token_limit = other
                return f"it calls the token limit {other}"
        if "stream_options" in body and "include_usage" in said:
            named.add("stream_options")
        if dropped := sorted(named & OPTIONAL_FIELDS):
            self.refused.update(dropped)
            return f"it refuses {' and '.join(dropped)}, left out from now on"
        return None

    def _sampling(self, params: SamplingParams) -> dict[str, Any]:
        body: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p}
        body |= SAMPLING_OFF.get(self.vendor or "", {})
        if params.top_k:
            body["top_k"] = params.top_k
        if params.min_p:
            body["min_p"] = params.min_p
        if params.max_tokens is not None:
            body[self.token_limit] = params.max_tokens
        if params.seed is not None:
            body["seed"] = params.seed
        if params.stop:
            body["stop"] = list(params.stop)
        if params.stop_token_ids:
            body["stop_token_ids"] = list(params.stop_token_ids)
        if params.ignore_eos:
            body["ignore_eos"] = True
        return body

    def _finished(
        self, model: str | None, body: dict[str, Any], extra: Mapping[str, Any], token_ids: bool
    ) -> dict[str, Any]:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
        # A server holds text back while it looks for stop strings, so that ids would no longer belong to their text.
        if token_ids and self.vendor in GIVES_TOKEN_IDS and not body.get("stop"):
            body["return_token_ids"] = True
        for name in self.refused & OPTIONAL_FIELDS:
            body.pop(name, None)
        own_kwargs, kwargs = body.get("chat_template_kwargs"), extra.get("chat_template_kwargs")
        body |= extra
        if own_kwargs and isinstance(kwargs, Mapping):
            body["chat_template_kwargs"] = {**own_kwargs, **kwargs}
        return body if model is None else {"model": model, **body}


def _names(field_name: str, said: str, param: str) -> bool:
    """Whether a message is about a field of the body."""
    return param == field_name or re.search(rf"(?<![a-z0-9_]){re.escape(field_name)}(?![a-z0-9_])", said) is not None
