"""A whole reply from its pieces: what it holds, and what putting it together costs."""

from __future__ import annotations

from openzaya.backends.protocol import Delta, Reply, ToolCallDelta, Usage


def test_pieces_make_the_whole() -> None:
    reply = Reply()
    calls = (ToolCallDelta(index=1, id="b", name="mul", arguments='{"a"'), ToolCallDelta(index=0, name="add"))
    for delta in (
        Delta(reasoning="so ", reasoning_ids=(1,)),
        Delta(reasoning="\ud83d", content="It is\r\n", content_ids=(2, 3), tool_calls=calls),
        Delta(content="42", tool_calls=(ToolCallDelta(index=1, arguments=": 1}"),)),
        Delta(finish_reason="stop", usage=Usage(completion_tokens=3)),
    ):
        reply.add(delta)
    assert (reply.reasoning, reply.content) == ("so \ud83d", "It is\r\n42")
    assert (reply.reasoning_ids, reply.content_ids) == ([1], [2, 3])
    assert reply.tool_calls == [
        {"id": None, "name": "add", "arguments": ""},
        {"id": "b", "name": "mul", "arguments": '{"a": 1}'},
    ]
    assert (reply.finish_reason, reply.usage) == ("stop", Usage(completion_tokens=3))


def test_putting_a_reply_together_copies_no_text_again_and_again() -> None:
    copied = 0

    class Counting(str):
        """Text that counts what is copied when it is joined to what was there before."""

        def __radd__(self, before: str) -> str:
            nonlocal copied
            copied += len(before)
            return str.__add__(before, str(self))

    piece = Counting("word ")
    assert "12345" + piece == "12345word "
    assert copied == 5
    reply = Reply()
    for _ in range(1000):
        reply.add(Delta(reasoning=piece, content=piece, tool_calls=(ToolCallDelta(index=0, arguments=piece),)))
    assert len(reply.reasoning) == len(reply.content) == len(reply.tool_calls[0]["arguments"]) == 5000
    assert copied == 5
