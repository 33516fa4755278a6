"""What a server tells about itself before the first request: its models, its context, its tokenizer, its template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from openzaya.backends.failures import UpstreamFailure
from openzaya.backends.tokenize_endpoint import CANDIDATES, PROBE, TokenizeEndpoint, gives_back, read_ids, read_text
from openzaya.backends.transport import Transport
from openzaya.backends.upstreams import ThinkingStart, Upstream
from openzaya.chat.control import THINK_CLOSE, THINK_OPEN

_CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length")
_HELLO = [{"role": "user", "content": "Hello"}]


async def read_models(transport: Transport, upstream: Upstream, model: str | None) -> None:
    """Fill `models`, `context` and the vendor from the list of models.

    A server without the list is no error where the model is named; raises UpstreamFailure otherwise, and where it
    could not be reached.
    """
    try:
        answer = await transport.get_json(upstream.address, f"{upstream.address.api}/models")
    except UpstreamFailure as failure:
        if model is None or _may_come_back(failure):
            raise
        return
    listed = answer.get("data") if isinstance(answer, Mapping) else None
    entries = [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    upstream.models = tuple(str(entry["id"]) for entry in entries if entry.get("id"))
    entry = next((entry for entry in entries if entry.get("id") == model), entries[0] if len(entries) == 1 else {})
    owner = entry.get("owned_by")
    upstream.dialect.vendor = owner if isinstance(owner, str) else None
    upstream.context = next((entry[name] for name in _CONTEXT_FIELDS if type(entry.get(name)) is int), None)
    if upstream.dialect.vendor == "llamacpp":
        upstream.context = await _llamacpp_context(transport, upstream)


async def _llamacpp_context(transport: Transport, upstream: Upstream) -> int | None:
    """The context of one slot; the model list knows only the length that the model was trained for."""
    answer = await _ask(transport, upstream, "/props")
    settings = answer.get("default_generation_settings") if isinstance(answer, Mapping) else None
    context = settings.get("n_ctx") if isinstance(settings, Mapping) else None
    return context if type(context) is int else None


async def find_tokenizer(transport: Transport, upstream: Upstream, model: str | None) -> None:
    """Fill `tokenize` and `think_ids`; an endpoint that answers in another shape counts as absent.

    Raises UpstreamFailure where the server could not be reached.
    """
    for candidate in CANDIDATES:
        ids = await encode_with(transport, upstream, candidate, PROBE, model)
        if ids is None:
            continue
        decoded = await decode_with(transport, upstream, candidate, ids, model)
        upstream.tokenize = replace(candidate, decodes=gives_back(decoded))
        opened = await encode_with(transport, upstream, candidate, THINK_OPEN, model) or []
        closed = await encode_with(transport, upstream, candidate, THINK_CLOSE, model) or []
        upstream.think_ids = (opened[0] if len(opened) == 1 else None, closed[0] if len(closed) == 1 else None)
        break
    upstream.tokenize_looked_for = True


async def encode_with(
    transport: Transport, upstream: Upstream, endpoint: TokenizeEndpoint, text: str, model: str | None
) -> list[int] | None:
    """Ids of `text` from an endpoint, None where it refuses or answers in another shape."""
    return read_ids(await _ask(transport, upstream, endpoint.encode_path, endpoint.encode_body(text, model), endpoint))


async def decode_with(
    transport: Transport, upstream: Upstream, endpoint: TokenizeEndpoint, ids: list[int], model: str | None
) -> str | None:
    """Text of `ids` from an endpoint, None where it refuses or answers in another shape."""
    return read_text(await _ask(transport, upstream, endpoint.decode_path, endpoint.decode_body(ids, model), endpoint))


async def learn_thinking_start(transport: Transport, upstream: Upstream, model: str | None) -> None:
    """Render a short conversation, where the server can, to see whether its template opens the reasoning."""
    prompt: str | None = None
    if upstream.dialect.vendor == "llamacpp":
        prompt = read_text(await _ask(transport, upstream, "/apply-template", {"messages": _HELLO}))
    elif upstream.dialect.vendor == "vllm" and upstream.tokenize is not None and upstream.tokenize.decodes:
        body = {"model": model, "messages": _HELLO, "add_generation_prompt": True}
        ids = read_ids(await _ask(transport, upstream, upstream.tokenize.encode_path, body, upstream.tokenize))
        if ids is not None:
            prompt = await decode_with(transport, upstream, upstream.tokenize, ids, model)
    if prompt is not None and upstream.thinking is ThinkingStart.UNKNOWN:
        opens = prompt.rstrip().endswith(THINK_OPEN)
        upstream.thinking = ThinkingStart.PROMPT if opens else ThinkingStart.MODEL


async def _ask(
    transport: Transport,
    upstream: Upstream,
    path: str,
    body: Mapping[str, Any] | None = None,
    endpoint: TokenizeEndpoint | None = None,
) -> Any:
    """The answer of an endpoint that may not exist: None for a refusal, UpstreamFailure where a retry may help."""
    base = upstream.address.api if endpoint is not None and endpoint.under_api else upstream.address.root
    try:
        if body is None:
            return await transport.get_json(upstream.address, base + path)
        return await transport.post_json(upstream.address, base + path, body)
    except UpstreamFailure as failure:
        if _may_come_back(failure):
            raise
        return None


def _may_come_back(failure: UpstreamFailure) -> bool:
    """Whether an endpoint may answer later; some servers give 500 or 501 for paths and bodies that they do not know."""
    return failure.unreachable or failure.status in (429, 503)
