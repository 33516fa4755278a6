"""Conversations to prompt text: the chat template of a model's folder, or ZAYA's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from openzaya.chat import control
from openzaya.chat.tokenizer import read_json, token_text

BUILT_IN_TEMPLATE = files("openzaya.chat").joinpath("zaya_chatml.jinja").read_text(encoding="utf-8")
"""The ZAYA ChatML template, as it is shipped beside a tokenizer in `chat_template.jinja`."""

_PRIVATE_USE = range(0xE000, 0xF900)
_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTemplate:
    """A compiled chat template; it runs in a sandbox, because templates come with downloaded models."""

    def __init__(
        self, source: str, tokens: Mapping[str, str] | None = None, *, origin: str = "the chat template"
    ) -> None:
        """`tokens` are the special tokens that the template may write, such as `bos_token`.

        Raises ValueError naming `origin` when the template does not compile.
        """
        self.source = source
        self.tokens = {"bos_token": control.BOS, "eos_token": control.TURN_CLOSE} if tokens is None else dict(tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"{origin} does not compile (line {error.lineno}: {error.message}); correct it") from error

    @classmethod
    def built_in(cls) -> ChatTemplate:
        """ZAYA ChatML, with ZAYA's own special tokens."""
        return cls(BUILT_IN_TEMPLATE)

    @classmethod
    def from_folder(cls, path: str | Path) -> ChatTemplate:
        """The template of a model's folder: `chat_template.jinja`, else `tokenizer_config.json`, else ZAYA ChatML."""
        folder = Path(path)
        settings = read_json(folder / "tokenizer_config.json")
        tokens = {name: text for name in _TOKEN_NAMES if (text := token_text(settings.get(name))) is not None}
        file = folder / "chat_template.jinja"
        if file.is_file():
            return cls(file.read_text(encoding="utf-8"), tokens, origin=str(file))
        configured = _default_template(settings.get("chat_template"))
        if configured is not None:
            return cls(configured, tokens, origin=f"chat_template in {folder / 'tokenizer_config.json'}")
        return cls(BUILT_IN_TEMPLATE, tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        enable_thinking: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt of a conversation.

        With `continue_final_message` the prompt ends inside the last message, so that the model goes on with it: after
        its content, or inside its still open reasoning when it has reasoning and no content (None). Raises ValueError
        when the conversation is malformed or the template refuses it.
        """
        conversation = plain_messages(messages)
        if not continue_final_message:
            return self._render(conversation, tools, enable_thinking, add_generation_prompt)
        if not conversation:
            raise ValueError("there is no final message to continue; give at least one message")
        end = unused_character(conversation, tools)
        last = conversation[-1]
        field = _field_to_continue(last)
        conversation[-1] = {**last, field: last[field] + end}
        rendered = self._render(conversation, tools, enable_thinking, add_generation_prompt=False)
        prompt, found, _ = rendered.rpartition(end)
        if not found:
            raise ValueError(f"the chat template does not write the {field} of the final message, so nothing goes on")
        return prompt

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        enable_thinking: bool,
        add_generation_prompt: bool,
    ) -> str:
        try:
            return self._template.render(
                messages=list(messages),
                tools=[dict(tool) for tool in tools] or None,
                documents=None,
                enable_thinking=enable_thinking,
                add_generation_prompt=add_generation_prompt,
                **self.tokens,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"the chat template cannot render this conversation: {error}") from error


def render_reply(reasoning: str, content: str) -> str:
    """What a model writes after the generation prompt: the one place that states the form of a training target.

    Without reasoning it is the empty think block that `enable_thinking=False` puts into the prompt.
    """
    thought = f"{reasoning}\n" if reasoning else ""
    return f"{control.THINK_OPEN}\n{thought}{control.THINK_CLOSE}\n\n{content}{control.TURN_CLOSE}\n"


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates expect them: content as one string, arguments of tool calls as objects.

    Raises ValueError for a message without a role, for content that is not text, and for arguments that are not JSON.
    """
    return [_plain_message(message, index) for index, message in enumerate(messages)]


def unused_character(*values: Any) -> str:
    """A private-use character that occurs nowhere in `values`. Raises ValueError when all of them do."""
    text = "".join(json.dumps(value, ensure_ascii=False, default=str) for value in values)
    for code in _PRIVATE_USE:
        if chr(code) not in text:
            return chr(code)
    raise ValueError("the conversation uses every private-use character from U+E000 to U+F8FF; leave one out")


def _plain_message(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str):
        raise ValueError(f"message {index} has the role {role!r}; give system, user, assistant or tool")
    plain = dict(message)
    if "content" in plain:
        plain["content"] = _plain_content(plain["content"], index)
    if plain.get("tool_calls"):
        plain["tool_calls"] = [_plain_call(call, index) for call in plain["tool_calls"]]
    return plain


def _plain_content(content: Any, index: int) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ValueError(f"message {index} has content of type {type(content).__name__}; give a string or text parts")
    pieces = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"message {index} has a part of type {kind!r}; this model reads parts of type 'text' only")
        pieces.append(part["text"])
    return "".join(pieces)


def _plain_call(call: Mapping[str, Any], index: int) -> dict[str, Any]:
    function = dict(call.get("function", call))
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise ValueError(f"message {index} has tool call arguments that are not JSON: {error}") from error
    if not isinstance(arguments, Mapping | None):
        raise ValueError(f"message {index} has tool call arguments {arguments!r}; give a JSON object")
    function["arguments"] = dict(arguments or {})
    return {**call, "function": function} if "function" in call else function


def _field_to_continue(message: Mapping[str, Any]) -> str:
    if message.get("content") is not None:
        return "content"
    for name in ("reasoning_content", "reasoning"):
        if isinstance(message.get(name), str):
            return name
    raise ValueError("the final message has neither content nor reasoning to continue; give one of them")


def _default_template(configured: Any) -> str | None:
    """The template in `tokenizer_config.json`: a string, or a list of named ones of which `default` is taken."""
    if isinstance(configured, list):
        configured = next((entry.get("template") for entry in configured if entry.get("name") == "default"), None)
    return configured if isinstance(configured, str) else None


def _environment() -> jinja2.Environment:
    """The environment that chat templates are written for: that of `transformers`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationBlock(Extension):
    """`{% generation %}` marks what a model wrote, for loss masks; here it only renders its body."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML characters, which no prompt wants.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
