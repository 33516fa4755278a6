"""The journal: every finished rollout of a run, as it finishes.

It is what a run resumes from without repeating a rollout, what it can be replayed from without a backend, and raw data
to publish. There is one schema: a header, then a record a rollout, then how the run ended. `JournalSink` is where it is
kept; `JsonLinesSink` keeps it in a file with one JSON object a line.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from openzaya.backends.protocol import Message
from openzaya.mrsa.candidate import Candidate
from openzaya.mrsa.config import BUDGETS

VERSION = 1

Fsync = Literal["record", "end", "never"]


class JournalError(ValueError):
    """A journal that cannot be used for this run, said in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the run was asked; a journal serves only a run with the same question and the same settings."""

    question_hash: str
    config_hash: str
    model: str | None
    messages: Sequence[Message]
    config: Mapping[str, Any]
    task: str
    controls: Mapping[str, Any] = field(default_factory=dict)
    """What else shaped the run: the wordings, the source of the tails, the demands of a final call."""
    version: int = VERSION

    def check(self, wanted: Header, where: str) -> None:
        """Raise JournalError unless a run with the header `wanted` may go on from this journal."""
        if self.question_hash != wanted.question_hash:
            raise JournalError(
                f"the journal {where} answers another question; name the one of this question or start anew"
            )
        if self.config_hash != wanted.config_hash:
            differ = [key for key, value in self.config.items() if wanted.config.get(key) != value]
            what = ", ".join(key for key in differ if key not in BUDGETS) or "prompts or controls"
            raise JournalError(
                f"the journal {where} was written under other settings ({what}); resume with the same ones"
            )
        if None not in (self.model, wanted.model) and self.model != wanted.model:
            raise JournalError(f"the journal {where} was written by the model {self.model!r}, not {wanted.model!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a run ended; `seconds` is its whole time."""

    finish_reason: str
    seconds: float


Entry = Header | Candidate | End


@dataclass(frozen=True, slots=True)
class Journal:
    """The content of a journal."""

    header: Header
    attempts: tuple[Candidate, ...]
    """Every record in order; a place that was run again occurs more than once."""
    end: End | None
    """How the run ended, where nothing was written after that."""

    def latest(self) -> dict[tuple[int, int], Candidate]:
        """The last record of each place."""
        return {(candidate.round, candidate.index): candidate for candidate in self.attempts}


class JournalSink(Protocol):
    """Where a journal is kept. `write` returns only when the entry would survive the death of the process."""

    name: str
    """For messages and `Solution.journal`."""

    async def read(self) -> Journal | None:
        """What is kept so far, or None; raises JournalError where it cannot be understood."""
        ...

    async def write(self, entry: Entry) -> None: ...

    async def aclose(self) -> None: ...


def hash_of(value: Any) -> str:
    """SHA-256 of a value as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


class JsonLinesSink:
    """A journal in a file. Each entry is one line, appended by a single write; a torn last line is dropped on reading.

    `fsync="record"` also survives a loss of power, at some milliseconds a rollout; "end" pays that only once.
    """

    def __init__(self, path: str | Path, *, fsync: Fsync = "record") -> None:
        self.name = str(path)
        self._path = Path(path)
        self._fsync = fsync
        self._descriptor: int | None = None

    async def read(self) -> Journal | None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JournalError(f"cannot read the journal {self.name}: {error.strerror}") from error
        lines = _whole_lines(data)
        return assemble([_parse(line, number, self.name) for number, line in enumerate(lines, 1)], self.name)

    async def write(self, entry: Entry) -> None:
        if self._descriptor is None:
            self._descriptor = self._open()
        line = json.dumps(record_of(entry), ensure_ascii=False) + "\n"
        _write_all(self._descriptor, line.encode("utf-8", errors="surrogatepass"))
        if self._fsync == "record" or (self._fsync == "end" and isinstance(entry, End)):
            os.fsync(self._descriptor)

    async def aclose(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise JournalError(f"cannot write the journal {self.name}: {error.strerror}") from error
        data = self._path.read_bytes()
        kept = sum(len(line) + 1 for line in _whole_lines(data))
        if kept < len(data):
            os.ftruncate(descriptor, kept)
        return descriptor


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _whole_lines(data: bytes) -> list[bytes]:
    """The lines that end in a line break: a line without one was torn by the death of its writer."""
    return data.split(b"\n")[:-1]


def _parse(line: bytes, number: int, where: str) -> Entry:
    try:
        return entry_of(json.loads(line.decode("utf-8", errors="surrogatepass")), where)
    except JournalError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise JournalError(
            f"line {number} of {where} is no record of a journal; the file is damaged or another's"
        ) from error


def record_of(entry: Entry) -> dict[str, Any]:
    """An entry as every sink keeps it: plain values, with `kind` first."""
    kind = {Header: "header", Candidate: "rollout", End: "end"}[type(entry)]
    return {"kind": kind, **(entry.as_json() if isinstance(entry, Candidate) else asdict(entry))}


def entry_of(record: Mapping[str, Any], where: str) -> Entry:
    """The inverse of `record_of`; raises JournalError for another version, TypeError or KeyError for other values."""
    values = {name: value for name, value in record.items() if name != "kind"}
    kind = record["kind"]
    if kind == "rollout":
        return Candidate.from_json(values)
    if kind == "end":
        return End(**values)
    if kind == "header":
        if values["version"] != VERSION:
            raise JournalError(f"the journal {where} has version {values['version']}; this program reads {VERSION}")
        return Header(**values)
    raise KeyError(kind)


def assemble(entries: Sequence[Entry], where: str) -> Journal | None:
    """A journal from its entries in order; raises JournalError where they are not those of one run."""
    if not entries:
        return None
    header = entries[0]
    if not isinstance(header, Header) or any(isinstance(entry, Header) for entry in entries[1:]):
        raise JournalError(f"{where} is no journal of one run: it must begin with its only header")
    last = entries[-1]
    attempts = tuple(entry for entry in entries if isinstance(entry, Candidate))
    return Journal(header, attempts, last if isinstance(last, End) else None)
