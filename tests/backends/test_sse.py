"""Events from bytes, in any cutting."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.backends.sse import Event, EventReader, MalformedStreamError


def read(data: bytes, cuts: list[int]) -> list[Event]:
    reader = EventReader()
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    events = [event for a, b in pairwise(places) for event in reader.feed(data[a:b])]
    return [*events, *reader.finish()]


@given(
    texts=st.lists(
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1), max_size=5
    ),
    cuts=st.lists(st.integers(0, 10_000), max_size=20),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_events_are_the_same_however_the_network_cut_them(texts: list[str], cuts: list[int], ending: str) -> None:
    data = "".join(f": ping{ending}{ending}data: {text}{ending}{ending}" for text in texts).encode()
    assert read(data, cuts) == [Event("message", text) for text in texts]


def test_several_data_lines_are_one_event_and_names_belong_to_one_event_only() -> None:
    data = b"event: note\ndata: a\ndata: b\n\ndata: c\n\n"
    assert read(data, []) == [Event("note", "a\nb"), Event("message", "c")]


def test_a_last_event_without_its_blank_line_is_not_lost() -> None:
    assert read(b"data: [DONE]", []) == [Event("message", "[DONE]")]


def test_llama_cpps_error_field_is_an_error_event() -> None:
    assert read(b'error: {"message": "x"}\n\n', []) == [Event("error", '{"message": "x"}')]


@pytest.mark.parametrize("end", [b"", b"\n\n"])
def test_a_line_longer_than_the_bound_is_refused_with_or_without_its_end(end: bytes) -> None:
    with pytest.raises(MalformedStreamError, match="longer than 100 bytes"):
        EventReader(max_line=100).feed(b"data: " + b"x" * 100 + end)


def test_a_stream_longer_than_the_bound_is_refused_though_every_line_is_short() -> None:
    reader = EventReader(max_total=100)
    for _ in range(12):
        reader.feed(b": ping\n\n")
    with pytest.raises(MalformedStreamError, match="longer than 100 bytes"):
        reader.feed(b": ping\n\n")


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(MalformedStreamError, match="not UTF-8"):
        EventReader().feed(b"data: \xff\n")
