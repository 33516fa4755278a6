"""Server-sent events from the bytes of a response, however the network cut them."""

from __future__ import annotations

from dataclasses import dataclass


class MalformedStreamError(ValueError):
    """The bytes are no event stream that can be read safely."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its name ("message" unless the server named it) and its data."""

    name: str
    data: str


class EventReader:
    """Turns bytes into events, in any cutting, with at most `max_line` bytes a line and `max_total` bytes in all.

    Comment lines, which servers send to keep a connection alive, are skipped. llama.cpp reports failures in a field
    named `error` instead of an event of that name; both come out as an `Event` named "error".
    """

    def __init__(self, max_line: int = 16 << 20, max_total: int = 512 << 20) -> None:
        self._max_line = max_line
        self._max_total = max_total
        self._total = 0
        self._rest = bytearray()
        self._name = "message"
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        """Read more bytes; raises MalformedStreamError when they exceed a bound or are not UTF-8."""
        self._total += len(data)
        if self._total > self._max_total:
            raise MalformedStreamError(f"the reply is longer than {self._max_total} bytes")
        searched = len(self._rest)
        self._rest += data
        events: list[Event] = []
        start = 0
        while (end := self._rest.find(b"\n", max(start, searched))) >= 0:
            if end - start > self._max_line:
                break
            self._read_line(bytes(self._rest[start:end]), events)
            start = end + 1
        del self._rest[:start]
        if len(self._rest) > self._max_line:
            raise MalformedStreamError(f"a line of the reply is longer than {self._max_line} bytes")
        return events

    def finish(self) -> list[Event]:
        """The event that the end of the stream left without its closing blank line, if any."""
        events: list[Event] = []
        if self._rest:
            self._read_line(bytes(self._rest), events)
            self._rest.clear()
        self._read_line(b"", events)
        return events

    def _read_line(self, line: bytes, events: list[Event]) -> None:
        try:
            text = line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedStreamError("a line of the reply is not UTF-8") from None
        if not text:
            if self._data:
                events.append(Event(self._name, "\n".join(self._data)))
            self._name, self._data = "message", []
            return
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        elif name == "error":
            events.append(Event("error", value))
