"""Reasoning apart from content, and token ids beside their text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_openai import WordTokenizer
from openzaya.backends.chunks import Chunk
from openzaya.backends.failures import UpstreamFailure
from openzaya.backends.protocol import Delta, Reply, Usage
from openzaya.backends.reply_stream import ReplyReader
from openzaya.backends.upstreams import ThinkingStart, Upstream, parse_base_url

WORDS = WordTokenizer()
OPEN, CLOSE = WORDS.encode("<think>")[0], WORDS.encode("</think>")[0]


def upstream_that(thinking: ThinkingStart = ThinkingStart.UNKNOWN, *, knows_tags: bool = True) -> Upstream:
    upstream = Upstream(parse_base_url("http://host"), thinking=thinking)
    upstream.think_ids = (OPEN, CLOSE) if knows_tags else (None, None)
    return upstream


def tokens_of(text: str, group: int = 1) -> list[Chunk]:
    """`text` as a server without a reasoning parser streams it, `group` tokens a chunk, its end token last."""
    ids = [*WORDS.encode(text), WORDS.end_id]
    texts = [*WORDS.texts(ids[:-1]), ""]
    starts = range(0, len(ids), group)
    return [
        Chunk(
            content="".join(texts[i : i + group]),
            ids=tuple(ids[i : i + group]),
            tokens=len(ids[i : i + group]),
            finish_reason="stop" if i + group >= len(ids) else None,
        )
        for i in starts
    ]


def read(chunks: list[Chunk], upstream: Upstream, **settings: bool) -> tuple[Reply, list[Delta]]:
    reader = ReplyReader(upstream, "http://host/v1/chat/completions", **settings)
    deltas = [delta for chunk in chunks for delta in reader.feed(chunk)] + reader.finish(complete=True)
    reply = Reply()
    for delta in deltas:
        reply.add(delta)
    return reply, deltas


TEXT = st.text(alphabet="ab \n1é😀<>/", max_size=30).map(lambda text: f"x{text}y")


@given(reasoning=TEXT, content=TEXT, start=st.sampled_from(ThinkingStart), group=st.integers(1, 4))
def test_tags_in_the_text_part_reasoning_from_content_with_the_ids_of_each(
    reasoning: str, content: str, start: ThinkingStart, group: int
) -> None:
    if start is ThinkingStart.SERVER:
        start = ThinkingStart.UNKNOWN
    reply, deltas = read(tokens_of(f"<think>{reasoning}</think>{content}", group), upstream_that(start))
    assert (reply.reasoning, reply.content) == (reasoning, content)
    assert WORDS.decode(reply.reasoning_ids) == reasoning
    assert WORDS.decode(reply.content_ids) == content
    assert sum(delta.tokens for delta in deltas) == len(WORDS.encode(f"<think>{reasoning}</think>{content}")) + 1


@given(reasoning=TEXT, content=TEXT, start=st.sampled_from([ThinkingStart.UNKNOWN, ThinkingStart.PROMPT]))
def test_a_closing_tag_alone_parts_a_reply_whose_prompt_opened_the_reasoning(
    reasoning: str, content: str, start: ThinkingStart
) -> None:
    upstream = upstream_that(start)
    reply, _ = read(tokens_of(f"{reasoning}</think>{content}"), upstream)
    assert (reply.reasoning, reply.content) == (reasoning, content)
    assert WORDS.decode(reply.reasoning_ids) == reasoning
    assert upstream.thinking is ThinkingStart.PROMPT


def test_while_the_start_is_unknown_text_waits_but_progress_does_not() -> None:
    upstream = upstream_that()
    reader = ReplyReader(upstream, "url")
    first = reader.feed(Chunk(content="so it is", tokens=1))
    assert first == [Delta(tokens=1)]
    released = reader.feed(Chunk(content="</think>4", tokens=1))
    assert "".join(delta.reasoning for delta in released) == "so it is"
    assert sum(delta.tokens for delta in released) == 1
    assert upstream.thinking is ThinkingStart.PROMPT
    [live] = ReplyReader(upstream, "url").feed(Chunk(content="again", tokens=1))
    assert live == Delta(reasoning="again", tokens=1)


def test_a_waiting_reply_goes_on_as_soon_as_another_one_shows_how_it_is() -> None:
    upstream = upstream_that()
    waiting = ReplyReader(upstream, "url")
    assert waiting.feed(Chunk(content="hello")) == []
    read([Chunk(content="done", finish_reason="stop")], upstream)
    assert upstream.thinking is ThinkingStart.MODEL
    assert "".join(delta.content for delta in waiting.feed(Chunk(content=" you"))) == "hello you"


def test_a_reply_without_marks_is_content_and_teaches_nothing_when_it_was_cut() -> None:
    upstream = upstream_that()
    reply, _ = read([Chunk(content="a b"), Chunk(content=" c", finish_reason="length")], upstream)
    assert (reply.content, reply.reasoning, reply.finish_reason) == ("a b c", "", "length")
    assert upstream.thinking is ThinkingStart.UNKNOWN


def test_with_thinking_off_nothing_waits() -> None:
    reader = ReplyReader(upstream_that(ThinkingStart.PROMPT), "url", thinking=False)
    [delta] = reader.feed(Chunk(content="at once"))
    assert delta.content == "at once"


def test_tags_in_the_content_of_a_server_that_separates_reasoning_are_text() -> None:
    upstream = upstream_that()
    reply, _ = read([Chunk(reasoning="hm"), Chunk(content="write <think>x</think>")], upstream)
    assert (reply.reasoning, reply.content) == ("hm", "write <think>x</think>")
    plain, _ = read([Chunk(content="no thought </think> here")], upstream)
    assert plain.content == "no thought </think> here"


@pytest.mark.parametrize("knows_tags", [True, False])
def test_ids_of_swallowed_tags_of_half_characters_and_of_the_end_belong_to_no_other_text(knows_tags: bool) -> None:
    chunks = [Chunk(ids=(OPEN,))]
    for field, text in (("reasoning", "a é b"), ("content", "ü")):
        ids = WORDS.encode(text)
        chunks += [Chunk(**{field: piece}, ids=(index,)) for index, piece in zip(ids, WORDS.texts(ids))]
        chunks += [Chunk(ids=(CLOSE,))] if field == "reasoning" else [Chunk(ids=(WORDS.end_id,), finish_reason="stop")]
    reply, deltas = read(chunks, upstream_that(knows_tags=knows_tags))
    assert WORDS.decode(reply.content_ids) == "ü"
    # Nothing tells an unknown opening tag from the first byte of a character; it stands before every tail.
    assert WORDS.decode(reply.reasoning_ids) == ("a é b" if knows_tags else "<think>a é b")
    for delta in deltas:
        if knows_tags and delta.reasoning_ids:
            assert WORDS.decode(delta.reasoning_ids) == delta.reasoning


def test_a_chunk_with_both_kinds_is_parted_at_the_closing_tag_or_has_no_ids() -> None:
    ids = (*WORDS.encode("x y"), CLOSE, *WORDS.encode("4"))
    chunk = Chunk(reasoning="x y", content="4", ids=ids)
    known, _ = read([chunk], upstream_that())
    assert (WORDS.decode(known.reasoning_ids), WORDS.decode(known.content_ids)) == ("x y", "4")
    unknown, _ = read([chunk], upstream_that(knows_tags=False))
    assert (unknown.reasoning_ids, unknown.content_ids) == ([], [])


def test_the_last_delta_carries_reason_and_usage_wherever_the_server_put_them() -> None:
    usage = Usage(prompt_tokens=3, completion_tokens=2)
    chunks = [Chunk(reasoning="a"), Chunk(finish_reason="length"), Chunk(usage=usage)]
    _, deltas = read(chunks, upstream_that())
    assert deltas[-1] == Delta(finish_reason="length", usage=usage)
    assert all(delta.finish_reason is None for delta in deltas[:-1])


def test_a_stream_that_ends_without_an_end_is_a_failure_and_one_announced_is_a_stop() -> None:
    broken = ReplyReader(upstream_that(), "url")
    broken.feed(Chunk(reasoning="a"))
    with pytest.raises(UpstreamFailure, match="in the middle of a reply") as caught:
        broken.finish(complete=False)
    assert caught.value.retry
    assert broken.finish(complete=True)[-1].finish_reason == "stop"
