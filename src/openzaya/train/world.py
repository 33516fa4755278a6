"""The processes of a run as the loop sees them. Here there is one; `sharding` has many ranks behind the same face."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from openzaya.model.config import ZayaConfig
from openzaya.train.config import PhaseRecipe, TrainConfig
from openzaya.train.learner import Learner
from openzaya.train.state import Progress, States, read_state, write_state


class Keeper(Protocol):
    """The states of a phase that runs."""

    def write(self, tensors: Mapping[str, Tensor], progress: Progress) -> None: ...

    def read(self, report: Callable[[str], None]) -> Iterator[tuple[Any, Progress]]:
        """What `Learner.load` takes, the newest first."""
        ...

    def remove(self, step: int) -> None: ...

    def close(self) -> None: ...


class World:
    """One process alone. Of many, all call every method together, in the same order."""

    leads: bool = True
    """Whether this is the process that speaks, logs, and writes what all share."""
    ranks: int = 1

    def share(self, phase: PhaseRecipe) -> tuple[int, int]:
        """Which share of every step's rows this process reads, and of how many."""
        return 0, 1

    def learner(self, config: TrainConfig, shape: ZayaConfig, phase: PhaseRecipe) -> Learner:
        """The learner of a phase, or this process's part of it."""
        return Learner.create(config, shape, phase)

    def states(self, folder: Path, keep_last: int, keep_every: int | None) -> Keeper:
        """The states in a folder."""
        return States(folder, keep_last, keep_every)

    def write_end(self, path: Path, learner: Learner, progress: Progress) -> None:
        """Leave the state in which a phase ended; raises ValueError where the disk does not take it."""
        write_state(path, learner.state(), progress)

    def read_end(self, path: Path, learner: Learner) -> None:
        """Take up the state in which a phase ended; raises ValueError where it is damaged."""
        learner.load(*read_state(path))

    def agreed(self, here: bool) -> bool:
        """The leader's answer to what depends on its clock."""
        return here

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leader goes through the block before the others enter it."""
        yield
