from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_backend import Script, ScriptedBackend, always

from openzaya.backends.protocol import BackendError, Reply, Usage
from openzaya.mrsa.config import make_config
from openzaya.mrsa.tails import Tail, TailCutter, tail_of


def settings(tau: int, **more: object):
    return make_config({"tau": tau, "beta": 100_000, **more})


def source(*, ids: bool = True, tokenize: bool = True) -> ScriptedBackend:
    return ScriptedBackend(always(Script()), ids=ids, tokenize=tokenize)


def cut(reply: Reply, tau: int, backend: ScriptedBackend | None = None, **more: object) -> Tail:
    return asyncio.run(tail_of(reply, settings(tau, **more), backend or source()))


def with_ids(reasoning: str = "", content: str = "", finish_reason: str = "stop") -> Reply:
    return Reply(
        reasoning=reasoning,
        content=content,
        reasoning_ids=list(reasoning.encode()),
        content_ids=list(content.encode()),
        finish_reason=finish_reason,
    )


class Words:
    """A tokenizer of whole words, as a caller might bring along."""

    def encode(self, text: str) -> list[int]:
        self.words = text.split(" ")
        return list(range(len(self.words)))

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[place] for place in ids)


@given(st.text(min_size=1, max_size=80), st.integers(1, 40))
def test_a_tail_is_exactly_the_last_tokens_of_the_reasoning_by_ids_and_by_tokenizing(text: str, tau: int) -> None:
    expected = text.encode()[-tau:].decode(errors="ignore")
    for backend in (source(), source(ids=False)):
        reply = with_ids(text, "answer") if backend.ids else Reply(reasoning=text, content="answer")
        if not text.strip():
            continue
        tail = cut(reply, tau, backend)
        assert tail.text == expected
        assert text.endswith(tail.text)
        assert tail.tokens == min(tau, len(text.encode()))
        assert tail.exactness == ("ids" if backend.ids else "tokenize")


def test_the_layout_of_a_tail_is_preserved_to_the_byte() -> None:
    code = "before\r\n\tif x:\n\t\treturn  {y}\n\n  \\frac{1}{2}  \n"
    assert cut(with_ids("x" * 50 + code), len(code)).text == code


def test_a_character_that_the_cut_splits_is_dropped() -> None:
    tail = cut(with_ids("aé€😀b"), 3)
    assert tail.text == "b"
    assert cut(with_ids("aé€😀b"), 5).text == "😀b"


def test_a_character_that_the_end_of_a_cut_stream_splits_is_dropped() -> None:
    reply = Reply(reasoning="thinking of ", reasoning_ids=with_ids("thinking of 😀").reasoning_ids[:-2])
    assert cut(reply, 6).text == " of "


def test_a_replacement_character_of_the_text_itself_stays() -> None:
    assert cut(with_ids("ab\ufffd\ufffdcd"), 8).text == "\ufffd\ufffdcd"


def test_a_reply_that_marks_no_reasoning_gives_the_tail_of_all_it_wrote() -> None:
    assert cut(with_ids(content="step one, step two"), 8).text == "step two"
    assert cut(with_ids(reasoning=" \n", content="step one, step two"), 8).text == "step two"


@pytest.mark.parametrize(
    ("kind", "finish_reason", "expected"),
    [
        ("reasoning", "stop", "think"),
        ("hybrid", "stop", "inish"),
        ("hybrid", "length", "think"),
        ("hybrid", "cut", "think"),
        ("whole", "stop", "inish"),
    ],
)
def test_the_kinds_of_tail(kind: str, finish_reason: str, expected: str) -> None:
    assert cut(with_ids("I think", "I finish", finish_reason), 5, tail=kind).text == expected


def test_a_whole_tail_reaches_back_from_the_answer_into_the_reasoning_within_tau_tokens() -> None:
    tail = cut(with_ids("I think", "4"), 7, tail="whole")
    assert tail.text == "think\n4"
    assert tail.tokens == 7
    assert cut(with_ids("I think"), 5, tail="whole").text == "think"


def test_where_ids_cannot_be_decoded_the_text_is_tokenized_and_then_a_local_tokenizer_asked() -> None:
    reply = Reply(reasoning="one two three four", finish_reason="stop")
    config = settings(2)
    nothing = source(ids=False, tokenize=False)
    assert asyncio.run(tail_of(reply, config, source(ids=False))).exactness == "tokenize"
    local = asyncio.run(tail_of(reply, config, nothing, tokenizer=Words()))
    assert local == Tail("three four", 2, "local")


def test_a_failing_tokenize_endpoint_costs_exactness_and_not_the_candidate() -> None:
    class Broken(ScriptedBackend):
        async def encode(self, text: str) -> list[int] | None:
            raise BackendError("no such endpoint", status=404)

    reply = Reply(reasoning="abcdefgh", usage=Usage(completion_tokens=4))
    assert cut(reply, 2, Broken(always(Script()))).exactness == "ratio"


def test_without_any_tokenizer_tau_is_converted_by_the_replys_own_characters_per_token() -> None:
    backend = source(ids=False, tokenize=False)
    reply = Reply(reasoning="x" * 300 + "y" * 60, content="z" * 40, usage=Usage(completion_tokens=100))
    tail = cut(reply, 15, backend)
    assert tail == Tail("y" * 60, 15, "ratio")
    short = cut(Reply(reasoning="abc", usage=Usage(completion_tokens=1)), 15, backend)
    assert short.text == "abc"


@pytest.mark.parametrize("piece", [1, 5, 50])
def test_the_ratio_never_depends_on_how_the_stream_was_chunked(piece: int) -> None:
    async def collected() -> Reply:
        from openzaya.backends.protocol import ChatParams, collect

        backend = ScriptedBackend(always(Script(reasoning="word " * 40, piece=piece)), ids=False, tokenize=False)
        return await collect(backend.chat([], ChatParams()))

    reply = asyncio.run(collected())
    assert cut(reply, 20, source(ids=False, tokenize=False)).text == "word " * 4


def test_a_cut_reply_without_usage_uses_its_counts_on_the_way_then_the_runs_ratio_then_bytes() -> None:
    cutter = TailCutter(settings(10), source(ids=False, tokenize=False))
    reply = Reply(reasoning="0123456789" * 10, finish_reason="cut")
    counted = asyncio.run(cutter.cut(reply, completion_tokens=50, characters_per_token=5.0))
    of_the_run = asyncio.run(cutter.cut(reply, characters_per_token=5.0))
    alone = asyncio.run(cutter.cut(reply))
    assert [len(tail.text) for tail in (counted, of_the_run, alone)] == [20, 50, 10]


@given(st.text(alphabet="ab\n ", min_size=1, max_size=60), st.integers(1, 30))
def test_a_boundary_cut_only_ever_shortens_a_tail_and_begins_a_line_where_it_does(text: str, tau: int) -> None:
    if not text.strip():
        return
    exact = cut(with_ids(text), tau)
    at_line = cut(with_ids(text), tau, cut="boundary")
    assert exact.text.endswith(at_line.text)
    assert at_line.usable == exact.usable
    assert at_line.tokens <= exact.tokens
    if at_line.text != exact.text:
        assert text[: len(text) - len(at_line.text)].endswith("\n")


def test_a_boundary_cut_advances_to_the_next_line() -> None:
    assert cut(with_ids("first line\nsecond line"), 15, cut="boundary").text == "second line"
    assert cut(with_ids("first line\nsecond line"), 11, cut="boundary").text == "second line"
    assert cut(with_ids("one long line only"), 9, cut="boundary").text == "line only"


def test_an_empty_tail_is_not_usable() -> None:
    assert not cut(Reply(), 5).usable
    assert not cut(with_ids(content=" \n\n "), 5).usable
    assert cut(with_ids(content="x"), 5).usable
