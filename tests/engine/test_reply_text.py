from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_models import small_tokenizer
from openzaya.engine.text import ReplyText, StopStrings

SHORT = st.text(alphabet="ab\n", max_size=12)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def cut_by_definition(text, stops):
    """The text before the first stop to be completed, and that stop (the longest of several)."""
    for end in range(len(text) + 1):
        completed = [stop for stop in stops if text[:end].endswith(stop)]
        if completed:
            longest = max(completed, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(SHORT, max_size=8), STOPS)
def test_however_text_is_cut_into_pieces_it_ends_before_the_first_completed_stop(pieces, stops):
    reader = StopStrings(stops)
    shown = "".join(map(reader.feed, pieces)) + reader.flush()
    assert (shown, reader.found) == cut_by_definition("".join(pieces), stops)


@given(st.lists(SHORT, max_size=8), STOPS)
def test_only_what_could_begin_a_stop_is_held_back(pieces, stops):
    reader = StopStrings(stops)
    shown = fed = ""
    for piece in pieces:
        shown += reader.feed(piece)
        fed += piece
        if reader.found is not None:
            return
        held = fed[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""])


@given(st.text(max_size=20))
def test_streamed_text_never_splits_a_character_and_joins_to_the_whole(tokenizer, text):
    reply = ReplyText(tokenizer)
    pieces = [reply.feed(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + reply.finish() == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_tokens_that_frame_turns_are_hidden_and_tags_are_shown(tokenizer):
    ids = tokenizer.encode("<|im_start|>a<think>b</think>c<|im_end|>")
    reply = ReplyText(tokenizer)
    assert "".join(map(reply.feed, ids)) + reply.finish() == "a<think>b</think>c"


def test_half_a_character_at_the_end_becomes_a_replacement_character(tokenizer):
    reply = ReplyText(tokenizer)
    ids = tokenizer.encode("\U0001f600")
    assert "".join(map(reply.feed, ids[:-1])) == ""
    assert reply.finish() == "\ufffd"
