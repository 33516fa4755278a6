from __future__ import annotations

from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.chat import IncrementalDecoder, Piece, ReasoningSplitter, Tokenizer, render_reply, split_reasoning

FRAGMENTS = [
    "<think>",
    "</think>",
    "\n",
    "\n\n",
    " ",
    "a",
    "é",
    "<",
    "</",
    "<thi",
    "nk>",
    "```",
    "🙂",
    "</think",
    "x < y",
]
replies = st.lists(st.sampled_from(FRAGMENTS), max_size=16).map("".join)
free_text = st.lists(st.sampled_from([piece for piece in FRAGMENTS if piece != "</think>"]), max_size=10).map("".join)


def _split_by_hand(text: str, opened: bool) -> tuple[str, str]:
    """The rule for a whole reply, written down once more."""
    before = ""
    if not opened:
        before, found, text = text.partition("<think>")
        if not found:
            return "", before
        before = before if before.strip() else ""
    reasoning, closed, content = text.removeprefix("\n").partition("</think>")
    if closed:
        reasoning = reasoning.removesuffix("\n")
        content = content.removeprefix("\n").removeprefix("\n")
    return reasoning, before + content


def _text(pieces: list[Piece], kind: str) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == kind)


def _in_chunks(text: str, cuts: list[int], splitter: ReasoningSplitter) -> list[Piece]:
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    pieces = [piece for start, end in pairwise(bounds) for piece in splitter.feed(text[start:end])]
    return pieces + splitter.finish()


@given(text=replies, cuts=st.lists(st.integers(0, 200), max_size=12), opened=st.booleans())
def test_chunks_split_like_the_whole_reply(text: str, cuts: list[int], opened: bool) -> None:
    pieces = _in_chunks(text, cuts, ReasoningSplitter(opened=opened))
    assert (_text(pieces, "reasoning"), _text(pieces, "content")) == _split_by_hand(text, opened)
    assert all(piece.text for piece in pieces)


@pytest.mark.parametrize(
    "text", ["<think>\nR\n</think>\n\nA", " \n<think>a<think>b\n\n</think>\nA <think>c</think>", "A</think>"]
)
def test_every_single_cut_gives_the_same_split(text: str) -> None:
    for cut in range(len(text) + 1):
        pieces = _in_chunks(text, [cut], ReasoningSplitter())
        assert (_text(pieces, "reasoning"), _text(pieces, "content")) == _split_by_hand(text, opened=False)


@given(reasoning=free_text, content=replies)
def test_the_written_form_splits_back_into_what_was_written(reasoning: str, content: str) -> None:
    if "</think>" in reasoning:  # pieces may spell a tag together
        return
    assert split_reasoning(render_reply(reasoning, content).removesuffix("<|im_end|>\n")) == (reasoning, content)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nR\n</think>\n\nA", "R", "A"),
        ("<think>\n</think>\n\nA", "", "A"),
        ("<think>a <think> b</think>c </think> d", "a <think> b", "c </think> d"),
        ("<think>R</think>A<think>again</think>", "R", "A<think>again</think>"),
        ("Hm. <think>R</think>A", "R", "Hm. A"),
        ("<think>\nnever closed\n", "never closed\n", ""),
        ("<think>R</think>\n\n\nA", "R", "\nA"),
        ("no thought at all", "", "no thought at all"),
        ("R\n</think>\n\nA", "R", "A"),
        ("", "", ""),
    ],
)
def test_whole_replies_split_as_the_rule_says(text: str, reasoning: str, content: str) -> None:
    assert split_reasoning(text) == (reasoning, content)


def test_text_is_given_out_as_soon_as_it_cannot_be_a_tag() -> None:
    splitter = ReasoningSplitter()
    assert splitter.feed("<think>\nfirst") == [Piece("reasoning", "first")]
    assert splitter.in_reasoning
    assert splitter.feed(" 1 <") == [Piece("reasoning", " 1 ")]
    assert splitter.feed(" 2\n") == [Piece("reasoning", "< 2")]
    assert splitter.feed("</think>\n") == []
    assert not splitter.in_reasoning
    assert splitter.feed("\nanswer") == [Piece("content", "answer")]


@pytest.mark.parametrize(
    ("prompt", "reply", "reasoning", "content"),
    [
        ("<|im_start|>assistant\n", "<think>\nR\n</think>\n\nA", "R", "A"),
        ("<|im_start|>assistant\n<think>\n", "R\n</think>\n\nA", "R", "A"),
        ("<|im_start|>assistant\n<think>", "\nR\n</think>\n\nA", "R", "A"),
        ("<|im_start|>assistant\n<think>\n", "\nR</think>A", "\nR", "A"),
        ("<|im_start|>assistant\n<think>\nso far\n", "</think>\n\nA", "", "A"),
        ("<|im_start|>assistant\nWell,", " <think>R</think>A", "R", " A"),
        ("<|im_start|>assistant\n<think>\n</think>\n\n", "\nA<think>", "", "\nA<think>"),
        ("<|im_start|>user\nwhat is <think>?<|im_end|>\n<|im_start|>assistant\n", "A", "", "A"),
        ("Another template: <think>\n", "R</think>A", "R", "A"),
        ("Another template about <think>, said", "A", "", "A"),
    ],
)
def test_a_reply_is_split_from_where_its_prompt_left_off(prompt: str, reply: str, reasoning: str, content: str) -> None:
    splitter = ReasoningSplitter.after_prompt(prompt)
    pieces = splitter.feed(reply) + splitter.finish()
    assert (_text(pieces, "reasoning"), _text(pieces, "content")) == (reasoning, content)


def _by_tokens(tokenizer: Tokenizer, ids: list[int], **tags: int | None) -> list[Piece]:
    decoder, splitter = IncrementalDecoder(tokenizer), ReasoningSplitter(**tags)  # type: ignore[arg-type]
    pieces = [piece for index in ids for piece in splitter.feed(decoder.feed(index), index)]
    return pieces + splitter.feed(decoder.flush()) + splitter.finish()


def _ids(pieces: list[Piece], kind: str) -> list[int]:
    return [index for piece in pieces if piece.kind == kind for index in piece.ids]


@given(reasoning=free_text, content=replies)
def test_ids_come_apart_without_tags_and_line_breaks_of_the_form(
    tokenizer: Tokenizer, reasoning: str, content: str
) -> None:
    parts = [tokenizer.encode(text, special=False) for text in (reasoning, content)]
    newline, thought = tokenizer.encode("\n"), tokenizer.encode("<think>")
    ids = [*thought, *newline, *parts[0], *newline, *tokenizer.encode("</think>"), *newline, *newline, *parts[1]]
    pieces = _by_tokens(tokenizer, ids, open_id=tokenizer.think_open_id, close_id=tokenizer.think_close_id)
    assert (_text(pieces, "reasoning"), _text(pieces, "content")) == (reasoning, content)
    assert (_ids(pieces, "reasoning"), _ids(pieces, "content")) == (parts[0], parts[1])


@given(data=st.data())
def test_every_token_is_reported_once_or_belongs_to_the_form(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(
        st.lists(st.one_of(st.sampled_from([5, 6]), st.integers(11, tokenizer.vocab_size - 1)), max_size=30)
    )
    pieces = _by_tokens(tokenizer, ids, open_id=5, close_id=6)
    reported = [index for piece in pieces for index in piece.ids]
    rest = iter(ids)
    assert all(index in rest for index in reported), "in their order"
    silent = list(ids)
    for index in reported:
        silent.remove(index)
    assert all(index in (5, 6) or not tokenizer.decode([index]).strip() for index in silent)


def test_a_spelled_tag_in_ordinary_tokens_is_text_where_the_vocabulary_has_tag_tokens(tokenizer: Tokenizer) -> None:
    mention = tokenizer.encode("say </think> aloud", special=False)
    ids = [5, *mention, 6, *tokenizer.encode("done", special=False)]
    pieces = _by_tokens(tokenizer, ids, open_id=5, close_id=6)
    assert (_text(pieces, "reasoning"), _text(pieces, "content")) == ("say </think> aloud", "done")
    assert _ids(pieces, "reasoning") == mention


def test_without_tag_tokens_the_tokens_of_a_spelled_tag_are_in_neither_part(tokenizer: Tokenizer) -> None:
    spelled = [tokenizer.encode(text, special=False) for text in ("<think>", "R", "</think>", "A")]
    pieces = _by_tokens(tokenizer, list(chain.from_iterable(spelled)))
    assert (_ids(pieces, "reasoning"), _ids(pieces, "content")) == (spelled[1], spelled[3])


def test_a_token_cut_short_by_a_tag_stays_with_the_reasoning(tokenizer: Tokenizer) -> None:
    half = tokenizer.id_of("ð") or 0  # F0, the first byte of four
    pieces = _by_tokens(tokenizer, [5, half, 6, half], open_id=5, close_id=6)
    assert pieces == [Piece("reasoning", "\ufffd", (half,)), Piece("content", "\ufffd", (half,))]


def test_tag_tokens_decoded_to_nothing_still_switch(tokenizer: Tokenizer) -> None:
    splitter = ReasoningSplitter(open_id=5, close_id=6)
    fed = [("", 5), ("\n", 20), ("R", 21), ("", 6), ("A", 22)]
    pieces = [piece for text, index in fed for piece in splitter.feed(text, index)] + splitter.finish()
    assert pieces == [Piece("reasoning", "R", (21,)), Piece("content", "A", (22,))]


def test_a_token_that_holds_text_and_a_dropped_line_break_is_reported_with_its_text() -> None:
    splitter = ReasoningSplitter(open_id=5, close_id=6)
    fed = [("<think>", 5), ("\n\n", 20), ("R.\n", 21), ("</think>", 6), ("\n\n", 20), ("A", 22)]
    pieces = [piece for text, index in fed for piece in splitter.feed(text, index)] + splitter.finish()
    assert (_text(pieces, "reasoning"), _ids(pieces, "reasoning")) == ("\nR.", [20, 21])
    assert (_text(pieces, "content"), _ids(pieces, "content")) == ("A", [22])


def test_one_tag_id_without_the_other_is_refused() -> None:
    with pytest.raises(ValueError, match="give both or neither"):
        ReasoningSplitter(open_id=5)
