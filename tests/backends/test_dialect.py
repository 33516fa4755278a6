"""Parameters to body, and what a refusal teaches."""

from __future__ import annotations

from typing import Any

import pytest

from openzaya.backends.dialect import Dialect
from openzaya.backends.failures import ServerMessage
from openzaya.backends.protocol import ChatParams

HELLO = [{"role": "user", "content": "Hello"}]


def body_of(params: ChatParams, dialect: Dialect | None = None) -> dict[str, Any]:
    return (dialect or Dialect()).chat_body("m", HELLO, params, token_ids=True)


def test_an_unknown_server_is_sent_openais_fields_only() -> None:
    assert body_of(ChatParams(max_tokens=9, temperature=0.5, top_p=0.9, seed=3, stop=("x",))) == {
        "model": "m",
        "messages": HELLO,
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 9,
        "seed": 3,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_vendor_fields_are_sent_where_they_are_set() -> None:
    body = body_of(ChatParams(top_k=40, min_p=0.1, stop_token_ids=(5,), ignore_eos=True, logprobs=2))
    assert (body["top_k"], body["min_p"], body["stop_token_ids"], body["ignore_eos"]) == (40, 0.1, [5], True)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)


@pytest.mark.parametrize(("vendor", "off"), [("vllm", -1), ("sglang", -1), ("llamacpp", 0)])
def test_servers_with_defaults_of_their_own_are_told_to_sample_the_whole_distribution(vendor: str, off: int) -> None:
    body = body_of(ChatParams(), Dialect(vendor=vendor))
    assert (body["top_k"], body["min_p"]) == (off, 0.0)
    assert body_of(ChatParams(top_k=7), Dialect(vendor=vendor))["top_k"] == 7


def test_token_ids_are_asked_of_servers_that_give_them_and_not_with_stop_strings() -> None:
    assert body_of(ChatParams(), Dialect(vendor="vllm"))["return_token_ids"] is True
    assert "return_token_ids" not in body_of(ChatParams(stop=("x",)), Dialect(vendor="vllm"))
    assert "return_token_ids" not in body_of(ChatParams(), Dialect(vendor="llamacpp"))


def test_thinking_is_mentioned_only_where_it_is_switched_off_and_extra_fields_join_it() -> None:
    assert "chat_template_kwargs" not in body_of(ChatParams())
    extra = {"chat_template_kwargs": {"style": "short"}, "temperature": 0.1, "custom": [1]}
    body = body_of(ChatParams(enable_thinking=False, extra=extra))
    assert body["chat_template_kwargs"] == {"enable_thinking": False, "style": "short"}
    assert (body["temperature"], body["custom"]) == (0.1, [1])


def test_tools_and_response_format_are_passed_through() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    body = body_of(ChatParams(tools=(tool,), tool_choice="required", response_format={"type": "json_object"}))
    assert (body["tools"], body["tool_choice"], body["response_format"]) == (
        [tool],
        "required",
        {"type": "json_object"},
    )


@pytest.mark.parametrize(
    "message",
    [
        ServerMessage("Unrecognized request argument supplied: top_k"),
        ServerMessage("body.top_k: Extra inputs are not permitted"),
        ServerMessage("Unexpected fields in the request: {'top_k'}"),
        ServerMessage("Unsupported parameter", "unsupported_parameter", "top_k"),
    ],
)
def test_a_refused_field_is_left_out_from_then_on(message: ServerMessage) -> None:
    dialect = Dialect()
    body = body_of(ChatParams(top_k=4), dialect)
    assert dialect.learn(body, {}, message) == "it refuses top_k, left out from now on"
    assert "top_k" not in body_of(ChatParams(top_k=4), dialect)


def test_a_refused_value_is_the_callers_to_change() -> None:
    dialect = Dialect()
    body = body_of(ChatParams(top_k=4), dialect)
    assert dialect.learn(body, {}, ServerMessage("top_k must be -1 or at least 1, got 4")) is None
    assert not dialect.refused


def test_a_refused_field_that_carries_meaning_is_an_error() -> None:
    dialect = Dialect()
    body = body_of(ChatParams(tools=({"type": "function"},)), dialect)
    assert dialect.learn(body, {}, ServerMessage("Unrecognized request argument supplied: tools")) is None


def test_the_callers_own_fields_are_never_dropped() -> None:
    dialect = Dialect()
    extra = {"top_k": 3}
    body = body_of(ChatParams(extra=extra), dialect)
    assert dialect.learn(body, extra, ServerMessage("Unknown field: top_k")) is None


def test_the_token_limit_takes_its_other_name_once() -> None:
    dialect = Dialect()
    params = ChatParams(max_tokens=8)
    said = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    assert dialect.learn(body_of(params, dialect), {}, ServerMessage(said)) is not None
    body = body_of(params, dialect)
    assert (body.get("max_completion_tokens"), body.get("max_tokens")) == (8, None)
    assert dialect.learn(body, {}, ServerMessage("max_completion_tokens is not supported")) is None


def test_a_second_request_in_flight_learns_the_same_lesson_again() -> None:
    dialect = Dialect()
    body = body_of(ChatParams(top_k=4, max_tokens=8), dialect)
    refusal = ServerMessage("unknown field top_k")
    limit = ServerMessage("max_tokens is not supported, use max_completion_tokens")
    for message in (refusal, refusal, limit, limit):
        assert dialect.learn(body, {}, message) is not None


def test_a_server_without_stream_options_is_asked_without_them() -> None:
    dialect = Dialect()
    assert dialect.learn(body_of(ChatParams(), dialect), {}, ServerMessage("Unknown parameter: include_usage"))
    assert "stream_options" not in body_of(ChatParams(), dialect)


def test_text_and_ids_are_prompts_of_a_completion() -> None:
    dialect = Dialect(token_limit="max_completion_tokens")
    by_text = dialect.completion_body("m", "2 + 2 =", ChatParams(max_tokens=4, logprobs=0), token_ids=True)
    assert (by_text["prompt"], by_text["max_tokens"], by_text["logprobs"]) == ("2 + 2 =", 4, 0)
    assert dialect.completion_body("m", (1, 2), ChatParams(), token_ids=True)["prompt"] == [1, 2]
