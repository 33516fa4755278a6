"""What a reply may be, as a grammar: the form of `response_format`, and calls of tools that have to be made.

The grammars are in llguidance's dialect of Lark. The form of calls is that of `openzaya.chat.tools`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from openzaya.chat.arguments import declared_types
from openzaya.chat.control import TOOL_CALL_CLOSE, TOOL_CALL_OPEN

Tool = Mapping[str, Any]

_WHITESPACE = {"x-guidance": {"whitespace_pattern": r"[ \n]{0,16}"}}
"""Between the parts of a JSON text; without a limit a weak model never leaves it."""


def reply_grammar(
    response_format: Mapping[str, Any] | None,
    tools: Sequence[Tool] = (),
    tool_choice: str | Mapping[str, Any] | None = None,
    control_tokens: Mapping[str, int] | None = None,
) -> str | None:
    """The grammar of a reply's content, after its reasoning; None where it is free.

    The arguments are those of OpenAI's chat API; `control_tokens` says which tags are tokens of their own. Raises
    ValueError for a form or a choice that is unknown or does not say what it must.
    """
    wanted, must = _wanted_tools(tools, tool_choice)
    form = _form(response_format)
    if form is None and not must:
        return None
    rules = [*_call_rules(wanted, control_tokens or {}, one=isinstance(tool_choice, Mapping))] if wanted else []
    if form is not None and not must:
        rules.append(f"form: {form}")
    reply = " | ".join(["form"] * (form is not None and not must) + ["calls"] * bool(wanted))
    return "\n".join([f"start: BREAK? ({reply})", r"BREAK: /\n{1,2}/", *rules])


def check_grammar(grammar: str) -> None:
    """Raises ValueError where a grammar cannot be held to: llguidance is missing, or a schema says what it cannot."""
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise ValueError(
            "replies are held to a form by llguidance, which is not installed; pip install 'openzaya[local]'"
        ) from error
    failed, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_lark(grammar))
    if failed:
        # Behind its reason the message lists the grammar, which whoever sent a schema has never seen.
        reason = " ".join(re.split(r"\n\s*1 \| ", messages[0], maxsplit=1)[0].split())
        raise ValueError("a reply cannot be held to this form: " + re.sub(r"^at \d+\(\d+\): ", "", reason))


def _form(response_format: Mapping[str, Any] | None) -> str | None:
    kind = (response_format or {}).get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return _json({"type": "object"})
    if kind != "json_schema":
        raise ValueError(f"response_format is {kind!r}; it must be text, json_object or json_schema")
    described = (response_format or {}).get("json_schema")
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if not isinstance(schema, Mapping):
        raise ValueError("response_format is 'json_schema' without a schema; give it as json_schema.schema")
    return _json(schema)


def _wanted_tools(tools: Sequence[Tool], choice: str | Mapping[str, Any] | None) -> tuple[list[Tool], bool]:
    """The functions that may be called, and whether one of them has to be."""
    functions = [tool.get("function", tool) for tool in tools]
    if choice in (None, "auto", "none"):
        return ([] if choice == "none" else functions), False
    if not functions:
        raise ValueError(f"tool_choice is {choice!r} without tools; give tools, or leave it out")
    if choice == "required":
        return functions, True
    name = choice.get("function", choice).get("name") if isinstance(choice, Mapping) else None
    named = [function for function in functions if function.get("name") == name]
    if name is None or not named:
        offered = ", ".join(str(function.get("name")) for function in functions)
        raise ValueError(f"tool_choice is {choice!r}; it must be auto, none, required or one of the tools: {offered}")
    return named, True


def _call_rules(functions: Sequence[Tool], control_tokens: Mapping[str, int], *, one: bool) -> Iterator[str]:
    opened, closed = (
        f"<[{control_tokens[tag]}]>" if tag in control_tokens else json.dumps(tag)
        for tag in (TOOL_CALL_OPEN, TOOL_CALL_CLOSE)
    )
    yield "calls: call" if one else "calls: call (BREAK? call)*"
    yield "call: " + " | ".join(f"call_{number}" for number in range(len(functions)))
    for number, function in enumerate(functions):
        parameters = function.get("parameters") or {}
        required = parameters.get("required") or ()
        arguments = []
        for place, (key, schema) in enumerate((parameters.get("properties") or {}).items()):
            rule = f"argument_{number}_{place}"
            arguments.append(rule if key in required else f"{rule}?")
            yield from _argument_rules(rule, key, schema, parameters)
        begins = json.dumps(f"\n<function={function['name']}>\n", ensure_ascii=False)
        yield f'call_{number}: {opened} {begins} {" ".join(arguments)} "</function>\\n" {closed}'


def _argument_rules(rule: str, key: str, schema: Any, root: Mapping[str, Any]) -> Iterator[str]:
    """Bare text where the schema allows a string, as the form has it, and JSON where it does not."""
    begins = json.dumps(f"<parameter={key}>\n", ensure_ascii=False)
    schema = schema if isinstance(schema, Mapping) else {}
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if options and all(isinstance(option, str) for option in options):
        spelled = " | ".join(json.dumps(option, ensure_ascii=False) for option in options)
        yield f'{rule}: {begins} ({spelled}) "\\n</parameter>\\n"'
        return
    types = declared_types(schema, root)
    if types and "string" not in types:
        shared = {keyword: root[keyword] for keyword in ("$defs", "definitions") if keyword in root}
        yield f'{rule}: {begins} {_json({**shared, **schema})} "\\n</parameter>\\n"'
        return
    yield f"{rule}: {begins} text_of_{rule}"
    yield f'text_of_{rule}[suffix="\\n</parameter>\\n"]: /(?s:.*)/'


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**_WHITESPACE, **schema}, ensure_ascii=False)
