"""Runs of two ranks that are killed, and go on as if nothing had been."""

from __future__ import annotations

import os
import random
import signal
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

STEPS = 150
PROGRAM = Path(__file__).with_name("elastic_run.py")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[float]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with rank_pool(2) as two:
        losses, _other = two(jobs.losses_after, folder / "none", Degrees(experts=2), range(STEPS))
        yield losses


def losses_in(folder: Path) -> dict[int, set[float]]:
    """By step, every loss that any launch had there."""
    losses: dict[int, set[float]] = {}
    for line in (folder / "losses").read_text().splitlines():
        step, loss = line.split()
        losses.setdefault(int(step), set()).add(float.fromhex(loss))
    return losses


def test_a_run_killed_twenty_times_has_the_losses_of_one_that_was_not_to_the_bit(
    uninterrupted: list[float], tmp_path: Path
) -> None:
    moments, kills = random.Random(0), 0
    while kills < 20:
        with rank_pool(2) as pool:
            before = _steps_in(tmp_path)
            pool.start(jobs.train_and_save, tmp_path, STEPS)
            # The start takes longest and is the least interesting moment: mostly a step is waited for.
            while kills % 4 and _steps_in(tmp_path) == before:
                time.sleep(0.005)
                assert all(process.is_alive() for process in pool.processes)
            time.sleep(moments.uniform(0, 0.2 if kills % 4 else 1.0))
            victim = pool.processes[moments.randrange(2)]
            assert not (tmp_path / "done").exists(), f"finished after {kills} kills; make the run longer"
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            kills += 1
    with rank_pool(2) as pool:
        pool(jobs.train_and_save, tmp_path, STEPS)
    assert losses_in(tmp_path) == {step: {loss} for step, loss in enumerate(uninterrupted)}


def _steps_in(folder: Path) -> int:
    path = folder / "losses"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_torchrun_starts_the_ranks_again_when_one_dies_and_the_losses_go_on(
    uninterrupted: list[float], tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2",
        str(PROGRAM), str(tmp_path), "12", "5",
    ]  # fmt: skip
    # With the store of the launch before, ranks that start again would look for each other at its addresses.
    settings = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr
    assert losses_in(tmp_path) == {step: {loss} for step, loss in enumerate(uninterrupted[:12])}
