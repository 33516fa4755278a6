"""What came of a request in OpenAI's shapes: one document, or the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from openzaya.backends.protocol import ToolCallDelta
from openzaya.serve.chat_request import ChatRequest
from openzaya.serve.conversation import Choice, Outcome, Piece, Progress
from openzaya.serve.errors import ApiError
from openzaya.serve.work import Work


def usage_of(outcome: Outcome) -> dict[str, Any]:
    """Every token of every rollout in OpenAI's shape, and what they cost where prices are configured."""
    usage = outcome.usage
    cost = {} if outcome.cost is None else {"cost": outcome.cost}
    return {
        **cost,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


class ChatReply:
    """The reply to one request; a stream is told of every update in order, and then of the outcome."""

    def __init__(self, request: ChatRequest, work: Work, id: str | None = None) -> None:
        self._request = request
        self._work = work
        self._head = {"id": id or f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}
        self._begun: set[int] = set()
        """Choices of which the stream has given out anything."""
        self._answered: set[int] = set()
        """Choices of which it has given out content or tool calls."""

    # ---- one document

    def document(self, outcome: Outcome) -> dict[str, Any]:
        """The whole reply."""
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": index,
                    "message": _message(choice),
                    "logprobs": None
                    if choice.logprobs is None
                    else {"content": list(choice.logprobs), "refusal": None},
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(outcome.choices)
            ],
            "usage": usage_of(outcome),
            **self._extras(outcome),
        }

    # ---- a stream

    def chunks_of(self, update: Progress | Piece) -> Iterator[dict[str, Any]]:
        """The chunks that say an update."""
        if isinstance(update, Progress):
            yield from self._delta(update.choice, {"reasoning_content": update.text + "\n"})
            return
        delta: dict[str, Any] = {}
        if update.reasoning:
            delta["reasoning_content"] = update.reasoning
        if update.content:
            delta["content"] = update.content
        if update.tool_calls:
            delta["tool_calls"] = [_tool_call_delta(call) for call in update.tool_calls]
        if update.content or update.tool_calls:
            self._answered.add(update.choice)
        yield from self._delta(update.choice, delta, logprobs=update.logprobs)

    def last_chunks(self, outcome: Outcome) -> Iterator[dict[str, Any]]:
        """What the stream has not said yet, the ends of the choices, and the usage where it was asked for.

        Raises ApiError where the final call broke off after its beginning had been given out.
        """
        for index, choice in enumerate(outcome.choices):
            if index not in self._answered:
                yield from self._delta(index, _rest(choice))
            elif choice.final_failed is not None:
                raise ApiError(502, f"the reply broke off: {choice.final_failed}", code="upstream_failed")
            extras = self._extras(outcome) if index == len(outcome.choices) - 1 else {}
            yield self._chunk([{"index": index, "delta": {}, "finish_reason": choice.finish_reason}], **extras)
        if self._include_usage:
            yield self._chunk([], usage=usage_of(outcome))

    @property
    def _include_usage(self) -> bool:
        return self._request.stream_options is not None and self._request.stream_options.include_usage

    def _delta(
        self, index: int, delta: dict[str, Any], logprobs: tuple[Mapping[str, Any], ...] = ()
    ) -> Iterator[dict[str, Any]]:
        if index not in self._begun:
            self._begun.add(index)
            yield self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": None}
        if logprobs:
            choice["logprobs"] = {"content": list(logprobs), "refusal": None}
        if delta or logprobs:
            yield self._chunk([choice])

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        usage = {"usage": None} if self._include_usage else {}
        return {**self._head, "object": "chat.completion.chunk", "choices": choices, **usage, **more}

    def _extras(self, outcome: Outcome) -> dict[str, Any]:
        """What OpenAI's shape has no place for: the figures of the runs, also in Zyphra's words where asked so."""
        extras: dict[str, Any] = {}
        if outcome.reports:
            extras["mrsa"] = outcome.reports[0] if len(outcome.reports) == 1 else {"runs": list(outcome.reports)}
        if self._request.ignored:
            extras["ignored_fields"] = self._request.ignored
        rsa = self._work.rsa
        if rsa is not None and outcome.reports and rsa.metadata is not False:
            extras["rsa_metadata"] = _rsa_metadata(self._work, outcome)
        return extras


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["content"] = choice.content or None
        message["tool_calls"] = [_tool_call(call, place) for place, call in enumerate(choice.tool_calls)]
    return message


def _rest(choice: Choice) -> dict[str, Any]:
    """A choice that has not been streamed, as one delta."""
    delta: dict[str, Any] = {"content": choice.content} if choice.content else {}
    if choice.tool_calls:
        calls = enumerate(choice.tool_calls)
        delta["tool_calls"] = [{"index": place, **_tool_call(call, place)} for place, call in calls]
    return delta


def _tool_call(call: Mapping[str, Any], place: int) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": call["arguments"]}
    return {"id": call["id"] or f"call_{place}", "type": "function", "function": function}


def _tool_call_delta(call: ToolCallDelta) -> dict[str, Any]:
    delta: dict[str, Any] = {"index": call.index, "function": {"arguments": call.arguments}}
    if call.name is not None:
        delta |= {"id": call.id or f"call_{call.index}", "type": "function"}
        delta["function"] = {"name": call.name, "arguments": call.arguments}
    return delta


def _rsa_metadata(work: Work, outcome: Outcome) -> dict[str, Any]:
    config = work.config
    rounds = outcome.reports[0]["rounds"]
    return {
        "rsa_iterations": config.rounds if work.every_candidate else config.rounds + 1,
        "rsa_k": config.tails,
        "rsa_n": config.candidates,
        "rsa_summarize": False,
        "rsa_tail_window": config.tail != "whole",
        "tail_window_len": config.tau,
        "short_resp_len": config.beta,
        "use_pacore": config.tail == "hybrid",
        "rsa_max_concurrency": config.concurrency or 0,
        "rsa_token_count_history": [summary["completion_tokens"] for summary in rounds],
    }
