"""Grammars of replies: every text that one lets through is a reply of the form that was asked for."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openzaya.chat.grammar import check_grammar, reply_grammar
from openzaya.chat.tools import ToolCallParser, render_tool_calls

llguidance = pytest.importorskip("llguidance")

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer"},
                    "b": {"$ref": "#/$defs/number"},
                    "sign": {"enum": ["plus", "minus"]},
                    "note": {"type": ["string", "null"]},
                    "exact": {"type": "boolean"},
                },
                "required": ["a", "b"],
                "$defs": {"number": {"type": "integer", "minimum": 0, "maximum": 99}},
            },
        },
    },
    {"type": "function", "function": {"name": "stop"}},
]


class Bytes:
    """A vocabulary of single bytes and an end."""

    eos_token_id = 256
    bos_token_id = None
    tokens = [bytes([value]) for value in range(256)] + [b"<end>"]
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


TOKENIZER = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))


def matcher(grammar: str) -> Any:
    check_grammar(grammar)
    return llguidance.LLMatcher(TOKENIZER, llguidance.LLMatcher.grammar_from_lark(grammar))


def lets_through(grammar: str, text: str) -> bool:
    state = matcher(grammar)
    return state.consume_tokens(list(text.encode())) and state.is_accepting()


def drawn(grammar: str, seed: int, most: int = 400) -> str | None:
    """A random text of the grammar, printable for the most part; None where it did not come to an end."""
    state, chance, found = matcher(grammar), random.Random(seed), bytearray()
    for _ in range(most):
        bits = int.from_bytes(state.compute_bitmask(), "little")
        allowed = [token for token in range(257) if bits >> token & 1]
        if 256 in allowed and (len(allowed) == 1 or chance.random() < 0.3):
            return found.decode()
        allowed = [token for token in allowed if token < 256]
        # Ends of values are rare among all bytes, so they are preferred.
        preferred = [token for token in allowed if token in b'\n<>/"}]'] if chance.random() < 0.5 else []
        token = chance.choice(preferred or [token for token in allowed if 9 <= token < 127] or allowed)
        assert state.consume_token(token)
        found.append(token)
    return None


@given(seed=st.integers(0, 10_000), one=st.booleans())
@settings(max_examples=60, deadline=None)
def test_calls_that_have_to_be_made_are_calls_of_the_tools_with_all_that_they_need(seed: int, one: bool) -> None:
    choice = {"type": "function", "function": {"name": "add"}} if one else "required"
    grammar = reply_grammar(None, TOOLS, choice)
    assert grammar is not None
    text = drawn(grammar, seed)
    if text is None:
        return
    parser = ToolCallParser(TOOLS)
    parts = parser.feed(text) + parser.finish()
    calls = [part for part in parts if not isinstance(part, str)]
    assert not "".join(part for part in parts if isinstance(part, str)).strip()
    assert calls
    assert not one or len(calls) == 1
    for call in calls:
        arguments = json.loads(call.arguments)
        if call.name == "stop":
            assert arguments == {}
            continue
        assert (call.name, type(arguments["a"]), type(arguments["b"])) == ("add", int, int)
        assert 0 <= arguments["b"] <= 99
        assert arguments.get("sign", "plus") in ("plus", "minus")
        assert isinstance(arguments.get("exact", True), bool)
        assert isinstance(arguments.get("note", ""), str | None)


@given(a=st.integers(), b=st.integers(0, 99), note=st.text(st.characters(codec="utf-8", exclude_characters="<\r")))
@settings(max_examples=60, deadline=None)
def test_a_call_as_templates_write_it_is_let_through(a: int, b: int, note: str) -> None:
    grammar = reply_grammar(None, TOOLS, "required")
    assert grammar is not None
    arguments = {"a": a, "b": b, "note": note}
    call = render_tool_calls([{"function": {"name": "add", "arguments": json.dumps(arguments)}}])
    assert lets_through(grammar, call.strip("\n"))
    assert not lets_through(grammar, call.replace(f"{a}", "x", 1).strip("\n"))


def test_forms_are_json_of_the_schema_and_nothing_else() -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"type": "integer"}},
        "required": ["x"],
        "additionalProperties": False,
    }
    described = {"type": "json_schema", "json_schema": {"name": "point", "schema": schema}}
    grammar, any_object = reply_grammar(described), reply_grammar({"type": "json_object"})
    assert grammar is not None
    assert any_object is not None
    for text, fits, is_object in [
        ('{"x": 1}', True, True),
        ('\n\n{"x": 1}', True, True),
        ('{\n    "x": 1\n}', True, True),
        ('{"x": "1"}', False, True),
        ('{"x": 1, "y": 2}', False, True),
        ("{}", False, True),
        ("[1]", False, False),
        ('{"x": 1} so', False, False),
        ("", False, False),
    ]:
        assert lets_through(grammar, text) == fits, text
        assert lets_through(any_object, text) == is_object, text


def test_a_form_beside_tools_that_may_be_called_lets_either_through() -> None:
    grammar = reply_grammar({"type": "json_object"}, TOOLS, "auto")
    assert grammar is not None
    assert lets_through(grammar, '{"x": 1}')
    assert lets_through(grammar, "<zyphra_tool_call>\n<function=stop>\n</function>\n</zyphra_tool_call>")
    none = reply_grammar({"type": "json_object"}, TOOLS, "none")
    assert none is not None
    assert not lets_through(none, "<zyphra_tool_call>\n<function=stop>\n</function>\n</zyphra_tool_call>")


def test_a_reply_is_free_where_nothing_holds_it() -> None:
    assert reply_grammar(None) is None
    assert reply_grammar({"type": "text"}, TOOLS, "auto") is None
    assert reply_grammar(None, TOOLS, "none") is None


@pytest.mark.parametrize(
    ("form", "tools", "choice", "message"),
    [
        ({"type": "xml"}, [], None, "response_format is 'xml'"),
        ({"type": "json_schema"}, [], None, "without a schema"),
        (None, [], "required", "without tools"),
        (None, TOOLS, "sometimes", "must be auto, none, required or one of the tools: add, stop"),
        (None, TOOLS, {"type": "function", "function": {"name": "multiply"}}, "one of the tools: add, stop"),
    ],
)
def test_what_is_no_form_is_refused_with_the_remedy(form: Any, tools: Any, choice: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reply_grammar(form, tools, choice)


@pytest.mark.parametrize(
    "schema",
    [{"type": "nonsense"}, {"type": "string", "pattern": "(a"}, {"$ref": "http://elsewhere/schema.json"}],
    ids=str,
)
def test_a_schema_that_cannot_be_held_to_is_refused_in_one_sentence(schema: dict[str, Any]) -> None:
    grammar = reply_grammar({"type": "json_schema", "json_schema": {"schema": schema}})
    assert grammar is not None
    with pytest.raises(ValueError, match="cannot be held to this form") as refusal:
        check_grammar(grammar)
    assert "\n" not in str(refusal.value)
