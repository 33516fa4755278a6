"""The ranks of a run behind the face that the training loop knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from openzaya.model.config import ZayaConfig
from openzaya.train.checkpoints.keep import Checkpoints
from openzaya.train.config import PhaseRecipe, TrainConfig
from openzaya.train.learner import Learner
from openzaya.train.sharding.learner import ShardedLearner
from openzaya.train.sharding.meshes import Degrees, Meshes
from openzaya.train.state import Progress
from openzaya.train.world import Keeper, World

_LEADER = timedelta(days=30)
"""For what the leader does alone, texts to tokens and rollouts among it; a leader that is gone is noticed at once."""


class _RankStates(Checkpoints):
    """Checkpoints by the names that the loop uses."""

    write = Checkpoints.save


class Ranks(World):
    """All ranks of the process group in force, divided for each phase as its recipe says."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.leads, self.ranks = dist.get_rank() == 0, dist.get_world_size()
        self._meshes: dict[Degrees, Meshes] = {}
        self._for_leader = dist.new_group(backend="gloo", timeout=_LEADER)

    def meshes(self, phase: PhaseRecipe) -> Meshes:
        """The division of a phase, made once; raises ValueError where the ranks cannot be divided so."""
        degrees = Degrees(phase.sharding.expert, phase.sharding.context)
        if degrees not in self._meshes:
            self._meshes[degrees] = Meshes.create(degrees, self.device)
        return self._meshes[degrees]

    def share(self, phase: PhaseRecipe) -> tuple[int, int]:
        meshes = self.meshes(phase)
        return meshes.reader, meshes.readers

    def learner(self, config: TrainConfig, shape: ZayaConfig, phase: PhaseRecipe) -> Learner:
        return ShardedLearner.spread(config, shape, phase, self.meshes(phase))

    def states(self, folder: Path, keep_last: int, keep_every: int | None) -> Keeper:
        return _RankStates(folder, keep_last, keep_every)

    def write_end(self, path: Path, learner: Learner, progress: Progress) -> None:
        ends = Checkpoints(path, keep_last=1)
        ends.save(learner.state(), progress)
        ends.wait()

    def read_end(self, path: Path, learner: Learner) -> None:
        assert isinstance(learner, ShardedLearner)
        for stored, progress in Checkpoints(path).read(print):
            learner.load(stored, progress)
            return
        raise ValueError(f"{path} holds no whole checkpoint; remove it to run the phase anew")

    def agreed(self, here: bool) -> bool:
        answer = torch.tensor(here, dtype=torch.int32, device=self.device)
        dist.broadcast(answer, 0)
        return bool(answer)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        if not self.leads:
            dist.barrier(self._for_leader)
        yield
        if self.leads:
            dist.barrier(self._for_leader)
