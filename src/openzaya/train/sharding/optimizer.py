"""Muon and AdamW over sharded weights: every rank keeps masters and moments of its own shards alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from openzaya.model.decoder import ZayaForCausalLM
from openzaya.train.config import OptimizerRecipe
from openzaya.train.muon import MuonAdamW, orthogonalise
from openzaya.train.sharding.matrices import orthogonalise_shards
from openzaya.train.sharding.meshes import Meshes
from openzaya.train.sharding.parts import copy_part, local_part, placed


class ShardedMuonAdamW(MuonAdamW):
    """`MuonAdamW` of a model that `shard_model` has spread over the ranks of `meshes`.

    The float32 shards of FSDP are the masters. With one rank this is `MuonAdamW` itself.
    """

    def __init__(self, model: ZayaForCausalLM, recipe: OptimizerRecipe, meshes: Meshes) -> None:
        self.meshes = meshes
        self.shards: dict[str, DTensor] = {}
        """The parameters that are sharded, as FSDP knows them."""
        local: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            if isinstance(parameter, DTensor):
                local[name] = nn.Parameter(local_part(parameter), requires_grad=parameter.requires_grad)
                self.shards[name] = parameter
            else:
                local[name] = parameter
        super().__init__(local.items(), recipe)
        self.plain = {name: parameter for name, parameter in local.items() if not parameter.requires_grad}
        """This rank's part of what stands still."""

    def _master(self, name: str, parameter: nn.Parameter) -> Tensor:
        return parameter.data if name in self.shards else super()._master(name, parameter)

    # ---- a step ----

    def forget(self) -> None:
        super().forget()
        for parameter in self.shards.values():
            parameter.grad = None

    def clip(self) -> float:
        """Scale all gradients so that their joint norm over all ranks is at most the recipe's; the norm before."""
        for name, slot in self.slots.items():
            if name in self.shards:
                gradient = self.shards[name].grad
                slot.parameter.grad = gradient.to_local() if isinstance(gradient, DTensor) else None
        gradients = [slot.parameter.grad for slot in self.slots.values() if slot.parameter.grad is not None]
        # Every element of every weight is in exactly one shard, so one sum over all ranks counts each once.
        squares = torch.stack([gradient.float().pow(2).sum() for gradient in gradients] or [torch.zeros(())])
        norm = float(self.meshes.sum(squares.sum()).sqrt())
        if norm > self.recipe.clip:
            for gradient in gradients:
                gradient.mul_(self.recipe.clip / norm)
        return norm

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Update every parameter that has a gradient, at `scale` times the recipe's rates; call `clip` before."""
        if not self.shards:
            super().step(scale)
            return
        self.step_count += 1
        for slot in self.slots.values():
            if slot.parameter.grad is not None and not slot.matrix:
                self._adamw(slot, slot.parameter.grad, self.recipe.adamw_rate * slot.share * scale)
        self._muon_step(scale)
        self.forget()

    def _muon_step(self, scale: float) -> None:
        iterate = partial(orthogonalise, steps=self.recipe.newton_schulz_steps)
        split: dict[str, dict[str, Tensor]] = {"ranks": {}, "copies": {}}
        rows: dict[str, int] = {}
        for name, slot in self.slots.items():
            gradient = slot.parameter.grad
            if not slot.matrix or gradient is None:
                continue
            (momentum,) = slot.moments
            momentum.lerp_(gradient, 1 - self.recipe.momentum)
            direction = gradient.lerp(momentum, self.recipe.momentum)
            if direction.ndim == 2:
                split["ranks"][name], rows[name] = direction, self.shards[name].shape[0]
            elif self.shards[name].placements[0] == Shard(1):
                for number, matrix in enumerate(direction.unbind()):
                    split["copies"][f"{name}/{number}"] = matrix
                    rows[f"{name}/{number}"] = self.shards[name].shape[1]
            elif direction.numel():
                self._move(name, None, iterate(direction), scale)
        for line, shards in split.items():
            for whole_name, direction in orthogonalise_shards(shards, rows, self._group(line), iterate):
                name, _, place = whole_name.partition("/")
                self._move(name, int(place) if place else None, direction, scale)

    def _move(self, name: str, place: int | None, direction: Tensor, scale: float) -> None:
        """Step along the orthogonal `direction`, of one matrix of a stack where a `place` is given."""
        slot, rate = self.slots[name], self.recipe.muon_rate * self.slots[name].share * scale
        master = slot.master if place is None else slot.master[place]
        size = self.recipe.matched_size * max(self.shards[name].shape[-2:]) ** 0.5
        master.mul_(1 - rate * self.recipe.weight_decay).add_(direction, alpha=-rate * size)

    def _group(self, line: str) -> dist.ProcessGroup:
        mesh = self.meshes.world if line == "ranks" else self.meshes.experts
        assert mesh is not None
        return mesh.get_group(line)

    # ---- state ----

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name; sharded ones know which part of the whole they are."""
        return {key: self._placed(key.partition(".")[2], tensor) for key, tensor in super().state().items()}

    def weights(self) -> dict[str, Tensor]:
        """All parameters by name, float32 where they learn, as `state` has them."""
        local = {name: slot.master for name, slot in self.slots.items()} | self.plain
        return {name: self._placed(name, tensor.detach()) for name, tensor in local.items()}

    def _placed(self, name: str, local: Tensor) -> Tensor:
        return placed(local, self.shards[name], self.meshes) if name in self.shards else local

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], step_count: int) -> None:
        """Take up `state()` of an equal optimizer, from whole tensors whatever wrote them."""
        for key, held in self.state().items():
            copy_part(held, tensors[key])
        for slot in self.slots.values():
            slot.parameter.copy_(slot.master)
        self.step_count = step_count
