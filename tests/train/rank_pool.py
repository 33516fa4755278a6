"""Processes that are the ranks of a gloo group and do what a test asks, all together."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Forked from a server that has imported torch once and used none of it.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["openzaya.train.sharding.learner"])


class RankPool:
    def __init__(self, ranks: int, folder: Path) -> None:
        self.connections: list[Connection] = []
        self.processes = []
        for rank in range(ranks):
            ours, theirs = _SERVER.Pipe()
            process = _SERVER.Process(target=_serve, args=(theirs, rank, ranks, str(folder / "store")), daemon=True)
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(*arguments)` gives on each rank; an exception of any rank is raised here."""
        self.start(function, *arguments)
        answers = [
            connection.recv() if connection.poll(280) else (False, "no answer") for connection in self.connections
        ]
        failures = [f"rank {rank}: {answer}" for rank, (done, answer) in enumerate(answers) if not done]
        assert not failures, "\n".join(failures)
        return [answer for _done, answer in answers]

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have the ranks do it, and do not wait."""
        for connection in self.connections:
            connection.send((function, arguments))

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@contextmanager
def rank_pool(ranks: int) -> Iterator[RankPool]:
    with tempfile.TemporaryDirectory() as folder:
        pool = RankPool(ranks, Path(folder))
        try:
            yield pool
        finally:
            pool.close()


def _serve(connection: Connection, rank: int, ranks: int, store: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, function(*arguments)))
        except Exception:
            connection.send((False, traceback.format_exc()))
