"""Chunks of every server's spelling, and of none."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.backends.chunks import Chunk, read_chunk
from openzaya.backends.failures import UpstreamFailure
from openzaya.backends.protocol import ToolCallDelta, Usage

URL = "http://host/v1/chat/completions"
KEYS = st.sampled_from(
    [
        "choices",
        "delta",
        "message",
        "content",
        "reasoning",
        "tool_calls",
        "index",
        "function",
        "usage",
        "logprobs",
        "token_ids",
        "finish_reason",
        "prompt_tokens",
        "prompt_tokens_details",
        "tokens",
        "token_logprobs",
        "top_logprobs",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=30,
)


@given(event=JSON)
def test_no_json_breaks_the_reader(event: Any) -> None:
    with suppress(UpstreamFailure):
        assert isinstance(read_chunk(event, URL), Chunk)


def chunk_of(delta: dict[str, Any], **choice: Any) -> Chunk:
    return read_chunk({"choices": [{"index": 0, "delta": delta, **choice}]}, URL)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_is_read_under_both_names(field: str) -> None:
    assert chunk_of({field: "so", "content": None}).reasoning == "so"


def test_content_in_parts_is_joined() -> None:
    assert chunk_of({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}).content == "ab"


def test_half_a_surrogate_pair_becomes_a_replacement_and_a_whole_one_a_character() -> None:
    assert chunk_of({"content": "a\ud83d"}).content == "a\ufffd"
    assert chunk_of({"content": "\ud83d\ude00 é"}).content == "😀 é"


def test_tool_calls_keep_their_index_or_take_their_place() -> None:
    calls = [{"index": 1, "id": "x", "function": {"name": "f", "arguments": "{"}}, {"function": {"arguments": "}"}}]
    assert chunk_of({"tool_calls": calls}).tool_calls == (
        ToolCallDelta(index=1, id="x", name="f", arguments="{"),
        ToolCallDelta(index=1, arguments="}"),
    )


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("stop", "stop"),
        ("eos", "stop"),
        ("length", "length"),
        ("function_call", "tool_calls"),
        ("odd", "stop"),
        (None, None),
    ],
)
def test_finish_reasons_are_three(said: str | None, meant: str | None) -> None:
    assert chunk_of({}, finish_reason=said).finish_reason == meant


def test_usage_is_read_with_its_details() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    chunk = read_chunk({"choices": [], "usage": usage}, URL)
    assert chunk.usage == Usage(prompt_tokens=10, completion_tokens=7, cached_tokens=8, reasoning_tokens=5)
    assert read_chunk(
        {"choices": [], "usage": {"prompt_tokens": 1, "prompt_tokens_details": None}}, URL
    ).usage == Usage(prompt_tokens=1)


def test_text_completions_give_logprobs_in_the_form_of_chats() -> None:
    logprobs = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0, "b": -2.0}]}
    chunk = read_chunk({"choices": [{"text": "a", "logprobs": logprobs}]}, URL)
    tops = [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}]
    assert chunk.logprobs == ({"token": "a", "logprob": -1.0, "top_logprobs": tops},)


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        ({"message": "engine died", "code": 500}, True),
        ({"message": "engine died"}, True),
        ("engine died", True),
        ({"message": "prompt too long", "code": 400}, False),
    ],
)
def test_an_error_in_the_stream_is_a_failure(error: object, retry: bool) -> None:
    with pytest.raises(UpstreamFailure, match=r"engine died|too long") as caught:
        read_chunk({"error": error}, URL)
    assert caught.value.retry is retry


def test_a_reply_broken_off_by_its_server_is_never_a_short_answer() -> None:
    with pytest.raises(UpstreamFailure, match="abort"):
        chunk_of({}, finish_reason="abort")
    with pytest.raises(UpstreamFailure, match="content filter") as caught:
        chunk_of({}, finish_reason="content_filter")
    assert not caught.value.retry
