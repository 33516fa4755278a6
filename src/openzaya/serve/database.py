"""A SQL database in a thread of its own: SQLite in a file or in memory, or PostgreSQL by URL."""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from openzaya.locks import alone

_MOST_TOGETHER = 256
_LOCK_NUMBER = 0x6F7A6179
"""Of PostgreSQL's advisory lock: one service at a time uses a database."""

Statement = tuple[str, Sequence[Any]]
"""SQL with `?` for its values."""
Rows = list[tuple[Any, ...]]


class StoreError(RuntimeError):
    """The database cannot be used, said in one sentence."""


@dataclass(slots=True)
class _Task:
    statements: Sequence[Statement]
    done: asyncio.Future[Rows]


class Database:
    """Tasks of statements, each all or nothing; those that wait together are committed together, in their order.

    `place` is a file, ":memory:", or a URL that begins with `postgresql://`. A written task survives the death of the
    process at any moment. Only one process uses a database at a time; the lock ends with its process. With SQLite a
    loss of power may take the last moments with it, but never the file.
    """

    def __init__(self, place: str, tables: Sequence[str] = ()) -> None:
        """`tables` are the statements that make what is not there yet."""
        self.place = place
        kind = _Postgres if place.startswith(("postgres:", "postgresql:")) else _Sqlite
        self._driver: _Driver = kind(place, tables)
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failure: StoreError | None = None

    async def execute(self, *statements: Statement) -> Rows:
        """The rows of the last of these statements. Raises StoreError."""
        return await self._send(statements)

    def post(self, *statements: Statement) -> asyncio.Future[Rows]:
        """The same without waiting for it; a failure shows in what is executed next."""
        done = self._send(statements)
        done.add_done_callback(self._note_failure)
        return done

    async def aclose(self) -> None:
        """Write what was sent and close."""
        if self._thread is not None:
            self._tasks.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _send(self, statements: Sequence[Statement]) -> asyncio.Future[Rows]:
        done: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            done.set_exception(failure)
            return done
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="openzaya-store", daemon=True)
            self._thread.start()
        self._tasks.put(_Task(statements, done))
        return done

    def _note_failure(self, done: asyncio.Future[Rows]) -> None:
        error = None if done.cancelled() else done.exception()
        if isinstance(error, StoreError):
            self._failure = error

    # ---- in the thread

    def _work(self) -> None:
        open_for_more = True
        while open_for_more:
            tasks, open_for_more = self._together()
            for task, result in zip(tasks, self._perform(tasks), strict=True):
                loop = task.done.get_loop()
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_settle, task.done, result)
        self._driver.close()

    def _together(self) -> tuple[list[_Task], bool]:
        tasks: list[_Task] = []
        task = self._tasks.get()
        while task is not None:
            tasks.append(task)
            if len(tasks) == _MOST_TOGETHER or self._tasks.empty():
                return tasks, True
            task = self._tasks.get()
        return tasks, False

    def _perform(self, tasks: Sequence[_Task]) -> Sequence[Rows | StoreError]:
        try:
            return self._driver.transaction([task.statements for task in tasks])
        except StoreError as error:
            if len(tasks) == 1:
                return [error]
            return [result for task in tasks for result in self._perform([task])]


def _settle(done: asyncio.Future[Rows], result: Rows | StoreError) -> None:
    if done.cancelled():
        return
    if isinstance(result, StoreError):
        done.set_exception(result)
    else:
        done.set_result(result)


class _Driver(Protocol):
    def transaction(self, tasks: Sequence[Sequence[Statement]]) -> list[Rows]:
        """The rows of the last statement of each task, once all of them are kept. Raises StoreError."""
        ...

    def close(self) -> None: ...


class _Sqlite:
    def __init__(self, place: str, tables: Sequence[str]) -> None:
        self._place = place
        self._tables = tables
        self._open = ExitStack()
        self._connection: sqlite3.Connection | None = None

    def transaction(self, tasks: Sequence[Sequence[Statement]]) -> list[Rows]:
        try:
            connection = self._connection or self._connect()
            connection.execute("BEGIN IMMEDIATE")
            try:
                results = [[connection.execute(*one).fetchall() for one in task][-1] for task in tasks]
                connection.execute("COMMIT")
            except BaseException:
                connection.rollback()
                raise
            return results
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the store {self._place} cannot be used: {error}") from error

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._open.close()

    def _connect(self) -> sqlite3.Connection:
        if self._place != ":memory:":
            path = Path(self._place)
            path.parent.mkdir(parents=True, exist_ok=True)
            for one in (path, path.with_name(path.name + ".lock")):
                os.close(os.open(one, os.O_CREAT | os.O_RDWR, 0o600))  # it will hold what people asked
            self._open.enter_context(alone(path.with_name(path.name + ".lock"), on_wait=self._refuse))
        connection = sqlite3.connect(self._place, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA secure_delete=ON")
        for table in self._tables:
            connection.execute(table)
        self._connection = connection
        return connection

    def _refuse(self) -> None:
        raise StoreError(f"the store {self._place} is another service's; give this one a `store` of its own")


class _Postgres:
    def __init__(self, place: str, tables: Sequence[str]) -> None:
        self._tables = tables
        try:
            import psycopg
        except ImportError:
            raise StoreError("a PostgreSQL store needs psycopg: pip install 'openzaya[postgres]'") from None
        self._psycopg = psycopg
        self._place = place
        self._connection: psycopg.Connection[Any] | None = None

    def transaction(self, tasks: Sequence[Sequence[Statement]]) -> list[Rows]:
        errors = self._psycopg.Error
        try:
            return self._once(tasks)
        except errors as error:
            if self._connection is None or not self._connection.closed:
                raise StoreError(f"the PostgreSQL store refused: {_first_line(error)}") from error
        try:
            self._connection = None  # the server went away in between
            return self._once(tasks)
        except errors as error:
            self._connection = None
            raise StoreError(f"the PostgreSQL store cannot be reached: {_first_line(error)}") from error

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _once(self, tasks: Sequence[Sequence[Statement]]) -> list[Rows]:
        connection = self._connection or self._connect()
        with connection.transaction():
            return [[_rows(connection.execute(sql.replace("?", "%s"), one)) for sql, one in task][-1] for task in tasks]

    def _connect(self) -> Any:
        try:
            connection = self._psycopg.connect(self._place, autocommit=True, connect_timeout=10)
        except self._psycopg.Error as error:
            raise StoreError(f"the PostgreSQL store cannot be reached: {_first_line(error)}") from error
        if not _rows(connection.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK_NUMBER]))[0][0]:
            connection.close()
            raise StoreError("the PostgreSQL store is another service's; give this one a database of its own")
        for table in self._tables:
            connection.execute(table)
        self._connection = connection
        return connection


def _rows(cursor: Any) -> Rows:
    return cursor.fetchall() if cursor.description else []


def _first_line(error: Exception) -> str:
    """Without what follows: it may repeat the connection's settings."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
