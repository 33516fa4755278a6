"""Runs of two ranks that are killed, and go on as if nothing had been."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sharded_checkpoints as jobs
from rank_pool import rank_pool

from openzaya.train.sharding.meshes import Degrees

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 60
PROGRAM = Path(__file__).with_name("elastic_run.py")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[float]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with rank_pool(2) as two:
        losses, _other = two(jobs.losses_after, folder / "none", Degrees(experts=2), range(STEPS))
        yield losses


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def losses_in(folder: Path) -> dict[int, set[float]]:
    """By step, every loss that any launch had there."""
    losses: dict[int, set[float]] = {}
    for line in (folder / "losses").read_text().splitlines():
        step, loss = line.split()
        losses.setdefault(int(step), set()).add(float.fromhex(loss))
    return losses


def _rank(folder: Path, rank: int, port: int) -> subprocess.Popen[bytes]:
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), str(STEPS)],
        env=os.environ | place | {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def test_a_run_killed_twenty_times_has_the_losses_of_one_that_was_not_to_the_bit(
    uninterrupted: list[float], tmp_path: Path
) -> None:
    moments, kills, launches = random.Random(0), 0, 0
    while not (tmp_path / "done").exists():
        launches += 1
        assert launches < 60
        before = len((tmp_path / "losses").read_text().splitlines()) if (tmp_path / "losses").exists() else 0
        port = free_port()
        ranks = [_rank(tmp_path, rank, port) for rank in range(2)]
        try:
            if kills < 20:
                _wait_for_a_step(tmp_path, before, ranks)
                time.sleep(moments.uniform(0, 0.15))
                ranks[moments.randrange(2)].send_signal(signal.SIGKILL)
                kills += 1
            else:
                assert [rank.wait(timeout=600) for rank in ranks] == [0, 0]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    assert kills == 20
    assert losses_in(tmp_path) == {step: {loss} for step, loss in enumerate(uninterrupted)}


def _wait_for_a_step(folder: Path, before: int, ranks: list[subprocess.Popen[bytes]]) -> None:
    """Until the launch has trained: the start, which takes longest, is the least interesting moment."""
    path, limit = folder / "losses", time.monotonic() + 300
    while not path.exists() or len(path.read_text().splitlines()) == before:
        assert time.monotonic() < limit
        if any(rank.poll() is not None for rank in ranks):
            return
        time.sleep(0.01)


def test_torchrun_starts_the_ranks_again_when_one_dies_and_the_losses_go_on(
    uninterrupted: list[float], tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2",
        "--master-addr=127.0.0.1", f"--master-port={free_port()}", str(PROGRAM), str(tmp_path), "12", "5",
    ]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "losses").read_text().splitlines()
    assert len(lines) > 12 or lines[5].split()[0] == "5"
    assert losses_in(tmp_path) == {step: {loss} for step, loss in enumerate(uninterrupted[:12])}
