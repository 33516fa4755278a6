"""The backend against the scripted server: what it asks and what it reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar, get_args

import pytest

from fake_openai import Failure, FakeServer, Reply, ToolCall
from fake_openai.script import Style
from openzaya.backends import Backend, BackendError, ChatParams, Delta, collect
from openzaya.backends import Reply as Collected
from openzaya.backends.openai import OpenAIBackend
from openzaya.engine.params import SamplingParams

T = TypeVar("T")
HELLO = [{"role": "user", "content": "What is 2 + 2?"}]
THOUGHT = Reply(reasoning="Two and two:\n  é = 4", content="The answer is 4 😀.", cached_tokens=3)


def with_backend(server: FakeServer, use: Callable[[OpenAIBackend], Awaitable[T]], **settings: Any) -> T:
    """Run `use` with a backend of one server and close it."""

    async def run() -> T:
        backend = OpenAIBackend([server.url], **{"model": "fake", "backoff": 0.01, **settings})
        try:
            return await use(backend)
        finally:
            await backend.aclose()

    return asyncio.run(run())


def ask(server: FakeServer, params: ChatParams | None = None, **settings: Any) -> Collected:
    """The reply to one question."""
    return with_backend(server, lambda backend: collect(backend.chat(HELLO, params or ChatParams())), **settings)


def test_it_is_a_backend() -> None:
    assert isinstance(OpenAIBackend(["http://host"]), Backend)


@pytest.mark.parametrize("style", [style for style in get_args(Style) if style != "plain"])
@pytest.mark.parametrize("accident", [{}, {"bytes_per_write": 3, "keep_alive_comments": True}, {"line_ending": "\r\n"}])
def test_reasoning_and_answer_are_parted_in_every_style_of_every_server(style: Style, accident: dict[str, Any]) -> None:
    reply = Reply(reasoning=THOUGHT.reasoning, content=THOUGHT.content, cached_tokens=3, **accident)
    with FakeServer(reply, style=style) as server:
        got = ask(server)
    assert (got.reasoning, got.content, got.finish_reason) == (THOUGHT.reasoning, THOUGHT.content, "stop")
    assert got.usage is not None
    assert got.usage.cached_tokens == 3
    assert got.usage.prompt_tokens > 0
    assert got.usage.completion_tokens > 10


def test_a_reply_without_marks_is_all_content() -> None:
    with FakeServer(THOUGHT, style="plain") as server:
        assert ask(server).content == THOUGHT.reasoning + THOUGHT.content


def test_a_server_that_ignores_stream_is_read_all_the_same() -> None:
    with FakeServer(Reply(reasoning="a b", content="c", whole=True)) as server:
        got = ask(server)
    assert (got.reasoning, got.content, got.finish_reason) == ("a b", "c", "stop")


@pytest.mark.parametrize(("done", "usage"), [(False, True), (True, False)])
def test_no_done_and_no_usage_are_no_failure(done: bool, usage: bool) -> None:
    with FakeServer(Reply(content="4", done=done), usage=usage) as server:
        got = ask(server)
    assert (got.content, got.finish_reason, got.usage is None) == ("4", "stop", not usage)


def test_the_limit_cuts_a_reply_and_is_told() -> None:
    with FakeServer(THOUGHT) as server:
        got = ask(server, ChatParams(max_tokens=5))
        assert server.requests[0].body["max_tokens"] == 5
    assert got.finish_reason == "length"
    assert got.usage is not None
    assert got.usage.completion_tokens == 5


def test_pieces_arrive_while_the_reply_is_being_written() -> None:
    async def first_piece(backend: OpenAIBackend) -> Delta:
        stream = backend.chat(HELLO, ChatParams())
        async for delta in stream:
            if delta.reasoning:
                await stream.aclose()
                return delta
        raise AssertionError("no piece came")

    with FakeServer(Reply(reasoning="one two three", stall_after=3)) as server:
        assert with_backend(server, first_piece).reasoning == "one"


def test_token_ids_are_those_of_the_reasoning_and_of_the_content() -> None:
    for style in ("reasoning", "think_tags"):
        with FakeServer(THOUGHT, style=style, vendor="vllm", token_ids=True, tokenize="vllm") as server:
            got = ask(server)
            assert server.tokenizer.decode(got.reasoning_ids).strip("\n") == THOUGHT.reasoning
            assert server.tokenizer.decode(got.content_ids).strip("\n") == THOUGHT.content
            assert server.requests[0].body["return_token_ids"] is True


def test_tool_calls_are_merged_by_index() -> None:
    calls = (ToolCall("add", '{"a": 2, "b": 2}', "x"), ToolCall("show", "{}", "y"))
    with FakeServer(Reply(reasoning="use it", tool_calls=calls)) as server:
        got = ask(server, ChatParams(tools=({"type": "function"},)))
    assert got.finish_reason == "tool_calls"
    assert [(call["id"], call["name"], call["arguments"]) for call in got.tool_calls] == [
        ("x", "add", '{"a": 2, "b": 2}'),
        ("y", "show", "{}"),
    ]


def test_a_tool_call_with_reason_stop_is_a_tool_call() -> None:
    with FakeServer(Reply(tool_calls=(ToolCall("f", "{}"),), finish_reason="stop")) as server:
        assert ask(server).finish_reason == "tool_calls"


def test_logprobs_come_where_they_are_asked_for() -> None:
    with FakeServer(Reply(content="a b")) as server:
        got = ask(server, ChatParams(logprobs=0))
        assert [entry["token"] for entry in got.logprobs] == ["a", " b", ""]
        assert ask(server).logprobs == []


def test_text_and_ids_are_completed_as_content() -> None:
    async def complete(backend: OpenAIBackend) -> list[Collected]:
        params = SamplingParams(max_tokens=20)
        return [await collect(backend.complete(prompt, params)) for prompt in ("2 + 2 =", [7, 8])]

    with FakeServer(Reply(content=" 4</think>"), vendor="vllm", token_ids=True, tokenize="vllm") as server:
        by_text, by_ids = with_backend(server, complete)
        assert by_text.content == by_ids.content == " 4</think>"
        assert server.tokenizer.decode(by_ids.content_ids) in (" 4</think>", " 4")
        assert [request.body["prompt"] for request in server.requests] == ["2 + 2 =", [7, 8]]
        assert by_ids.usage is not None
        assert by_ids.usage.prompt_tokens == 2


@pytest.mark.parametrize("style", ["openai", "pydantic", "transformers"])
def test_refused_fields_are_left_out_once_and_for_all(style: Any) -> None:
    params = ChatParams(top_k=5, seed=1, enable_thinking=False)
    refuses = {"top_k": 422, "stream_options": 400, "chat_template_kwargs": 400}
    with FakeServer(THOUGHT, refuses=refuses, refusal_style=style) as server:

        async def twice(backend: OpenAIBackend) -> None:
            for _ in range(2):
                assert (await collect(backend.chat(HELLO, params))).content == THOUGHT.content

        with_backend(server, twice)
        accepted = [request.body for request in server.requests if not refuses.keys() & request.body.keys()]
    assert len(accepted) == 2
    assert server.requests[-1].body == server.requests[-2].body
    assert accepted[0]["seed"] == 1


@pytest.mark.parametrize(("first", "then"), [("max_tokens", "max_completion_tokens")])
def test_the_token_limit_is_sent_under_the_name_that_the_server_knows(first: str, then: str) -> None:
    with FakeServer(Reply(content="4"), refuses={first: 400}) as server:
        ask(server, ChatParams(max_tokens=7))
        assert [request.body.get(first) for request in server.requests] == [7, None]
        assert server.requests[-1].body[then] == 7


def test_a_refused_field_of_the_callers_own_is_an_error() -> None:
    with (
        FakeServer(Reply(content="4"), refuses={"custom": 400}) as server,
        pytest.raises(BackendError, match="custom"),
    ):
        ask(server, ChatParams(extra={"custom": 1}))


def test_force_answer_closes_the_reasoning_and_asks_for_the_answer() -> None:
    def script(request: Any) -> Reply:
        continues = request.body.get("continue_final_message")
        return Reply(content="So 4.") if continues else Reply(reasoning="a very long thought")

    params = ChatParams(max_tokens=4, force_answer=16, seed=9)
    with FakeServer(script, style="think_tags", vendor="vllm", tokenize="vllm") as server:
        got = ask(server, params, continue_message=True)
        first, second = (request.body for request in server.requests)
    assert (got.content, got.finish_reason) == ("So 4.", "stop")
    assert got.reasoning.startswith("a very")
    assert second["messages"][-1] == {"role": "assistant", "content": f"<think>\n{got.reasoning}\n</think>\n\n"}
    assert (second["add_generation_prompt"], second["max_tokens"], second["seed"]) == (False, 16, 9)
    assert got.usage is not None
    assert got.usage.completion_tokens == 4 + len(server.tokenizer.encode("So 4.")) + 1
    assert first["messages"] == HELLO


def test_no_answer_is_forced_where_one_began_or_the_server_cannot_or_nobody_asked() -> None:
    cut_in_answer = Reply(reasoning="x", content="one two three four five")
    cut_in_thought = Reply(reasoning="one two three four five six")
    for reply, params, can in (
        (cut_in_answer, ChatParams(max_tokens=5, force_answer=9), True),
        (cut_in_thought, ChatParams(max_tokens=5, force_answer=9), False),
        (cut_in_thought, ChatParams(max_tokens=5), True),
    ):
        with FakeServer(reply) as server:
            assert ask(server, params, continue_message=can).finish_reason == "length"
            assert len(server.requests) == 1


def test_a_reply_keeps_its_reasoning_when_no_answer_can_be_forced() -> None:
    script = [Reply(reasoning="a b c d e f"), Failure(status=400, message="prefill is incompatible with thinking")]
    with FakeServer(script) as server:
        got = ask(server, ChatParams(max_tokens=5, force_answer=9), continue_message=True)
    assert (got.finish_reason, got.reasoning, got.usage is not None) == ("length", "a b c d", True)


def test_discovery_takes_the_only_model_and_its_context() -> None:
    async def discover(backend: OpenAIBackend) -> str:
        assert backend.capabilities.context is None
        await backend.discover()
        return (await collect(backend.chat(HELLO, ChatParams()))).content

    with FakeServer(Reply(content="4"), models=("zaya",), context=4096, vendor="vllm", tokenize="vllm") as server:
        backend_holder: list[OpenAIBackend] = []

        async def use(backend: OpenAIBackend) -> str:
            backend_holder.append(backend)
            return await discover(backend)

        assert with_backend(server, use, model=None) == "4"
        known = backend_holder[0].capabilities
    assert (known.model, known.context, known.tokenize, known.seed) == ("zaya", 4096, True, True)
    assert (known.local, known.swap_weights, known.n) == (False, False, False)
    assert server.requests[0].body["model"] == "zaya"


@pytest.mark.parametrize("models", [(), ("a", "b")])
def test_without_exactly_one_model_the_error_lists_them(models: tuple[str, ...]) -> None:
    with FakeServer(Reply(), models=models) as server, pytest.raises(BackendError) as caught:
        with_backend(server, lambda backend: backend.discover(), model=None)
    assert f"lists {len(models)} models ({', '.join(models) or 'none'}); name the one to use" in str(caught.value)


def test_an_unknown_model_is_answered_with_those_that_the_server_has() -> None:
    with FakeServer(Reply(), models=("a", "b")) as server, pytest.raises(BackendError, match=r"lists a, b") as caught:
        ask(server, model="c")
    assert caught.value.status == 404


@pytest.mark.parametrize(("vendor", "tokenize"), [("vllm", "vllm"), ("llamacpp", None)])
def test_a_template_that_opens_the_reasoning_is_found_out_before_the_first_reply(vendor: str, tokenize: Any) -> None:
    async def first(backend: OpenAIBackend) -> Delta:
        stream: AsyncIterator[Delta] = backend.chat(HELLO, ChatParams())
        return await anext(delta async for delta in stream if delta.reasoning or delta.content)

    reply = Reply(reasoning="let me see", content="4")
    with FakeServer(
        reply, style="prompt_opened", vendor=vendor, tokenize=tokenize, template_opens_thinking=True
    ) as server:
        assert with_backend(server, first).reasoning == "let"


def test_swapping_weights_is_refused() -> None:
    with FakeServer(Reply()) as server, pytest.raises(BackendError, match="restart it with the new model"):
        with_backend(server, lambda backend: backend.swap_weights("x"))
