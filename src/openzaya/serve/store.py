"""Where jobs are kept: what was asked, every finished rollout, the events of streams, and what came of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openzaya.mrsa.journal import Entry, Journal, JournalError, assemble, entry_of, record_of
from openzaya.serve.database import Database, Rows, StoreError

_VERSION = 1
_TABLES = (
    "CREATE TABLE IF NOT EXISTS store (version INTEGER NOT NULL)",
    """CREATE TABLE IF NOT EXISTS jobs (
        id TEXT PRIMARY KEY, kind TEXT NOT NULL, owner TEXT NOT NULL, status TEXT NOT NULL,
        background INTEGER NOT NULL, created DOUBLE PRECISION NOT NULL, expires DOUBLE PRECISION,
        fingerprint TEXT NOT NULL, idempotency TEXT, request TEXT NOT NULL, result TEXT)""",
    "CREATE UNIQUE INDEX IF NOT EXISTS jobs_idempotency ON jobs (owner, idempotency)",
    "CREATE INDEX IF NOT EXISTS jobs_fingerprint ON jobs (fingerprint)",
    "CREATE INDEX IF NOT EXISTS jobs_expires ON jobs (expires)",
    """CREATE TABLE IF NOT EXISTS records (
        job TEXT NOT NULL REFERENCES jobs (id), choice INTEGER NOT NULL, place INTEGER NOT NULL, record TEXT NOT NULL,
        PRIMARY KEY (job, choice, place))""",
    """CREATE TABLE IF NOT EXISTS events (
        job TEXT NOT NULL REFERENCES jobs (id), number INTEGER NOT NULL, event TEXT NOT NULL,
        PRIMARY KEY (job, number))""",
    """CREATE TABLE IF NOT EXISTS spending (
        owner TEXT NOT NULL, day TEXT NOT NULL, requests BIGINT NOT NULL, prompt_tokens BIGINT NOT NULL,
        cached_tokens BIGINT NOT NULL, completion_tokens BIGINT NOT NULL, cost DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (owner, day))""",
)
_COLUMNS = "id, kind, owner, status, background, created, expires, fingerprint, idempotency, request, result"

RUNNING = "running"
COMPLETED = "completed"
FAILED = "failed"
CANCELLED = "cancelled"
LEFT = "left"
"""Its client went away before the end; what had finished is kept, and a retry goes on from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request that was taken. `request` is what is needed to go on with it, `result` what came of it."""

    id: str
    kind: str
    owner: str
    """The name of the key, or nothing where none is asked for; nobody else sees the job."""
    request: Mapping[str, Any]
    fingerprint: str
    idempotency: str | None = None
    background: bool = False
    """It goes on without a client, and after a restart."""
    status: str = RUNNING
    created: float = 0.0
    """Seconds since the epoch, as `expires`."""
    expires: float | None = None
    result: Mapping[str, Any] | None = None


class Store:
    """The jobs of one service in a database. Every method raises StoreError where the database fails."""

    def __init__(self, place: str = ":memory:") -> None:
        """`place` as `Database` takes it."""
        self._database = Database(place, _TABLES)

    @property
    def place(self) -> str:
        """For people; without what a URL may hold of secrets."""
        place = self._database.place
        return place if "://" not in place else place.partition("://")[0] + "://…"

    async def open(self) -> None:
        """Raises StoreError where the store is in use, or was made by another version."""
        rows = await self._database.execute(("SELECT version FROM store", ()))
        if not rows:
            await self._database.execute(("INSERT INTO store (version) VALUES (?)", (_VERSION,)))
        elif rows[0][0] != _VERSION:
            raise StoreError(f"the store {self.place} has version {rows[0][0]}; this program uses {_VERSION}")

    async def aclose(self) -> None:
        await self._database.aclose()

    # ---- jobs

    async def create(self, job: Job) -> None:
        """Keep a new job, or one that begins again."""
        values = (
            job.id, job.kind, job.owner, job.status, int(job.background), job.created or time.time(), job.expires,
            job.fingerprint, job.idempotency, _text(job.request), None,
        )  # fmt: skip
        await self._database.execute(
            (
                f"INSERT INTO jobs ({_COLUMNS}) VALUES ({', '.join('?' * len(values))}) "
                "ON CONFLICT (id) DO UPDATE SET status = excluded.status, expires = NULL, result = NULL",
                values,
            )
        )

    def begin_ending(self, id: str, status: str, *, expires: float, result: Mapping[str, Any] | None = None) -> None:
        """As `end`, without waiting: for a task that is being cancelled."""
        self._database.post(*_ending(id, status, expires, result))

    async def end(self, id: str, status: str, *, expires: float, result: Mapping[str, Any] | None = None) -> None:
        """Keep how a job ended, until `expires` (seconds since the epoch)."""
        await self._database.execute(*_ending(id, status, expires, result))

    async def find(self, id: str) -> Job | None:
        """The job of this id, where it is kept."""
        return _first(await self._database.execute((f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (id,))))

    async def find_by_idempotency(self, owner: str, idempotency: str) -> Job | None:
        """The job that was sent with this Idempotency-Key."""
        where = f"SELECT {_COLUMNS} FROM jobs WHERE owner = ? AND idempotency = ?"
        return _first(await self._database.execute((where, (owner, idempotency))))

    async def find_left(self, fingerprint: str) -> Job | None:
        """The oldest job with this fingerprint whose client went away."""
        where = f"SELECT {_COLUMNS} FROM jobs WHERE fingerprint = ? AND status = ? ORDER BY created"
        return _first(await self._database.execute((where, (fingerprint, LEFT))))

    async def unfinished(self) -> list[Job]:
        """Jobs that were running when the last service ended, the oldest first."""
        where = f"SELECT {_COLUMNS} FROM jobs WHERE status = ? ORDER BY created"
        return [_job(row) for row in await self._database.execute((where, (RUNNING,)))]

    async def delete(self, id: str) -> None:
        """Forget a job and everything it wrote."""
        await self._database.execute(*_deleting("= ?", (id,)))

    async def expire(self, now: float) -> None:
        """Forget the jobs whose time has come."""
        await self._database.execute(*_deleting("IN (SELECT id FROM jobs WHERE expires <= ?)", (now,)))

    # ---- what jobs write

    def sink(self, job: str, choice: int = 0) -> SqlSink:
        """The journal of one choice of a job."""
        return SqlSink(self._database, job, choice)

    def add_events(self, job: str, first: int, events: Sequence[str]) -> asyncio.Future[Any]:
        """Keep the events of a stream from number `first` on; what is returned is done once they are."""
        statement = "INSERT INTO events (job, number, event) VALUES (?, ?, ?)"
        return self._database.post(*((statement, (job, first + i, event)) for i, event in enumerate(events)))

    async def events(self, job: str, first: int = 0) -> list[str]:
        """The kept events of a stream from number `first` on."""
        where = "SELECT event FROM events WHERE job = ? AND number >= ? ORDER BY number"
        return [row[0] for row in await self._database.execute((where, (job, first)))]

    # ---- what keys spend

    def count(self, owner: str, day: str, prompt: int, cached: int, completion: int, cost: float) -> None:
        """Add what one request cost to the account of a key."""
        columns = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost")
        sums = ", ".join(f"{column} = spending.{column} + excluded.{column}" for column in columns)
        self._database.post(
            (
                f"INSERT INTO spending (owner, day, {', '.join(columns)}) VALUES (?, ?, 1, ?, ?, ?, ?) "
                f"ON CONFLICT (owner, day) DO UPDATE SET {sums}",
                (owner, day, prompt, cached, completion, cost),
            )
        )

    async def spending(self, owner: str | None) -> list[dict[str, Any]]:
        """What a key has spent by day, or every key (None), the latest day first."""
        columns = ("owner", "day", "requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost")
        of_one = "" if owner is None else "WHERE owner = ? "
        select = f"SELECT {', '.join(columns)} FROM spending {of_one}ORDER BY day DESC, owner"
        rows = await self._database.execute((select, () if owner is None else (owner,)))
        return [dict(zip(columns, row, strict=True)) for row in rows]


class SqlSink:
    """A journal in the store: the same records as in a file, one row each."""

    def __init__(self, database: Database, job: str, choice: int) -> None:
        self.name = job if choice == 0 else f"{job}, choice {choice}"
        self._database = database
        self._key = (job, choice)
        self._next: int | None = None

    async def read(self) -> Journal | None:
        where = "SELECT record FROM records WHERE job = ? AND choice = ? ORDER BY place"
        rows = await self._database.execute((where, self._key))
        self._next = len(rows)
        try:
            return assemble([entry_of(json.loads(row[0]), self.name) for row in rows], self.name)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, JournalError):
                raise
            raise JournalError(f"the journal {self.name} holds something that is no record of a journal") from error

    async def write(self, entry: Entry) -> None:
        if self._next is None:
            where = "SELECT COUNT(*) FROM records WHERE job = ? AND choice = ?"
            kept = int((await self._database.execute((where, self._key)))[0][0])
            if self._next is None:  # else another write asked at the same time
                self._next = kept
        place, self._next = self._next, self._next + 1
        statement = "INSERT INTO records (job, choice, place, record) VALUES (?, ?, ?, ?)"
        await self._database.execute((statement, (*self._key, place, _text(record_of(entry)))))

    async def aclose(self) -> None:
        """Nothing: the database is the store's."""


def _ending(id: str, status: str, expires: float, result: Mapping[str, Any] | None) -> list[tuple[str, Sequence[Any]]]:
    text = None if result is None else _text(result)
    return [("UPDATE jobs SET status = ?, expires = ?, result = ? WHERE id = ?", (status, expires, text, id))]


def _deleting(which: str, values: Sequence[Any]) -> list[tuple[str, Sequence[Any]]]:
    tables = (("events", "job"), ("records", "job"), ("jobs", "id"))
    return [(f"DELETE FROM {table} WHERE {column} {which}", values) for table, column in tables]


def _text(values: Any) -> str:
    """JSON in ASCII: whatever a model writes, half a surrogate pair or a NUL, every database takes it."""
    return json.dumps(values, separators=(",", ":"))


def _first(rows: Rows) -> Job | None:
    return _job(rows[0]) if rows else None


def _job(row: Sequence[Any]) -> Job:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    result = values["result"]
    values |= {"request": json.loads(values["request"]), "result": None if result is None else json.loads(result)}
    return Job(**{**values, "background": bool(values["background"])})
