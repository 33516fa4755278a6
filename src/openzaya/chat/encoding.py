"""Conversations and replies to token ids, so that nobody's text can act as a control token.

The template sees every given string with the spellings of control tokens broken by a character that the conversation
does not use. In the rendered prompt an unbroken spelling was therefore written by the template and becomes the control
token; what lies between is plain text, and loses the breaking character before it is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from openzaya.chat import control
from openzaya.chat.template import ChatTemplate, plain_messages, render_reply, unused_character
from openzaya.chat.tokenizer import Tokenizer

_LEADING_THOUGHT = re.compile(rf"(\s*{control.THINK_OPEN})(.*?)(?:({control.THINK_CLOSE})(.*))?", re.DOTALL)


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    **options: Any,
) -> list[int]:
    """Token ids of a rendered conversation; `options` are those of `ChatTemplate.render`.

    Control tokens typed inside messages or tools stay plain text. The one exception is the leading think block of an
    assistant's content, which is what the model itself wrote there. Raises ValueError as `render` does.
    """
    conversation = plain_messages(messages)
    breaker = unused_character(conversation, tools)
    broken = _Breaking(tokenizer.control_tokens, breaker)
    prompt = template.render(
        [broken.message(message) for message in conversation], tools=[broken.value(tool) for tool in tools], **options
    )
    return _encode_broken(tokenizer, prompt, breaker)


def encode_reply(tokenizer: Tokenizer, reasoning: str, content: str) -> list[int]:
    """Token ids of `render_reply(reasoning, content)` with control tokens inside either kept as plain text."""
    breaker = unused_character(reasoning, content)
    broken = _Breaking(tokenizer.control_tokens, breaker)
    return _encode_broken(tokenizer, render_reply(broken.text(reasoning), broken.text(content)), breaker)


class _Breaking:
    """Puts a breaking character after the first character of each control token spelled in given text."""

    def __init__(self, spellings: Iterable[str], breaker: str) -> None:
        self._breaker = breaker
        self._spelling = _any_of(spellings)

    def text(self, text: str) -> str:
        return self._spelling.sub(lambda match: match[0][:1] + self._breaker + match[0][1:], text)

    def value(self, value: Any) -> Any:
        """The same value with every string in it broken, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(entry) for entry in value]
        return value

    def message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        broken: dict[str, Any] = self.value(message)
        content = message.get("content")
        if message["role"] != "assistant" or not isinstance(content, str) or _has_reasoning(message):
            return broken
        thought = _LEADING_THOUGHT.fullmatch(content)
        if thought:
            before, reasoning, close, answer = thought.groups(default="")
            broken["content"] = before + self.text(reasoning) + close + self.text(answer)
        return broken


def _has_reasoning(message: Mapping[str, Any]) -> bool:
    return any(isinstance(message.get(name), str) for name in ("reasoning_content", "reasoning"))


def _encode_broken(tokenizer: Tokenizer, prompt: str, breaker: str) -> list[int]:
    if breaker not in prompt:
        return tokenizer.encode(prompt)
    ids: list[int] = []
    position = 0
    for match in _any_of(tokenizer.control_tokens).finditer(prompt):
        ids += tokenizer.encode(prompt[position : match.start()].replace(breaker, ""), special=False)
        ids.append(tokenizer.control_tokens[match[0]])
        position = match.end()
    return ids + tokenizer.encode(prompt[position:].replace(breaker, ""), special=False)


def _any_of(spellings: Iterable[str]) -> re.Pattern[str]:
    alternatives = "|".join(map(re.escape, sorted(spellings, key=len, reverse=True)))
    return re.compile(alternatives or r"(?!)")
