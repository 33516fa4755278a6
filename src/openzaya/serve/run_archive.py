"""Where the runs of the playground are kept for reopening: in the memory of the service, the latest ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from openzaya.mrsa.candidate import Candidate
from openzaya.mrsa.journal import End, Entry, Header, Journal, JournalError, JournalSink


class KeptRun(Protocol):
    """A run that can be reopened."""

    @property
    def owner(self) -> str | None:
        """The name of the key that started it; only this key may see it."""
        ...

    @property
    def journal(self) -> Journal | None: ...

    @property
    def closing(self) -> Mapping[str, Any] | None:
        """The record of how it ended where it has no result: `failed` or `stopped`."""
        ...


class RunArchive(Protocol):
    """What the playground asks of whatever keeps its runs."""

    async def open(self, run_id: str, owner: str | None) -> JournalSink:
        """Begin to keep a run; its journal goes to the sink."""
        ...

    async def close(self, run_id: str, closing: Mapping[str, Any] | None) -> None:
        """The run has ended: with a result (None), or as this record says."""
        ...

    async def find(self, run_id: str) -> KeptRun | None:
        """A kept run, or None where it is not known, or not any more."""
        ...


class MemoryArchive:
    """Keeps the latest ended runs, at most `most_runs` of at most `most_characters` together."""

    def __init__(self, most_runs: int = 200, most_characters: int = 200_000_000) -> None:
        self._most_runs = most_runs
        self._most_characters = most_characters
        self._open: dict[str, _Kept] = {}
        self._ended: OrderedDict[str, _Kept] = OrderedDict()

    async def open(self, run_id: str, owner: str | None) -> JournalSink:
        kept = self._open[run_id] = _Kept(owner, MemorySink(run_id))
        return kept.sink

    async def close(self, run_id: str, closing: Mapping[str, Any] | None) -> None:
        kept = self._open.pop(run_id)
        kept.closing = closing
        self._ended[run_id] = kept
        while len(self._ended) > 1 and (
            len(self._ended) > self._most_runs
            or sum(kept.sink.characters for kept in self._ended.values()) > self._most_characters
        ):
            self._ended.popitem(last=False)

    async def find(self, run_id: str) -> KeptRun | None:
        kept = self._open.get(run_id) or self._ended.get(run_id)
        return None if kept is None else _Found(kept.owner, await kept.sink.read(), kept.closing)


class MemorySink:
    """A journal in memory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.characters = 0
        """What it holds, about."""
        self._entries: list[Entry] = []

    async def read(self) -> Journal | None:
        if not self._entries:
            return None
        header, *others = self._entries
        if not isinstance(header, Header):
            raise JournalError(f"the journal {self.name} does not begin with a header")
        last = self._entries[-1]
        attempts = tuple(entry for entry in others if isinstance(entry, Candidate))
        return Journal(header, attempts, last if isinstance(last, End) else None)

    async def write(self, entry: Entry) -> None:
        self._entries.append(entry)
        if isinstance(entry, Candidate):
            self.characters += len(entry.reasoning) + len(entry.content)
            self.characters += len(entry.tail.text) if entry.tail is not None else 0

    async def aclose(self) -> None:
        """Nothing to close."""


@dataclass(slots=True)
class _Kept:
    owner: str | None
    sink: MemorySink
    closing: Mapping[str, Any] | None = field(default=None)


@dataclass(frozen=True, slots=True)
class _Found:
    owner: str | None
    journal: Journal | None
    closing: Mapping[str, Any] | None
