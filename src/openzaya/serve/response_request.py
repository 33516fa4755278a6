"""The body of `POST /v1/responses`, and the chat request that it means."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from openzaya.serve.chat_request import ChatRequest, RsaFields
from openzaya.serve.config import Effort
from openzaya.serve.errors import refused

Item = dict[str, Any]

_PASSED_ON = ("temperature", "top_p", "seed", "mrsa")
_HARMLESS = frozenset({"user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier"})


class TextOptions(BaseModel):
    model_config = ConfigDict(extra="allow")

    format: dict[str, Any] | None = None


class ReasoningOptions(BaseModel):
    model_config = ConfigDict(extra="allow")

    effort: Effort | None = None
    summary: str | None = None


class ResponseRequest(BaseModel):
    """A request for a response. Fields that are not known here are left alone and named in the reply."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    mrsa: dict[str, Any] | None = None
    """`preset`, `progress` and settings of Markovian RSA; Zyphra's `rsa_*` fields are read too."""

    @property
    def kept(self) -> bool:
        """Whether it can be asked for later."""
        return self.store is not False

    def items(self) -> list[Item]:
        """The input as items, each with an id."""
        given = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        return [_whole(item) for item in given]

    def chat(self, history: Sequence[Item]) -> ChatRequest:
        """The chat request that this means after the items of earlier responses and its own. Raises ApiError."""
        body: dict[str, Any] = {name: value for name, value in (self.model_extra or {}).items() if _is_rsa(name)}
        body |= {name: getattr(self, name) for name in _PASSED_ON if getattr(self, name) is not None}
        turns = messages_of(history)
        if self.instructions:
            turns.insert(0, {"role": "system", "content": self.instructions})
        body |= {"model": self.model, "messages": turns, "stream": bool(self.stream)}
        if self.max_output_tokens is not None:
            body["max_completion_tokens"] = self.max_output_tokens
        if self.reasoning is not None and self.reasoning.effort is not None:
            body["reasoning_effort"] = self.reasoning.effort
        if self.tools:
            body["tools"] = [_tool(tool, place) for place, tool in enumerate(self.tools)]
        if self.tool_choice is not None:
            body["tool_choice"] = _tool_choice(self.tool_choice)
        if self.text is not None and self.text.format is not None:
            body["response_format"] = _format(self.text.format)
        return ChatRequest.model_validate(body)

    @property
    def ignored(self) -> list[str]:
        """Fields of the body that nothing here reads."""
        return sorted(name for name in self.model_extra or () if not _is_rsa(name) and name not in _HARMLESS)


def messages_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items as the turns of a chat: calls go to the assistant's turn, and earlier reasoning is left out."""
    turns: list[dict[str, Any]] = []
    for place, item in enumerate(items):
        kind = item.get("type", "message")
        if kind == "message":
            turns.append({"role": item.get("role"), "content": _content(item.get("content"), place)})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            if not (turns and turns[-1]["role"] == "assistant"):
                turns.append({"role": "assistant", "content": None})
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            turns[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            output = _content(item.get("output"), place)
            turns.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        elif kind != "reasoning":
            raise refused(
                f"input.{place} is a {kind!r}; read are messages, function calls and their outputs, and reasoning",
                param=f"input.{place}",
            )
    return turns


def _content(content: Any, place: int) -> Any:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refused(f"the content of input.{place} is neither text nor a list of parts", param=f"input.{place}")
    parts = [_part(part, place) for part in content]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return texts[0] if len(parts) == len(texts) == 1 else parts


def _part(part: Any, place: int) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("input_text", "output_text", "text", "refusal"):
        return {"type": "text", "text": str(part.get("refusal" if kind == "refusal" else "text", ""))}
    if kind == "input_image" and part.get("image_url"):
        return {"type": "image_url", "image_url": {"url": part["image_url"], "detail": part.get("detail") or "auto"}}
    raise refused(f"a part of input.{place} is a {kind!r}; read are text, and images by URL", param=f"input.{place}")


def _whole(item: Item) -> Item:
    """An item with the fields that OpenAI's own lists of items have."""
    kind = item.get("type") or "message"
    whole = {**item, "type": kind, "id": item.get("id") or f"{_PREFIXES.get(kind, 'item')}_{uuid.uuid4().hex}"}
    if kind in ("message", "function_call", "function_call_output"):
        whole.setdefault("status", "completed")
    if kind == "message" and isinstance(whole.get("content"), str):
        if whole.get("role") == "assistant":
            part = {"type": "output_text", "text": whole["content"], "annotations": [], "logprobs": []}
        else:
            part = {"type": "input_text", "text": whole["content"]}
        whole["content"] = [part]
    return whole


_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def _tool(tool: Mapping[str, Any], place: int) -> dict[str, Any]:
    if tool.get("type") != "function" or not tool.get("name"):
        raise refused(
            f"tools.{place} is a {tool.get('type')!r}; offered are functions with a name, which the client runs",
            param=f"tools.{place}",
        )
    kept = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in kept if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: str | Mapping[str, Any]) -> str | dict[str, Any]:
    if isinstance(choice, str):
        return choice
    if choice.get("type") == "function" and choice.get("name"):
        return {"type": "function", "function": {"name": choice["name"]}}
    raise refused(f"tool_choice is {choice!r}; give auto, none, required or a function", param="tool_choice")


def _format(form: Mapping[str, Any]) -> dict[str, Any]:
    if form.get("type") != "json_schema":
        return dict(form)
    schema = {name: form[name] for name in ("name", "description", "schema", "strict") if form.get(name) is not None}
    return {"type": "json_schema", "json_schema": schema}


def _is_rsa(name: str) -> bool:
    return name.startswith("rsa_") or name in RsaFields.names()
