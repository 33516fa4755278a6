"""A backend over any server that speaks OpenAI's API: vLLM, SGLang, llama.cpp, `transformers serve`, the cloud.

The parts: `fleet` sends requests and tries again, `upstreams` picks a server, `dialect` writes the request in its
words, `transport` and `sse` carry it, `chunks` and `reply_stream` read the answer, `acquaintance` asks what else the
server can do.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from io import StringIO
from typing import Any, Protocol

import httpx

from openzaya.backends import acquaintance
from openzaya.backends.fleet import Fleet, StreamRequest
from openzaya.backends.protocol import BackendError, Capabilities, ChatParams, Delta, Message, Usage
from openzaya.backends.retries import RetryPolicy
from openzaya.backends.transport import Timeouts, Transport
from openzaya.backends.upstreams import ThinkingStart, UpstreamPool
from openzaya.chat.control import THINK_CLOSE, THINK_OPEN
from openzaya.engine.params import SamplingParams

logger = logging.getLogger(__name__)


class LocalTokenizer(Protocol):
    """The model's tokenizer on this machine, for servers without a tokenize endpoint; adds no special tokens."""

    def encode(self, text: str) -> Sequence[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class OpenAIBackend:
    """A `Backend` over one or several servers of the same model, to be used within one event loop.

    `base_urls` come with or without `/v1`; `model` None takes the one model that the servers list. `api_key_env` names
    the variable that held `api_key`, for error messages only. `silence_timeout` is in seconds. `continue_message` says
    that the servers can continue a final assistant message, which `ChatParams.force_answer` needs. `thinking_opened`
    says whether the chat template opens the reasoning itself; None finds out. `transport` replaces the network.

    Raises ValueError for a bad URL, count or timeout. Every failure of a call is a BackendError in one sentence.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        model: str | None = None,
        *,
        api_key: str | None = None,
        api_key_env: str | None = None,
        concurrency: int = 64,
        retries: int = 4,
        backoff: float = 0.5,
        connect_timeout: float = 10.0,
        silence_timeout: float = 600.0,
        tokenizer: LocalTokenizer | None = None,
        continue_message: bool = False,
        thinking_opened: bool | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        pool = UpstreamPool(base_urls)
        if thinking_opened is not None:
            for upstream in pool.upstreams:
                upstream.thinking = ThinkingStart.PROMPT if thinking_opened else ThinkingStart.MODEL
        timeouts = Timeouts(connect=connect_timeout, silence=silence_timeout)
        self._tokenizer = tokenizer
        self._fleet = Fleet(
            pool,
            Transport(api_key=api_key, api_key_env=api_key_env, timeouts=timeouts, transport=transport),
            model=model,
            retry=RetryPolicy(retries=retries, base=backoff),
            concurrency=concurrency,
            capabilities=Capabilities(continue_message=continue_message, tokenize=tokenizer is not None, model=model),
        )

    def __repr__(self) -> str:
        urls = ", ".join(upstream.address.api for upstream in self._fleet.pool.upstreams)
        return f"OpenAIBackend({urls}; model {self._fleet.model})"

    @property
    def capabilities(self) -> Capabilities:
        """What is known of the servers so far; `discover` asks at once, replies and refusals add to it."""
        return self._fleet.capabilities

    async def discover(self) -> Capabilities:
        """Ask every server for its models, context and tokenizer, and say what is known.

        Servers that cannot be reached are skipped as long as one answers. Raises BackendError when none does, or when
        no model was named and the servers do not list exactly one.
        """
        await self._fleet.acquaint_all()
        return self.capabilities

    async def any_answers(self) -> bool:
        """Whether any server can be reached; those that cannot get no request until they can."""
        return await self._fleet.any_answers()

    async def chat(self, messages: Sequence[Message], params: ChatParams) -> AsyncGenerator[Delta]:
        """One reply to a conversation, piece by piece. Raises BackendError."""
        request = _chat_request(messages, params)
        forces = params.force_answer > 0 and self.capabilities.continue_message
        thought = StringIO()
        answered = not forces
        cut: Delta | None = None
        async with aclosing(self._fleet.stream(request)) as deltas:
            async for delta in deltas:
                if not answered:
                    thought.write(delta.reasoning)
                    answered = bool(delta.content.strip() or delta.tool_calls)
                if delta.finish_reason == "length" and not answered and thought.tell():
                    cut = delta
                else:
                    yield delta
        if cut is None:
            return
        async with aclosing(self._forced_answer(messages, params, thought.getvalue(), cut)) as deltas:
            async for delta in deltas:
                yield delta

    async def complete(self, prompt: str | Sequence[int], params: SamplingParams) -> AsyncGenerator[Delta]:
        """The continuation of a text or of token ids, as content, piece by piece. Raises BackendError."""
        request = StreamRequest(
            "/completions",
            lambda upstream, model: upstream.dialect.completion_body(model, prompt, params, token_ids=True),
            plain=True,
        )
        async with aclosing(self._fleet.stream(request)) as deltas:
            async for delta in deltas:
                yield delta

    async def count(self, text: str) -> int | None:
        """Tokens of `text` by the model's own tokenizer, or None where neither server nor caller offers it."""
        ids = await self.encode(text)
        return None if ids is None else len(ids)

    async def encode(self, text: str) -> list[int] | None:
        """Token ids of `text` alone, or None where no tokenizer is known."""
        if not text:
            return []
        fleet = self._fleet
        ids = await fleet.ask_tokenizers(
            lambda upstream, endpoint: acquaintance.encode_with(fleet.transport, upstream, endpoint, text, fleet.model)
        )
        if ids is not None or self._tokenizer is None:
            return ids
        return [int(index) for index in self._tokenizer.encode(text)]

    async def decode(self, ids: Sequence[int]) -> str | None:
        """The text of token ids, or None where no tokenizer is known."""
        if not ids:
            return ""
        wanted = [int(index) for index in ids]
        fleet = self._fleet
        text = await fleet.ask_tokenizers(
            lambda upstream, endpoint: acquaintance.decode_with(
                fleet.transport, upstream, endpoint, wanted, fleet.model
            ),
            needs_decode=True,
        )
        if text is not None or self._tokenizer is None:
            return text
        return self._tokenizer.decode(wanted)

    async def swap_weights(self, source: Any) -> None:
        """Not offered by OpenAI's API: raises BackendError."""
        raise BackendError("an OpenAI-compatible server does not take new weights; restart it with the new model")

    async def aclose(self) -> None:
        """Close every connection; what is still being generated is given up."""
        await self._fleet.transport.aclose()

    async def _forced_answer(
        self, messages: Sequence[Message], params: ChatParams, thought: str, cut: Delta
    ) -> AsyncGenerator[Delta]:
        """Close a reasoning that reached its limit and have the message continued with the answer."""
        closed = {"role": "assistant", "content": f"{THINK_OPEN}\n{thought}\n{THINK_CLOSE}\n\n"}
        extra = {"continue_final_message": True, "add_generation_prompt": False, **params.extra}
        # The message itself closes the reasoning; llama.cpp refuses to continue one while thinking is on.
        more = replace(params, max_tokens=params.force_answer, enable_thinking=False, extra=extra)
        request = replace(_chat_request([*messages, closed], more), plain=True)
        try:
            async with aclosing(self._fleet.stream(request)) as deltas:
                async for delta in deltas:
                    yield delta if delta.finish_reason is None else replace(delta, usage=_sum(cut.usage, delta.usage))
        except BackendError as error:
            logger.warning("no answer could be forced, the reply ends in its reasoning: %s", error)
            yield cut


def _chat_request(messages: Sequence[Message], params: ChatParams) -> StreamRequest:
    return StreamRequest(
        "/chat/completions",
        lambda upstream, model: upstream.dialect.chat_body(model, messages, params, token_ids=True),
        thinking=params.enable_thinking,
        kept=params.extra,
    )


def _sum(first: Usage | None, second: Usage | None) -> Usage | None:
    if first is None or second is None:
        return first or second
    return first + second
