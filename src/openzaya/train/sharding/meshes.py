"""How the ranks of a run stand to each other: which read different rows, share a row, or share the experts.

Rank number = (data * experts + expert place) * context + context place, so that ranks that share rows, which talk most,
are neighbours. Everything but the experts is sharded over all ranks; an expert's tensors are split over the ranks along
"experts" and sharded over the others, which all hold copies of the same experts ("copies").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, slots=True)
class Degrees:
    """Into how many parts a run splits rows and experts; the remaining factor of the ranks reads different rows."""

    experts: int = 1
    context: int = 1

    def data(self, ranks: int) -> int:
        """The remaining factor; raises ValueError where there is none."""
        if self.experts < 1 or self.context < 1 or ranks % (self.experts * self.context):
            raise ValueError(
                f"{ranks} ranks cannot be divided by experts {self.experts} x context {self.context}; "
                "start a multiple of their product"
            )
        return ranks // (self.experts * self.context)


@dataclass(frozen=True, slots=True)
class Meshes:
    """The place of this rank. With one rank there are no meshes and nothing is ever sent."""

    degrees: Degrees
    rank: int = 0
    ranks: int = 1
    world: DeviceMesh | None = None
    """All ranks in a line."""
    experts: DeviceMesh | None = None
    """("experts", "copies")."""
    context: DeviceMesh | None = None
    """("rows", "context")."""

    @classmethod
    def create(cls, degrees: Degrees | None = None, device: str = "cpu") -> Meshes:
        """The meshes of the process group in force; all ranks call this together.

        Without a process group there is one rank. Raises ValueError where the degrees do not divide the ranks.
        """
        degrees = degrees or Degrees()
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        data = degrees.data(ranks)
        if ranks == 1:
            return cls(degrees)
        grid = torch.arange(ranks).view(data, degrees.experts, degrees.context)
        return cls(
            degrees,
            dist.get_rank(),
            ranks,
            DeviceMesh(device, grid.flatten(), mesh_dim_names=("ranks",)),
            DeviceMesh(device, grid.transpose(0, 1).flatten(1), mesh_dim_names=("experts", "copies")),
            DeviceMesh(device, grid.flatten(0, 1), mesh_dim_names=("rows", "context")),
        )

    @property
    def reader(self) -> int:
        """Which share of the rows this rank reads, of `readers`."""
        return self.rank // self.degrees.context

    @property
    def readers(self) -> int:
        return self.ranks // self.degrees.context

    @property
    def expert_place(self) -> int:
        return self.rank // self.degrees.context % self.degrees.experts

    @property
    def context_place(self) -> int:
        return self.rank % self.degrees.context

    def expert_group(self) -> dist.ProcessGroup:
        """The ranks that hold the other experts."""
        assert self.experts is not None
        return self.experts.get_group("experts")

    def context_group(self) -> dist.ProcessGroup:
        """The ranks that hold the other parts of this rank's rows."""
        assert self.context is not None
        return self.context.get_group("context")

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all ranks, in a new tensor where there are several."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def sum_of_rows(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over the ranks that share this one's rows."""
        return tensor if self.degrees.context == 1 else _reduced(tensor, dist.ReduceOp.SUM, self.context_group())

    def most(self, tensor: Tensor) -> Tensor:
        """The largest value over all ranks."""
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def _reduced(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        return tensor if self.world is None else _reduced(tensor, operation, self.world.get_group())


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType, group: dist.ProcessGroup) -> Tensor:
    total = tensor.detach().clone()
    dist.all_reduce(total, operation, group=group)
    return total
