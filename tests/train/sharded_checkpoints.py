"""What ranks do in the tests of checkpoints."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
from sharded_training import draw_batches, draw_shape, sharded_learner, whole

from openzaya.train.checkpoints.keep import Checkpoints
from openzaya.train.sharding.learner import ShardedLearner
from openzaya.train.sharding.meshes import Degrees
from openzaya.train.state import Progress

SHAPE = draw_shape(0)


def progress_at(step: int) -> Progress:
    return Progress("recipe", "phase", step, step, step, 0, 1.5)


def train_step(learner: ShardedLearner, step: int) -> float:
    reader, readers = learner.meshes.reader, learner.meshes.readers
    return learner.step(draw_batches(SHAPE, step)[reader::readers], 1.0).loss


def whole_state(learner: ShardedLearner) -> dict[str, np.ndarray[Any, Any]]:
    return {name: whole(tensor).numpy() for name, tensor in learner.state().items()}


def write(folder: Path, degrees: Degrees, steps: list[int], **policy: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Train, save after `steps`, go on training while the last one is written; the state of the last."""
    learner, checkpoints = sharded_learner(SHAPE, degrees), Checkpoints(folder, **policy)
    saved: dict[str, np.ndarray[Any, Any]] = {}
    for step in range(1, max(steps) + 2):
        train_step(learner, step)
        if step in steps:
            saved = whole_state(learner)
            checkpoints.save(learner.state(), progress_at(step))
    checkpoints.wait()
    return saved


def read(folder: Path, degrees: Degrees) -> tuple[int | None, dict[str, np.ndarray[Any, Any]], list[str]]:
    """The step of the newest good checkpoint, the state that it gives, and what was said."""
    learner, checkpoints = sharded_learner(SHAPE, degrees), Checkpoints(folder)
    train_step(learner, 50)
    learner.loss_of(draw_batches(SHAPE, 51)[learner.meshes.reader :: learner.meshes.readers])
    told: list[str] = []
    for stored, progress in checkpoints.read(told.append):
        learner.load(stored, progress)
        assert learner.optimizer.step_count == progress.step
        return progress.step, whole_state(learner), told
    return None, {}, told


def rewrite(source: Path, destination: Path, degrees: Degrees) -> None:
    """Take up what is in `source` and save it again, from however many ranks these are."""
    learner = sharded_learner(SHAPE, degrees)
    for stored, progress in Checkpoints(source).read(print):
        learner.load(stored, progress)
        checkpoints = Checkpoints(destination)
        checkpoints.save(learner.state(), progress)
        checkpoints.wait()
        return


def losses_after(folder: Path, degrees: Degrees, steps: range) -> list[float]:
    """Losses of `steps`, from the newest checkpoint where there is one."""
    learner = sharded_learner(SHAPE, degrees)
    for stored, progress in Checkpoints(folder).read(print):
        learner.load(stored, progress)
        break
    return [train_step(learner, step) for step in steps]


def failing_write(folder: Path, degrees: Degrees) -> str:
    """Save step 2 on a disk that takes no more; what is said."""
    import openzaya.train.checkpoints.storage as storage

    learner, checkpoints = sharded_learner(SHAPE, degrees), Checkpoints(folder)
    working = storage.write_file

    def full(*_arguments: Any, **_named: Any) -> Any:
        raise OSError(28, "No space left on device")

    if learner.meshes.rank == learner.meshes.ranks - 1:
        storage.write_file = full
    try:
        checkpoints.save(learner.state(), progress_at(2))
        checkpoints.wait()
    except ValueError as error:
        return str(error)
    finally:
        storage.write_file = working
    return ""


def train_and_save(folder: Path, steps: int, die_at: int | None = None) -> None:
    """Train to `steps` from the newest checkpoint, saving after each; note every loss. Rank 1 dies once if asked to."""
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
    checkpoints.wait()
    (folder / "done").touch()
