"""A small run for torchrun: train, save, take up what is there. Usage: elastic_run.py FOLDER STEPS [DIE_AT]."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from sharded_checkpoints import SHAPE, progress_at, train_step
from sharded_training import sharded_learner

from openzaya.train.checkpoints.keep import Checkpoints
from openzaya.train.sharding.meshes import Degrees, join


def main(folder: Path, steps: int, die_at: int | None) -> None:
    torch.set_num_threads(1)
    join("cpu")
    learner, checkpoints = sharded_learner(SHAPE, Degrees(experts=2)), Checkpoints(folder / "checkpoints")
    first = 0
    for stored, progress in checkpoints.read(print):
        learner.load(stored, progress)
        first = progress.step
        break
    for step in range(first, steps):
        loss = train_step(learner, step)
        if learner.meshes.rank == 0:
            with (folder / "losses").open("a", encoding="utf-8") as file:
                file.write(f"{step} {loss.hex()}\n")
        checkpoints.save(learner.state(), progress_at(step + 1))
        if step == die_at and first == 0 and learner.meshes.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
    checkpoints.wait()
    (folder / "done").touch()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
