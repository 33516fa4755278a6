"""The store of jobs: one behaviour over SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from openzaya.backends.protocol import Usage
from openzaya.mrsa.candidate import Candidate
from openzaya.mrsa.journal import End, Header, JournalError
from openzaya.mrsa.tails import Tail
from openzaya.serve.database import StoreError
from openzaya.serve.store import COMPLETED, LEFT, RUNNING, Job, Store

HEADER = Header(
    question_hash="q", config_hash="c", model="m", messages=[{"role": "user", "content": "?"}], config={}, task="math"
)


def candidate(index: int, **values: Any) -> Candidate:
    return Candidate(
        round=0, index=index, seed=7, finish_reason="stop", usage=Usage(completion_tokens=3), started=0.0, seconds=1.0,
        tail=Tail("the end", 2, "ids"), reasoning="thought", content="\\boxed{42}", answer="42", **values,
    )  # fmt: skip


def job(id: str = "resp_1", **values: Any) -> Job:
    return Job(**{"id": id, "kind": "response", "owner": "alice", "request": {"seed": 1}, "fingerprint": "f", **values})


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real server."""
    pytest.importorskip("psycopg", reason="needs openzaya[postgres]")
    found = shutil.which("initdb") or next((str(one) for one in Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if found is None:
        pytest.skip("there is no PostgreSQL server here (Debian: postgresql)")
    programs = Path(found).resolve().parent
    folder = tmp_path_factory.mktemp("postgres")
    user: list[str] = []
    if os.geteuid() == 0:  # the server refuses to be root's
        user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        for one in (folder, *folder.parents[:2]):
            one.chmod(0o777)
    data = folder / "data"
    subprocess.run(
        [*user, programs / "initdb", "-D", data, "-U", "test", "--auth=trust"], check=True, capture_output=True
    )
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    control = [*user, programs / "pg_ctl", "-D", data, "-w"]
    subprocess.run([*control, "-o", options, "-l", folder / "log", "start"], check=True, capture_output=True)
    try:
        yield f"postgresql://test@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, capture_output=True)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store with nothing in it is."""
    if request.param == "sqlite":
        return str(tmp_path / "below" / "jobs.sqlite")
    import psycopg

    url: str = request.getfixturevalue("postgres")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return url


def using(place: str, use: Callable[[Store], Awaitable[Any]]) -> Any:
    """What `use` returns, given the store at a place."""

    async def run() -> Any:
        store = Store(place)
        try:
            await store.open()
            return await use(store)
        finally:
            await store.aclose()

    return asyncio.run(run())


def test_a_job_comes_back_as_it_was_kept(place: str) -> None:
    async def use(store: Store) -> list[Job | None]:
        await store.create(job(idempotency="once", background=True, created=5.0))
        await store.end("resp_1", COMPLETED, expires=9.0, result={"text": "\ud800 \x00 ü"})
        return [await store.find("resp_1"), await store.find_by_idempotency("alice", "once"), await store.find("none")]

    found, same, nothing = using(place, use)
    assert found == same == using(place, lambda store: store.find("resp_1"))
    ended = {"status": COMPLETED, "expires": 9.0, "result": {"text": "\ud800 \x00 ü"}}
    assert found == job(idempotency="once", background=True, created=5.0, **ended)
    assert nothing is None


def test_a_journal_in_the_store_is_the_journal_that_was_written(place: str) -> None:
    async def write(store: Store) -> None:
        await store.create(job())
        sink = store.sink("resp_1", 1)
        assert await sink.read() is None
        for entry in (HEADER, candidate(0), candidate(1, tool_calls=({"id": None, "name": "f", "arguments": "{}"},))):
            await sink.write(entry)

    async def go_on(store: Store) -> Any:
        await store.sink("resp_1", 1).write(End(finish_reason="answered", seconds=2.0))
        assert await store.sink("resp_1", 0).read() is None
        return await store.sink("resp_1", 1).read()

    using(place, write)
    journal = using(place, go_on)
    assert journal.header == HEADER
    assert journal.attempts[0] == candidate(0)
    assert journal.attempts[1].tool_calls[0]["name"] == "f"
    assert journal.end == End(finish_reason="answered", seconds=2.0)


@pytest.mark.parametrize("reads", [True, False])
def test_rollouts_that_end_together_are_both_kept_by_who_goes_on_with_a_journal(place: str, reads: bool) -> None:
    async def use(store: Store) -> Any:
        await store.create(job())
        await store.sink("resp_1").write(HEADER)
        sink = store.sink("resp_1")
        if reads:
            await sink.read()
        await asyncio.gather(*(sink.write(candidate(index)) for index in range(3)))
        return await store.sink("resp_1").read()

    assert [attempt.index for attempt in using(place, use).attempts] == [0, 1, 2]


def test_jobs_expire_with_everything_they_wrote_and_nothing_else(place: str) -> None:
    async def use(store: Store) -> Any:
        for id, expires in (("old", 10.0), ("new", 30.0)):
            await store.create(job(id))
            await store.sink(id).write(HEADER)
            await store.add_events(id, 0, ["first", "second"])
            await store.end(id, COMPLETED, expires=expires)
        await store.create(job("running"))
        await store.expire(20.0)
        kept = [id for id in ("old", "new", "running") if await store.find(id)]
        return kept, await store.events("old"), await store.events("new", 1), await store.sink("old").read()

    assert using(place, use) == (["new", "running"], [], ["second"], None)


def test_what_was_running_and_what_lost_its_client_is_found_again(place: str) -> None:
    async def use(store: Store) -> Any:
        for place, status in enumerate((RUNNING, LEFT, COMPLETED, LEFT)):
            await store.create(job(f"job_{place}", status=status, created=100.0 - place))
        unfinished = [one.id for one in await store.unfinished()]
        left = await store.find_left("f")
        return unfinished, left and left.id, await store.find_left("other")

    assert using(place, use) == (["job_0"], "job_3", None)


def test_the_account_of_a_key_adds_up_by_day(place: str) -> None:
    async def use(store: Store) -> Any:
        for day, tokens in (("2026-01-01", 5), ("2026-01-01", 7), ("2026-01-02", 1)):
            store.count("alice", day, tokens, 1, 2 * tokens, 0.5)
        store.count("bob", "2026-01-01", 1, 1, 1, 1.0)
        return await store.spending("alice"), await store.spending(None)

    alice, everyone = using(place, use)
    assert [entry["requests"] for entry in alice] == [1, 2]
    assert (alice[1]["prompt_tokens"], alice[1]["completion_tokens"], alice[1]["cost"]) == (12, 24, 1.0)
    assert len(everyone) == 3


def test_many_at_once_are_kept_each_and_one_that_fails_harms_no_other(place: str) -> None:
    async def use(store: Store) -> Any:
        await store.create(job(idempotency="taken"))
        jobs = [job(f"job_{n}", idempotency="taken" if n == 50 else None) for n in range(100)]
        results = await asyncio.gather(*map(store.create, jobs), return_exceptions=True)
        return [n for n, result in enumerate(results) if isinstance(result, StoreError)], len(await store.unfinished())

    assert using(place, use) == ([50], 100)


def test_two_services_do_not_share_a_store(place: str) -> None:
    async def use(store: Store) -> None:
        other = Store(place)
        try:
            with pytest.raises(StoreError, match="another service's"):
                await other.open()
        finally:
            await other.aclose()

    using(place, use)
    using(place, lambda store: store.find("anything"))


def test_a_damaged_record_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    async def use(store: Store) -> None:
        await store.create(job())
        await store.sink("resp_1").write(HEADER)
        await store._database.execute(("UPDATE records SET record = '{}'", ()))
        with pytest.raises(JournalError, match="resp_1 holds something"):
            await store.sink("resp_1").read()

    using(":memory:", use)


def test_a_store_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/jobs\.sqlite cannot be used"):
        using(str(tmp_path / "file" / "jobs.sqlite"), lambda store: store.find("x"))


@pytest.mark.slow
def test_a_postgres_server_that_restarts_is_connected_to_again(postgres: str) -> None:
    import psycopg

    async def use(store: Store) -> Any:
        await store.create(job("before"))
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                return await store.find("before")
            except StoreError:
                await asyncio.sleep(0.1)
        return None

    assert using(postgres, use) is not None
