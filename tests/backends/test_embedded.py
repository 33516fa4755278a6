"""The embedded backend over small random models, some of whose weights are set so that they say what a test needs."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace

import pytest
import torch

from engine_models import SMALL, small_model, small_tokenizer
from openzaya.backends import Backend, BackendError, ChatParams, collect
from openzaya.backends.embedded import EmbeddedBackend
from openzaya.chat.encoding import encode_chat
from openzaya.chat.reasoning import split_reasoning
from openzaya.chat.template import ChatTemplate
from openzaya.chat.tokenizer import Tokenizer
from openzaya.chat.tools import render_tool_calls
from openzaya.engine.engine import Engine
from openzaya.engine.params import SamplingParams
from openzaya.model.checkpoint import save_model

QUESTION = [{"role": "user", "content": "the sum of 12 and 30?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    small_tokenizer(folder)
    save_model(small_model(), folder)
    small_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def engine(tokenizer):
    with Engine(small_model(), tokenizer=tokenizer, memory="64MiB", max_batch=64) as engine:
        yield engine


def reciting(tokenizer, text, *, messages=QUESTION, context=512, **options):
    """An engine whose model answers `messages` with `text`, whatever the sampling."""
    model = small_model(SMALL.with_(max_position_embeddings=context))
    ids = tokenizer.encode(text)
    prompt = encode_chat(tokenizer, ChatTemplate.built_in(), messages, **options)
    begin = len(prompt) - 1
    inner = model.hidden

    def hidden(input_ids, *arguments, cache=None, **keywords):
        model.places = cache.positions(input_ids.shape[1]).clone()
        return inner(input_ids, *arguments, cache=cache, **keywords)

    def logits(hidden_states):
        # Rows of prompts ask for their last place only.
        places = model.places[:, -1].reshape(-1)[: hidden_states.shape[0]]
        scores = torch.full((hidden_states.shape[0], SMALL.vocab_size), -100.0)
        for row, place in enumerate(places.tolist()):
            scores[row, ids[min(max(place - begin, 0), len(ids) - 1)]] = 100.0
        return scores

    model.hidden, model.logits = hidden, logits
    return Engine(model, tokenizer=tokenizer, memory="64MiB")


def ask(engine, params=None, messages=QUESTION):
    async def run():
        backend = await EmbeddedBackend.open(engine)
        return await collect(backend.chat(messages, params or ChatParams(max_tokens=40, seed=1)))

    return asyncio.run(run())


def test_it_is_a_backend_and_says_what_it_can(engine):
    backend = asyncio.run(EmbeddedBackend.open(engine))
    assert isinstance(backend, Backend)
    capabilities = backend.capabilities
    assert capabilities.token_ids
    assert capabilities.tokenize
    assert capabilities.continue_message
    assert capabilities.context == 512


def test_a_folder_opens_as_a_backend_of_its_own(folder):
    async def run():
        backend = await EmbeddedBackend.open(folder, memory="64MiB", seed=3)
        reply = await collect(backend.chat(QUESTION, ChatParams(max_tokens=5)))
        await backend.aclose()
        return backend.capabilities.model, reply

    name, reply = asyncio.run(run())
    assert name == str(folder)
    assert reply.usage.completion_tokens <= 5


def test_reasoning_and_answer_come_apart_with_their_ids(tokenizer):
    with reciting(tokenizer, "<think>\n12 and 30\n</think>\n\nthe answer is 42<|im_end|>") as engine:
        reply = ask(engine)
    assert (reply.reasoning, reply.content, reply.finish_reason) == ("12 and 30", "the answer is 42", "stop")
    assert tokenizer.decode(reply.reasoning_ids) == "12 and 30"
    assert tokenizer.decode(reply.content_ids) == "the answer is 42"
    assert reply.usage.completion_tokens == len(
        tokenizer.encode("<think>\n12 and 30\n</think>\n\nthe answer is 42<|im_end|>")
    )
    assert reply.usage.reasoning_tokens == len(reply.reasoning_ids)
    assert reply.usage.prompt_tokens == len(encode_chat(tokenizer, ChatTemplate.built_in(), QUESTION))


def test_a_backend_says_where_its_engine_computes(engine):
    assert EmbeddedBackend(engine, ChatTemplate.built_in()).device == "cpu"


def test_pieces_join_to_the_reply_of_the_engine(engine, tokenizer):
    params = ChatParams(max_tokens=60, seed=4, ignore_eos=True, logprobs=1)
    reply = ask(engine, params)
    prompt = encode_chat(tokenizer, ChatTemplate.built_in(), QUESTION)
    (output,) = engine.submit(prompt, SamplingParams(max_tokens=60, seed=4, ignore_eos=True)).result(30)
    assert (reply.reasoning, reply.content) == split_reasoning(output.text, opened=False)
    assert reply.finish_reason == "length"
    assert len(reply.logprobs) == 60
    assert len(reply.logprobs[0]["top_logprobs"]) == 1
    assert set(reply.logprobs[0]) == {"token", "logprob", "bytes", "top_logprobs"}


def test_a_reasoning_that_reaches_its_limit_is_closed_and_answered(tokenizer):
    thought = "12 and 30 and 12 and 30"
    said = f"<think>\n{thought}\n</think>\n\n42<|im_end|>"
    with reciting(tokenizer, said) as engine:
        limit = len(tokenizer.encode(f"<think>\n{thought}"))
        reply = ask(engine, ChatParams(max_tokens=limit, force_answer=8))
        cut = ask(engine, ChatParams(max_tokens=limit))
    assert (reply.reasoning, reply.content, reply.finish_reason) == (thought, "42", "stop")
    assert tokenizer.decode(reply.reasoning_ids) == thought
    assert tokenizer.decode(reply.content_ids) == "42"
    assert reply.usage.completion_tokens == limit + len(tokenizer.encode("42<|im_end|>"))
    assert (cut.reasoning, cut.content, cut.finish_reason) == (thought, "", "length")


def test_the_forced_answer_goes_on_from_the_kept_state(tokenizer):
    with reciting(tokenizer, "<think>\n" + "12 and 30 " * 40) as engine:
        computed = []
        executor = engine._worker.scheduler.executor
        step = executor.step
        executor.step = lambda batch: (computed.extend(len(chunk.ids) for chunk in batch.chunks), step(batch))[1]
        reply = ask(engine, ChatParams(max_tokens=50, force_answer=4))
    assert reply.usage.completion_tokens == 54
    assert sum(computed) == reply.usage.prompt_tokens + 1 + len(tokenizer.encode("\n</think>\n\n"))


def test_room_for_the_forced_answer_is_kept_in_the_context(tokenizer):
    with reciting(tokenizer, "<think>\n" + "12 and 30 " * 40, context=96) as engine:
        reply = ask(engine, ChatParams(force_answer=10))
    assert reply.finish_reason == "length"
    assert len(reply.content_ids) == 10


def test_a_reply_that_is_not_reasoning_uses_the_whole_limit_in_spite_of_the_room_kept(tokenizer):
    with reciting(tokenizer, "12 and 30 " * 40, context=96) as engine:
        reply = ask(engine, ChatParams(force_answer=10))
    assert reply.usage.prompt_tokens + reply.usage.completion_tokens == 96
    assert reply.reasoning == ""


TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}


def test_tool_calls_are_read_where_tools_are_given(tokenizer):
    call = render_tool_calls([{"name": "add", "arguments": {"a": 12, "b": 30}}])
    said = f"<think>\nadd\n</think>\n\nso{call}<|im_end|>"
    with reciting(tokenizer, said, tools=[TOOL], context=4096) as engine:
        reply = ask(engine, ChatParams(tools=(TOOL,), max_tokens=400))
    assert (reply.content, reply.finish_reason) == ("so", "tool_calls")
    (got,) = reply.tool_calls
    assert (got["name"], json.loads(got["arguments"])) == ("add", {"a": 12, "b": 30})
    assert got["id"]
    with reciting(tokenizer, said) as engine:
        reply = ask(engine, ChatParams(tools=(TOOL,), tool_choice="none", max_tokens=400))
    assert (reply.content, reply.finish_reason) == ("so" + call, "stop")


POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}, "side": {"enum": ["left", "right"]}},
    "required": ["x", "side"],
    "additionalProperties": False,
}
POINT_FORM = {"type": "json_schema", "json_schema": {"name": "point", "schema": POINT}}
MOVE = {"type": "function", "function": {"name": "move", "parameters": POINT}}


def is_point(value):
    return value.keys() == {"x", "side"} and 0 <= value["x"] <= 99 and value["side"] in ("left", "right")


@pytest.mark.parametrize("thinking", [True, False], ids=["may think", "answers at once"])
def test_a_reply_of_any_model_has_the_form_that_was_asked_for(engine, thinking):
    async def run():
        backend = await EmbeddedBackend.open(engine)
        params = [
            ChatParams(response_format=POINT_FORM, seed=seed, max_tokens=300, enable_thinking=thinking, temperature=2.0)
            for seed in range(12)
        ]
        return await asyncio.gather(*(collect(backend.chat(QUESTION, one)) for one in params))

    ended = [reply for reply in asyncio.run(run()) if reply.finish_reason == "stop"]
    assert ended
    assert all(is_point(json.loads(reply.content)) for reply in ended)


def test_a_reasoning_is_free_and_the_answer_behind_it_has_its_form(tokenizer):
    said = "<think>\n12 {and 30\n</think>\n\n" + '{"x": 42, "side": "left"}<|im_end|>'
    with reciting(tokenizer, said) as engine:
        reply = ask(engine, ChatParams(response_format=POINT_FORM, max_tokens=200, temperature=0))
    assert (reply.reasoning, reply.finish_reason) == ("12 {and 30", "stop")
    assert json.loads(reply.content) == {"x": 42, "side": "left"}


@pytest.mark.parametrize("limit", range(3, 40, 4))
def test_an_answer_that_is_forced_has_its_form_wherever_the_limit_falls(tokenizer, limit):
    said = "<think>\n12 and 30\n</think>\n\n" + '{"x": 42, "side": "left"}<|im_end|>'
    with reciting(tokenizer, said) as engine:
        reply = ask(
            engine, ChatParams(response_format=POINT_FORM, max_tokens=limit, force_answer=60, temperature=0), QUESTION
        )
    if reply.finish_reason == "stop":
        assert is_point(json.loads(reply.content))
    else:
        assert "12 and 30" in reply.reasoning


def test_a_reply_cut_short_for_an_answer_goes_on_in_its_form(tokenizer):
    said = '{"x": 42, "side": "left"}<|im_end|>'
    prompt = encode_chat(tokenizer, ChatTemplate.built_in(), QUESTION)
    room = len(tokenizer.encode(said)) + 12
    with reciting(tokenizer, said, context=len(prompt) + room) as engine:
        params = ChatParams(response_format=POINT_FORM, force_answer=room - 8, temperature=0)
        computed = []
        stream = engine.stream
        engine.stream = lambda ids, *rest, **options: (computed.append(len(ids)), stream(ids, *rest, **options))[1]
        reply = ask(engine, params)
    assert len(computed) == 2
    assert computed[1] > len(prompt)
    assert (json.loads(reply.content), reply.finish_reason) == ({"x": 42, "side": "left"}, "stop")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "move"}}], ids=str)
def test_a_tool_that_has_to_be_called_is_called(tokenizer, choice):
    tools = (MOVE, {"type": "function", "function": {"name": "rest"}})
    params = ChatParams(tools=tools, tool_choice=choice, max_tokens=300, temperature=2.0, enable_thinking=False)
    model = small_model(SMALL.with_(max_position_embeddings=2048))
    with Engine(model, tokenizer=tokenizer, memory="64MiB") as engine:
        replies = [ask(engine, replace(params, seed=seed)) for seed in range(4)]
    ended = [reply for reply in replies if reply.finish_reason != "length"]
    assert ended
    for reply in ended:
        assert reply.finish_reason == "tool_calls"
        assert not reply.content.strip()
        for call in reply.tool_calls:
            assert call["name"] == "move" or choice == "required"
            assert call["name"] == "rest" or is_point(json.loads(call["arguments"]))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (ChatParams(tool_choice="required"), "tool_choice is 'required' without tools"),
        (ChatParams(response_format={"type": "xml"}), "response_format is 'xml'"),
        (
            ChatParams(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}),
            "cannot be held to this form",
        ),
    ],
)
def test_forms_that_no_reply_can_be_held_to_are_refused_not_ignored(engine, params, message):
    with pytest.raises(BackendError, match=message) as refusal:
        ask(engine, params)
    assert refusal.value.status == 400


def test_a_conversation_beyond_the_context_is_refused_with_its_size(engine):
    with pytest.raises(BackendError, match="context is 512") as refusal:
        ask(engine, messages=[{"role": "user", "content": "a b c " * 500}])
    assert refusal.value.status == 400


def test_a_final_message_is_continued_where_it_is_asked_for(tokenizer):
    messages = [*QUESTION, {"role": "assistant", "content": "the answer"}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    with reciting(tokenizer, " is 42<|im_end|>", messages=messages, **options) as engine:
        reply = ask(engine, ChatParams(extra=options, max_tokens=20), messages)
    assert reply.content == " is 42"


def test_stop_strings_end_the_reply_before_them(tokenizer):
    with reciting(tokenizer, "<think>\na\n</think>\n\nthe answer is 42 and 43<|im_end|>") as engine:
        reply = ask(engine, ChatParams(stop=(" and",), max_tokens=100))
    assert (reply.content, reply.finish_reason) == ("the answer is 42", "stop")


def test_sixty_four_equal_chats_share_one_prefill(engine):
    engine.forget_prompts()
    params = ChatParams(max_tokens=6, ignore_eos=True)

    async def run():
        backend = await EmbeddedBackend.open(engine)
        return await asyncio.gather(*(collect(backend.chat(QUESTION, params)) for _ in range(64)))

    usages = [reply.usage for reply in asyncio.run(run())]
    assert sorted(usage.cached_tokens for usage in usages) == [0] + [usages[0].prompt_tokens] * 63


def test_closing_or_cancelling_a_reader_frees_its_state_at_once(engine):
    endless = ChatParams(ignore_eos=True)

    async def run():
        backend = await EmbeddedBackend.open(engine)
        async with aclosing(backend.chat(QUESTION, endless)) as reply:
            await anext(reply)
        task = asyncio.ensure_future(collect(backend.chat(QUESTION, endless)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    engine.forget_prompts()
    pool = engine._worker.scheduler.pool
    assert pool.free_pages == pool.pages


def test_complete_goes_on_with_text_or_ids(engine, tokenizer):
    params = SamplingParams(max_tokens=12, seed=2, ignore_eos=True)

    async def run():
        backend = await EmbeddedBackend.open(engine)
        by_text = await collect(backend.complete("the sum<|im_end|>", params))
        by_ids = await collect(backend.complete(tokenizer.encode("the sum<|im_end|>"), params))
        return by_text, by_ids

    by_text, by_ids = asyncio.run(run())
    assert by_text.content == by_ids.content
    assert by_text.content_ids == by_ids.content_ids
    assert len(by_ids.content_ids) == 12
    assert by_ids.usage.completion_tokens == 12


def test_counting_encoding_and_decoding_are_exact_and_make_no_control_tokens(engine):
    async def run():
        backend = await EmbeddedBackend.open(engine)
        text = "12 and <|im_end|> \u2713"
        ids = await backend.encode(text)
        return await backend.count(text), ids, await backend.decode(ids), text

    count, ids, decoded, text = asyncio.run(run())
    assert (count, decoded) == (len(ids), text)
    assert engine.tokenizer.control_ids.isdisjoint(ids)


def test_weights_are_swapped_from_a_folder(folder, tokenizer, tmp_path):
    small_tokenizer(tmp_path)
    save_model(small_model(seed=7), tmp_path)

    async def say(source, swapped=None):
        backend = await EmbeddedBackend.open(source, memory="64MiB")
        if swapped:
            await backend.swap_weights(swapped)
        reply = await collect(backend.chat(QUESTION, ChatParams(max_tokens=20, seed=1, ignore_eos=True)))
        await backend.aclose()
        return reply.content + reply.reasoning

    async def run():
        return await say(folder), await say(tmp_path), await say(folder, swapped=tmp_path)

    old, new, swapped = asyncio.run(run())
    assert swapped == new != old
