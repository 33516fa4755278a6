"""Runs that are watched by their id, kept in the store: they can be reopened after a restart."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openzaya.mrsa.journal import Journal, JournalSink
from openzaya.serve.store import COMPLETED, FAILED, Job, Store


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run that can be reopened."""

    owner: str | None
    """The name of the key that started it; only this key may see it."""
    journal: Journal | None = None
    closing: Mapping[str, Any] | None = None
    """The record of how it ended, where it has no result."""


class StoredRuns:
    """An archive of runs over a store. Each ended run is kept for `keep` seconds."""

    def __init__(self, store: Store, keep: float) -> None:
        self._store = store
        self._keep = keep

    async def open(self, run_id: str, owner: str | None) -> JournalSink:
        """Begin to keep a run; its journal goes to the sink. Raises StoreError."""
        await self._store.create(Job(id=run_id, kind="run", owner=owner or "", request={}, fingerprint=run_id))
        return self._store.sink(run_id)

    async def close(self, run_id: str, closing: Mapping[str, Any] | None) -> None:
        """The run has ended: with a result (None), or as this record says."""
        status = COMPLETED if closing is None else FAILED
        result = None if closing is None else {"closing": dict(closing)}
        await self._store.end(run_id, status, expires=time.time() + self._keep, result=result)

    async def find(self, run_id: str) -> StoredRun | None:
        """A kept run, or None where it is not known, or not any more."""
        job = await self._store.find(run_id)
        if job is None or job.kind != "run" or (job.expires is not None and job.expires <= time.time()):
            return None
        return StoredRun(job.owner or None, await self._store.sink(run_id).read(), (job.result or {}).get("closing"))
