from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.chat import ToolCall, ToolCallParser, parse_tool_calls, render_tool_calls
from openzaya.chat.arguments import typed_value

SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "parameters": {
            "type": "object",
            "$defs": {"Point": {"type": "object", "properties": {"x": {"type": "number"}}}},
            "properties": {
                "query": {"type": "string"},
                "limit": {"type": "integer"},
                "ratio": {"type": "number"},
                "exact": {"type": "boolean"},
                "tags": {"type": "array"},
                "where": {"$ref": "#/$defs/Point"},
                "before": {"type": ["string", "null"]},
                "after": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                "order": {"enum": ["up", "1", 2, None]},
            },
        },
    },
}
CALL = "<zyphra_tool_call>\n<function=search>\n<parameter=query>\nzaya\n</parameter>\n</function>\n</zyphra_tool_call>"
FRAGMENTS = [
    CALL,
    *CALL.replace("\n", "\n|").split("|"),
    *("<zyphra_tool_call>", "<function=search>", "<parameter=limit>", "</parameter>", "</function>"),
    *("</zyphra_tool_call>", "\n", " ", "word", "```\n", "```python\n", "~~~\n", "<", "</para", "`", "5", "<function="),
]
replies = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
code = st.lists(
    st.sampled_from(
        [
            "\n",
            "</parameter>",
            "</param",
            "<parameter",
            "</function>",
            "</zyphra_tool_call>",
            "if a < b:",
            "🙂",
            "```",
            " ",
        ]
    ),
    max_size=8,
).map("".join)


def _merged(pieces: list[str | ToolCall]) -> list[str | ToolCall]:
    merged: list[str | ToolCall] = []
    for piece in pieces:
        if isinstance(piece, str) and merged and isinstance(merged[-1], str):
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _in_chunks(text: str, cuts: list[int]) -> list[str | ToolCall]:
    parser = ToolCallParser([SEARCH])
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    pieces = [piece for start, end in pairwise(bounds) for piece in parser.feed(text[start:end])]
    return _merged(pieces + parser.finish())


@given(text=replies, cuts=st.lists(st.integers(0, 500), max_size=14))
def test_chunks_read_like_the_whole_reply(text: str, cuts: list[int]) -> None:
    assert _in_chunks(text, cuts) == _in_chunks(text, [])


@pytest.mark.parametrize(
    "text",
    [
        f"Look:\n{CALL}\n{CALL}\n\ndone",
        f"a <zyphra_tool_call> {CALL[:-3]}",
        f"```\n{CALL}\n```\n{CALL}",
        CALL[:60] + CALL,
    ],
)
def test_every_single_cut_reads_the_same(text: str) -> None:
    whole = _in_chunks(text, [])
    assert all(_in_chunks(text, [cut]) == whole for cut in range(len(text)))
    assert _in_chunks(text, list(range(len(text)))) == whole


def _words(text: str) -> str:
    return "".join(text.split())


@given(text=replies)
def test_nothing_is_lost(text: str) -> None:
    pieces = _in_chunks(text, [])
    rest = _words(text)
    for piece in pieces:
        if isinstance(piece, str):
            assert rest.startswith(_words(piece))
            rest = rest[len(_words(piece)) :]
        else:
            end = rest.index("</zyphra_tool_call>", rest.index("<function=")) + len("</zyphra_tool_call>")
            while not _is_a_call(rest[:end]):
                end = rest.index("</zyphra_tool_call>", end) + len("</zyphra_tool_call>")
            rest = rest[end:]
    assert rest == ""


def _is_a_call(text: str) -> bool:
    content, calls = parse_tool_calls(text)
    return content == "" and len(calls) == 1


@given(
    content=st.sampled_from(["", "Let me look.", "a\n", "<zyphra_tool_call>?"]),
    calls=st.lists(st.dictionaries(st.sampled_from(["query", "extra"]), code, max_size=2), min_size=1, max_size=3),
)
def test_calls_with_code_as_values_come_back_as_written(content: str, calls: list[dict[str, str]]) -> None:
    written = render_tool_calls([{"name": "search", "arguments": arguments} for arguments in calls])
    read, found = parse_tool_calls(f"{content}\n{written}" if content else written, [SEARCH])
    values = [_words(value) for arguments in calls for value in arguments.values()]
    if any("</parameter></function></zyphra_tool_call>" in value for value in values):
        return  # a value that spells its own end is the one thing that cannot be told from an end
    if any("</function></zyphra_tool_call>" in value for value in values):
        assert len(found) < len(calls), "the end of a call inside a value makes it content"
        return
    assert read == content
    assert [json.loads(call.arguments) for call in found] == calls
    assert [call.index for call in found] == list(range(len(calls)))


@given(value=json_values)
def test_typed_values_come_back_as_they_were(value: Any) -> None:
    kinds = {dict: "object", list: "array", bool: "boolean", int: "integer", float: "number", str: "string"}
    schema = {"type": kinds.get(type(value), "null")}
    tool = {"name": "f", "parameters": {"properties": {"value": schema}}}
    written = render_tool_calls([{"function": {"name": "f", "arguments": {"value": value}}}])
    _, (call,) = parse_tool_calls(written, [tool])
    read = json.loads(call.arguments)["value"]
    assert read == value
    assert isinstance(read, bool) == isinstance(value, bool)


@pytest.mark.parametrize(
    ("parameter", "text", "value"),
    [
        ("query", "5", "5"),
        ("query", "null", "null"),
        ("limit", "5", 5),
        ("limit", " 5 ", 5),
        ("limit", "5.0", 5),
        ("limit", "5.5", "5.5"),
        ("limit", "five", "five"),
        ("limit", "true", "true"),
        ("limit", "9" * 5000, "9" * 5000),
        ("ratio", "5e-1", 0.5),
        ("ratio", "1e999", "1e999"),
        ("ratio", "NaN", "NaN"),
        ("exact", "True", True),
        ("exact", "yes", "yes"),
        ("tags", '["a", 1]', ["a", 1]),
        ("tags", '{"a": 1}', '{"a": 1}'),
        ("tags", "[" * 100_000, "[" * 100_000),
        ("where", '{"x": 1.5}', {"x": 1.5}),
        ("before", "null", None),
        ("before", "noon", "noon"),
        ("after", "7", 7),
        ("after", "None", None),
        ("order", "1", "1"),
        ("order", "2", 2),
        ("order", "null", None),
        ("order", "down", "down"),
        ("undeclared", "7", "7"),
    ],
)
def test_arguments_are_typed_by_their_schema(parameter: str, text: str, value: Any) -> None:
    schema = SEARCH["function"]["parameters"]  # type: ignore[index]
    read = typed_value(text, schema["properties"].get(parameter, {}), schema)
    assert read == value
    assert type(read) is type(value)


def test_a_schema_that_refers_to_itself_ends() -> None:
    schema = {"$ref": "#", "anyOf": [{"$ref": "#"}, {"$ref": "#/$defs/missing"}] * 1000, "oneOf": [{"type": "integer"}]}
    assert typed_value("x", schema) == "x"
    assert typed_value("7", schema) == 7


def test_a_call_on_one_line_is_a_call() -> None:
    text = "<zyphra_tool_call><function=search><parameter=limit>3</parameter></function></zyphra_tool_call>"
    assert parse_tool_calls(text, [SEARCH]) == ("", [ToolCall(0, "search", '{"limit": 3}')])


def test_the_line_break_before_a_call_and_blanks_after_it_belong_to_the_form() -> None:
    assert _in_chunks(f"Look:\n\n{CALL}\n\n", []) == ["Look:\n", ToolCall(0, "search", '{"query": "zaya"}')]
    pieces = _in_chunks(f"{CALL}\n \n{CALL}\nwell", [])
    assert [piece if isinstance(piece, str) else piece.index for piece in pieces] == [0, 1, "\nwell"]
    assert _in_chunks(f"{CALL}\nwell\n ", list(range(200)))[1:] == ["\nwell\n "]


@pytest.mark.parametrize(
    "text",
    [
        "The tag <zyphra_tool_call> starts a call.",
        CALL.replace("<function=search>", '{"name": "search"}'),
        CALL.replace("</function>\n", ""),
        CALL.replace("</parameter>\n", ""),
        CALL.removesuffix("</zyphra_tool_call>"),
        CALL.replace("search", ""),
        CALL.replace("</function>", "<parameter=query>\nagain\n</parameter>\n</function>"),
        CALL.replace("</function>\n", "</function>\nand\n"),
        f"```xml\n{CALL}\n```",
        f"~~~~\n```\n{CALL}\n~~~\n{CALL}",
        f"`{CALL[:30]}`",
    ],
)
def test_what_is_no_call_comes_back_to_the_letter(text: str) -> None:
    assert _in_chunks(text, []) == [text]


def test_a_fence_that_closed_hides_nothing_behind_it() -> None:
    pieces = _in_chunks(f"```\n{CALL}\n```\n```not a fence```\n{CALL}", [])
    assert [type(piece) for piece in pieces] == [str, ToolCall]


@pytest.mark.parametrize(
    "broken",
    [
        "<zyphra_tool_call>\n",
        "<zyphra_tool_call>\n<function=search>\n<parameter=query>\noops",
        CALL.replace("</parameter>\n", ""),
        CALL.replace("</function>\n", ""),
    ],
)
def test_a_call_behind_a_malformed_one_is_found_and_not_merged_with_it(broken: str) -> None:
    assert _in_chunks(f"{broken}\n{CALL}", []) == [broken, ToolCall(0, "search", '{"query": "zaya"}')]


def test_the_function_being_called_is_known_before_the_call_ends() -> None:
    parser = ToolCallParser()
    parser.feed("text\n<zyphra_tool_call>\n<function=sea")
    assert parser.open_call is None
    parser.feed("rch>\n<parameter=a>")
    assert parser.open_call == "search"
    parser.feed("1</parameter></function></zyphra_tool_call>")
    assert parser.open_call is None


def test_text_streams_while_no_call_is_near() -> None:
    parser = ToolCallParser()
    assert parser.feed("one\ntwo <") == ["one\ntwo "]
    assert parser.feed("3\n") == ["<3"]
    assert parser.feed("<zyphra_tool_call>\n<function=f>\n</function>") == []
    assert parser.feed("\n</zyphra_tool_call>") == [ToolCall(0, "f", "{}")]


def test_a_long_value_full_of_lookalikes_is_read_whole() -> None:
    parser = ToolCallParser()
    parser.feed("<zyphra_tool_call><function=f><parameter=a>")
    for _ in range(10_000):
        parser.feed("</parameter> < ")
    (call,) = parser.feed("</parameter></function></zyphra_tool_call>")
    assert isinstance(call, ToolCall)
    assert len(json.loads(call.arguments)["a"]) == 150_000


@pytest.mark.parametrize("name", ["", "a>b", "a\nb", "<a", " a"])
def test_a_name_that_no_tag_can_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot stand in a tool call"):
        render_tool_calls([{"name": name, "arguments": {}}])


def test_a_read_call_renders_again() -> None:
    _, calls = parse_tool_calls(CALL)
    assert render_tool_calls(calls) == CALL
    with pytest.raises(ValueError, match="give a JSON object"):
        render_tool_calls([{"name": "f", "arguments": [1]}])
