"""One run at work as its watchers see it: records as they come, and in between how far the writing is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from io import SEEK_END, StringIO
from typing import Any

from openzaya.mrsa import Solution, events
from openzaya.mrsa.journal import End, Entry, Journal, JournalSink
from openzaya.serve.run_records import Record, RecordWriter

_BETWEEN = 0.1
"""Seconds between two looks of a watcher: what happens in between is told together, however much it is."""


class RunFeed:
    """The recorder of one run, and what any number of watchers are told of it, from any record on."""

    def __init__(self, sink: JournalSink) -> None:
        self._sink = sink
        self._writer = RecordWriter(whole=False)
        self._records: list[Record] = []
        self._closed = False
        self._end: End | None = None
        self._writing: dict[tuple[int, int], int] = {}
        self._text = StringIO()
        self._characters = 0
        self._reasoning_characters = 0
        self._changed = asyncio.Event()

    # ---- what the run tells

    @property
    def sink(self) -> JournalSink:
        """The sink to run with: what it keeps is told as well."""
        return _Told(self._sink, self._on_entry)

    def on_event(self, event: events.Event) -> None:
        """Take one event of the run."""
        match event:
            case events.CandidateStarted():
                self.on_started(event.round, event.index)
            case events.CandidateProgress():
                self._writing[event.round, event.index] = event.tokens
                self._change()
            case events.FinalDelta():
                self.on_text(event.text, event.reasoning)

    def on_started(self, round: int, index: int) -> None:
        """Take that a candidate begins to be written."""
        self._writing[round, index] = 0
        self._change()

    def on_text(self, text: str, reasoning: str = "") -> None:
        """Take a piece of the reply as it is written."""
        self._text.seek(0, SEEK_END)
        self._text.write(text)
        self._characters += len(text)
        self._reasoning_characters += len(reasoning)
        self._change()

    def on_solution(self, solution: Solution) -> None:
        """Take what the run came to."""
        assert self._end is not None
        self.close(self._writer.record(self._end, solution))

    def close(self, record: Record | None = None) -> None:
        """Take the last record; of several only the first counts. Without one the run is not over, only this feed."""
        if not self._closed:
            self._closed = True
            self._records += [] if record is None else [record]
            self._change()

    def _on_entry(self, entry: Entry) -> None:
        if isinstance(entry, End):
            self._end = entry  # its record needs the solution, which comes next
            return
        record = self._writer.record(entry)
        if record["kind"] == "rollout":
            self._writing.pop((record["round"], record["index"]), None)
        self._records.append(record)
        self._change()

    # ---- what a watcher is told

    async def watch(self, seen: int = 0) -> AsyncIterator[tuple[int, Record]]:
        """(records told so far, a record) from record `seen` on, until the last.

        Between them come records of the kind `now`: who writes and how far, and the reply's text from `from` on. They
        carry no number of their own, and a new watcher gets all that they would have said in its first one.
        """
        said = 0
        before: Any = None
        while True:
            changed = self._changed
            # What comes while a record is being sent is told too, before the watcher may leave.
            while seen < len(self._records):
                seen += 1
                yield seen, self._records[seen - 1]
            if self._closed:
                return
            now = self._now(said)
            if (now["writing"], self._reasoning_characters, self._characters) != before:
                before = now["writing"], self._reasoning_characters, self._characters
                said = self._characters
                yield seen, now
            await changed.wait()
            await asyncio.sleep(_BETWEEN)

    def _now(self, said: int) -> Record:
        self._text.seek(said)
        return {
            "kind": "now",
            "writing": [[round, index, tokens] for (round, index), tokens in self._writing.items()],
            "from": said,
            "text": self._text.read(),
            "reasoning_characters": self._reasoning_characters,
        }

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _Told:
    """A sink that passes on what it keeps, once it is kept."""

    def __init__(self, sink: JournalSink, tell: Callable[[Entry], None]) -> None:
        self.name = sink.name
        self._sink = sink
        self._tell = tell

    async def read(self) -> Journal | None:
        journal = await self._sink.read()
        if journal is not None:  # a run that goes on: what it has kept before
            self._tell(journal.header)
            for attempt in journal.attempts:
                self._tell(attempt)
            if journal.end is not None:
                self._tell(journal.end)
        return journal

    async def write(self, entry: Entry) -> None:
        await self._sink.write(entry)
        self._tell(entry)

    async def aclose(self) -> None:
        await self._sink.aclose()
