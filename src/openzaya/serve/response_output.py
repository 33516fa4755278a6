"""The output of a response while it grows: its items, and OpenAI's events that say how they come about."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from openzaya.backends.protocol import ToolCallDelta
from openzaya.serve.conversation import Choice, Piece, Progress

Event = dict[str, Any]
Item = dict[str, Any]


class Output:
    """One item is open at a time: reasoning, then the message, then the function calls.

    How the rounds go is the summary of the reasoning; the text of the reasoning is the final call's own.
    """

    def __init__(self, first_index: int = 0) -> None:
        """`first_index` is the place of the next item in the stream."""
        self.items: list[Item] = []
        self._index = first_index - 1
        self._open: Item | None = None
        self._text: list[str] = []
        self._part: str | None = None
        self._call = -1

    # ---- what it is told

    def progress(self, update: Progress) -> list[Event]:
        """A line about the rounds."""
        events = self._enter("reasoning") + self._enter_part("summary_text")
        self._text.append(update.text + "\n")
        where = {**self._where(), "summary_index": 0}
        return [*events, {"type": "response.reasoning_summary_text.delta", **where, "delta": update.text + "\n"}]

    def piece(self, piece: Piece) -> list[Event]:
        """A piece of the reply itself."""
        events: list[Event] = []
        if piece.reasoning:
            events += self._enter("reasoning") + self._enter_part("reasoning_text")
            events.append(self._delta("response.reasoning_text.delta", piece.reasoning))
        if piece.content:
            events += self._enter("message") + self._enter_part("output_text")
            events.append({**self._delta("response.output_text.delta", piece.content), "logprobs": []})
        for call in piece.tool_calls:
            events += self._tool_call(call)
        return events

    def end(self, choice: Choice) -> list[Event]:
        """What has not been told yet of the whole reply, and the end of the last item.

        Where the reply is not what the stream began with (the final call broke off, and the largest group answers in
        its place), the item that was begun stays incomplete in the stream and is no part of the output.
        """
        events: list[Event] = []
        if choice.final_failed is not None:
            events += self.break_off()
        if not any(item["type"] in ("message", "function_call") for item in self.items):
            calls = tuple(
                ToolCallDelta(index=place, id=call["id"], name=call["name"], arguments=call["arguments"])
                for place, call in enumerate(choice.tool_calls)
            )
            events += self.piece(Piece(choice=0, content=choice.content, tool_calls=calls))
        if not any(item["type"] in ("message", "function_call") for item in self.items):
            events += self._enter("message") + self._enter_part("output_text")
        return events + self._close("completed" if choice.finish_reason != "length" else "incomplete")

    def break_off(self) -> list[Event]:
        """End the open item where it is; what was written of a reply is taken out of the output."""
        events = self._close("incomplete")
        self.items = [item for item in self.items if item["status"] == "completed" and item["type"] == "reasoning"]
        return events

    # ---- one item at a time

    def _enter(self, kind: str) -> list[Event]:
        if self._open is not None and self._open["type"] == kind:
            return []
        events = self._close("completed")
        head = {"id": f"{_PREFIXES[kind]}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress"}
        if kind == "reasoning":
            item = {**head, "summary": []}
        elif kind == "message":
            item = {**head, "role": "assistant", "content": []}
        else:
            item = {**head, "call_id": "", "name": "", "arguments": ""}
        self._index += 1
        self._open = item
        self.items.append(item)
        if kind == "function_call":
            return events  # added once its name is known
        return [*events, self._added()]

    def _enter_part(self, kind: str) -> list[Event]:
        if self._part == kind:
            return []
        events = self._close_part()
        self._part = kind
        if kind == "summary_text":
            part = {"type": kind, "text": ""}
            where = {**self._where(), "summary_index": 0}
            return [*events, {"type": "response.reasoning_summary_part.added", **where, "part": part}]
        return [
            *events,
            {"type": "response.content_part.added", **self._where(), "content_index": 0, "part": _part(kind, "")},
        ]

    def _delta(self, kind: str, text: str) -> Event:
        self._text.append(text)
        return {"type": kind, **self._where(), "content_index": 0, "delta": text}

    def _tool_call(self, call: ToolCallDelta) -> list[Event]:
        events: list[Event] = []
        if call.index != self._call:
            events += self._close("completed") + self._enter("function_call")
            self._call = call.index
            assert self._open is not None
            self._open |= {"call_id": call.id or f"call_{uuid.uuid4().hex}", "name": call.name or ""}
            events.append(self._added())
        if call.arguments:
            self._text.append(call.arguments)
            delta = {"type": "response.function_call_arguments.delta", **self._where(), "delta": call.arguments}
            events.append(delta)
        return events

    def _close_part(self) -> list[Event]:
        if self._part is None or self._open is None:
            return []
        kind, text = self._part, "".join(self._text)
        self._part, self._text = None, []
        where: dict[str, Any] = self._where()
        if kind == "summary_text":
            part = {"type": kind, "text": text}
            self._open["summary"] = [part]
            where["summary_index"] = 0
            return [
                {"type": "response.reasoning_summary_text.done", **where, "text": text},
                {"type": "response.reasoning_summary_part.done", **where, "part": part},
            ]
        part = _part(kind, text)
        self._open["content"] = [part]
        where["content_index"] = 0
        done: Event = {"type": f"response.{kind}.done", **where, "text": text}
        if kind == "output_text":
            done["logprobs"] = []
        return [done, {"type": "response.content_part.done", **where, "part": part}]

    def _close(self, status: str) -> list[Event]:
        item = self._open
        if item is None:
            return []
        events = self._close_part()
        if item["type"] == "function_call":
            item["arguments"] = "".join(self._text)
            self._text = []
            done = {"name": item["name"], "arguments": item["arguments"]}
            events.append({"type": "response.function_call_arguments.done", **self._where(), **done})
        item["status"] = status
        self._open = None
        return [*events, {"type": "response.output_item.done", "output_index": self._index, "item": dict(item)}]

    def _added(self) -> Event:
        assert self._open is not None
        return {"type": "response.output_item.added", "output_index": self._index, "item": dict(self._open)}

    def _where(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": self._index}


def resumed(events: Sequence[Event]) -> tuple[Output, list[Event]]:
    """An output that goes on behind the events of a service that died, and the ends of what these left open."""
    left_open: dict[int, Item] = {}
    last = -1
    for event in events:
        if event["type"] == "response.output_item.added":
            last = max(last, event["output_index"])
            left_open[event["output_index"]] = event["item"]
        elif event["type"] == "response.output_item.done":
            left_open.pop(event["output_index"], None)
    ends = [
        {"type": "response.output_item.done", "output_index": index, "item": {**item, "status": "incomplete"}}
        for index, item in left_open.items()
    ]
    return Output(last + 1), ends


def _part(kind: str, text: str) -> dict[str, Any]:
    return {"type": kind, "text": text} | ({"annotations": [], "logprobs": []} if kind == "output_text" else {})


_PREFIXES = {"message": "msg", "function_call": "fc", "reasoning": "rs"}
