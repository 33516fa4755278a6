"""What a job holds while its reply is written: the tails of its rounds, whatever its rollouts wrote before them."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from service_under_test import QUESTION

from openzaya.backends.protocol import Capabilities, ChatParams, Delta, Message, Usage
from openzaya.serve.app import create_app
from openzaya.serve.config import make_config
from openzaya.serve.service import Service
from openzaya.serve.store import Store

PIECE = 100
"""Characters, and as many tokens."""


class Writer:
    """A source whose every reply is so long and like no other; it looks at the memory when the final call comes."""

    def __init__(self, length: int) -> None:
        self.capabilities = Capabilities(model="m", tokenize=True, context=1 << 24)
        self.held = 0
        self._length = length
        self._replies = 0

    async def chat(self, messages: Sequence[Message], params: ChatParams) -> AsyncIterator[Delta]:
        self._replies += 1
        if params.temperature != 1.0:
            gc.collect()
            self.held = tracemalloc.get_traced_memory()[0]
        for place in range(self._length // PIECE):
            yield Delta(reasoning=f"{self._replies} {place} ".ljust(PIECE, "."), tokens=PIECE)
        usage = Usage(completion_tokens=self._length)
        yield Delta(content="\\boxed{42}", finish_reason="stop", usage=usage)

    async def count(self, text: str) -> int:
        return len(text)

    async def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    async def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


def held(folder: Path, *, candidates: int, tau: int, length: int) -> int:
    """Bytes that one job holds when its rounds are done."""

    async def run() -> int:
        source: Any = Writer(length)
        shape = {"candidates": candidates, "tails": 1, "rounds": 2, "beta": 1 << 20, "tau": tau}
        config = make_config(
            {"name": "zaya", "mrsa": {"preset": "headline", **shape}, "limits": {"largest_run": 1 << 40}}
        )
        app = create_app(Service(config, source, store=Store(str(folder / f"{candidates}-{tau}-{length}.sqlite"))))
        await app.state.jobs.open(app.state.resume)
        body = {"model": "zaya", "messages": QUESTION}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            await client.post("/v1/chat/completions", json=body)
            gc.collect()
            tracemalloc.start()
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            tracemalloc.stop()
        await app.state.jobs.aclose()
        return int(source.held)

    return asyncio.run(run())


def test_a_job_holds_its_tails_and_not_what_its_rollouts_wrote(tmp_path: Path) -> None:
    base = held(tmp_path, candidates=8, tau=2000, length=4_000)
    tails = 8 * 2000
    # 24 rollouts wrote 12,000 characters more each; the last of them may still be on its way to the store.
    assert held(tmp_path, candidates=8, tau=2000, length=16_000) < base + 2 * 12_000
    wider = held(tmp_path, candidates=16, tau=2000, length=4_000) - base
    longer = held(tmp_path, candidates=8, tau=4000, length=4_000) - base
    assert 1.0 * tails < wider < 3 * tails  # those of the last two rounds, and the figures of each candidate
    assert 1.0 * tails < longer < 3 * tails
