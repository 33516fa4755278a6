"""What the service itself costs: many jobs at once over a source that costs nothing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from openzaya.backends.openai import OpenAIBackend
from openzaya.mrsa import preset
from openzaya.serve.app import create_app
from openzaya.serve.config import make_config
from openzaya.serve.service import Service
from openzaya.serve.store import Store

Progress = Callable[[int, int, str], None]
"""Jobs done, jobs in all, what is done now."""

_BODY = {"model": "load", "messages": [{"role": "user", "content": "What is 6 times 7?"}]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The load: by default the N and T of the headline, for 64 clients at once."""

    jobs: int = 64
    preset: str = "headline"
    chunks: int = 512
    """Events with text in the stream of each rollout."""
    at_once: int = 256
    """Rollouts open at the source."""

    @property
    def rollouts(self) -> int:
        """Of all jobs, final calls included."""
        config = preset(self.preset)
        return self.jobs * (config.rounds * config.candidates + config.last_width + 1)

    @property
    def tokens_of_tails(self) -> int:
        """N·τ of a job, with tails no longer than the replies; a piece is a token."""
        config = preset(self.preset)
        return config.candidates * min(config.tau, self.chunks)


def measure(settings: Settings, progress: Progress) -> dict[str, Any]:
    """CPU seconds by rollout and by chunk, beside reading the same streams alone, and memory by job."""
    with _upstream(settings.chunks) as url:
        return asyncio.run(_measure(settings, url, progress))


async def _measure(settings: Settings, url: str, progress: Progress) -> dict[str, Any]:
    progress(0, settings.jobs, "reading alone")
    alone = await _read_alone(url, streams=max(16, settings.rollouts // 16), at_once=min(64, settings.at_once))
    with TemporaryDirectory(prefix="openzaya-load-") as folder:
        found = await _serve(settings, url, Path(folder) / "jobs.sqlite", progress)
    chunks = settings.rollouts * settings.chunks
    by_chunk = found["cpu_seconds"] / chunks
    tails = settings.tokens_of_tails
    memory = {"tokens_of_tails_a_job": tails, "bytes_a_token_of_tails": found["memory"]["bytes_a_job"] / tails}
    return {
        "rollouts": settings.rollouts,
        "chunks": chunks,
        "seconds": found["seconds"],
        "cpu_seconds": found["cpu_seconds"],
        "microseconds_a_chunk": 1e6 * by_chunk,
        "milliseconds_a_rollout": 1e3 * found["cpu_seconds"] / settings.rollouts,
        "reading_alone": {
            "what": "the same streams read by httpx and json, without a service",
            "microseconds_a_chunk": 1e6 * alone / settings.chunks,
        },
        "times_reading_alone": by_chunk * settings.chunks / alone,
        "memory": found["memory"] | memory,
    }


async def _read_alone(url: str, streams: int, at_once: int) -> float:
    """CPU seconds that it takes to read one stream."""
    places = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=at_once)) as client:

        async def read() -> None:
            async with places, client.stream("POST", f"{url}/chat/completions", json=_BODY) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        json.loads(line[6:])

        await read()
        began = time.process_time()
        await asyncio.gather(*(read() for _ in range(streams)))
        return (time.process_time() - began) / streams


async def _serve(settings: Settings, url: str, store: Path, progress: Progress) -> dict[str, Any]:
    limits = {
        "requests_at_once": settings.jobs + 1,
        "rollouts_at_once": settings.at_once,
        "largest_run": 1 << 40,
    }
    config = make_config({"name": "load", "mrsa": {"preset": settings.preset}, "limits": limits, "progress": False})
    backend: Any = OpenAIBackend([url], concurrency=settings.at_once)
    await backend.discover()
    app = create_app(Service(config, backend, store=Store(str(store))))
    try:
        await app.state.jobs.open(app.state.resume)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
            await _ask(client, settings)  # warmed up: connections, imports, the store
            return await _ask_many(client, settings, store, progress)
    finally:
        await app.state.jobs.aclose()
        await backend.aclose()


async def _ask_many(client: httpx.AsyncClient, settings: Settings, store: Path, progress: Progress) -> dict[str, Any]:
    done = 0

    async def one() -> None:
        nonlocal done
        await _ask(client, settings)
        done += 1
        progress(done, settings.jobs, "jobs")

    before = peak = _resident_bytes()

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, _resident_bytes())
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    kept = _size(store)
    began, cpu = time.perf_counter(), time.process_time()
    progress(0, settings.jobs, "jobs")
    await asyncio.gather(*(one() for _ in range(settings.jobs)))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "memory": {
            "bytes_a_job": (peak - before) / settings.jobs,
            "bytes_in_the_store_a_job": (_size(store) - kept) / settings.jobs,
        },
    }


async def _ask(client: httpx.AsyncClient, settings: Settings) -> None:
    response = await client.post("/v1/chat/completions", json=_BODY)
    response.raise_for_status()
    assert response.json()["mrsa"]["votes"] == {"42": preset(settings.preset).last_width}


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _size(store: Path) -> int:
    return sum(one.stat().st_size for one in store.parent.glob(f"{store.name}*"))


@contextmanager
def _upstream(chunks: int) -> Iterator[str]:
    command = [sys.executable, "-m", "openzaya.serve.load_upstream", str(chunks)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()
