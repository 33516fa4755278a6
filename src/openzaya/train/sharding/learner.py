"""A learner spread over ranks: the same step as one rank takes with all their batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from openzaya.data.packing import Batch
from openzaya.model.config import ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.router import Routing
from openzaya.train.balancing import AuxiliaryLoss, Balancer
from openzaya.train.beginning import Weights, empty_model, first_weights, training_device
from openzaya.train.checkpoints.keep import Stored
from openzaya.train.config import PhaseRecipe, TrainConfig
from openzaya.train.learner import Learner, StepFigures
from openzaya.train.loss import linear_cross_entropy
from openzaya.train.recompute import checkpoint_blocks
from openzaya.train.sharding.batches import evened
from openzaya.train.sharding.context import RowPart
from openzaya.train.sharding.meshes import Degrees, Meshes
from openzaya.train.sharding.model import shard_model
from openzaya.train.sharding.optimizer import ShardedMuonAdamW
from openzaya.train.sharding.parts import fill_shards, whole_of
from openzaya.train.state import Progress


@dataclass(slots=True)
class ShardedLearner(Learner):
    """`Learner` on one of many ranks. Its optimizer is a `ShardedMuonAdamW`.

    All ranks call its methods together, each with the batches of its `reader`.
    """

    meshes: Meshes = field(default_factory=lambda: Meshes(Degrees()))
    part: RowPart | None = None

    @classmethod
    def spread(
        cls, config: TrainConfig, model_config: ZayaConfig, phase: PhaseRecipe | None, meshes: Meshes
    ) -> ShardedLearner:
        """As `Learner.create`, spread over the ranks of `meshes`, of which none ever has room for the whole model."""
        phase = phase or config.phases[0]
        shape = phase.shape(model_config)
        model = empty_model(config, shape, torch.device("meta"))
        return cls.around(model, first_weights(config, shape), config, phase, meshes)

    @classmethod
    def around(
        cls, model: ZayaForCausalLM, weights: Weights, config: TrainConfig, phase: PhaseRecipe, meshes: Meshes
    ) -> ShardedLearner:
        """Of a `model` on the meta device, and the `weights` that belong into it."""
        dtype = getattr(torch, config.dtype)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # shards are the masters
        if phase.activation_checkpointing:
            checkpoint_blocks(model)
        shard_model(model, meshes, dtype)
        model.to_empty(device=training_device(config))
        fill_shards(model, weights, meshes)
        optimizer = ShardedMuonAdamW(model, config.optimizer, meshes)
        if meshes.world is None:
            for parameter in model.parameters():
                parameter.data = parameter.data.to(dtype)
        balancer = Balancer(model, config.optimizer.balancing_rate, config.balancing)
        balancer.total = meshes.sum
        weight = config.balancing.auxiliary_weight
        auxiliary = AuxiliaryLoss(model, weight) if config.balancing.method == "auxiliary" else None
        if auxiliary is not None:
            auxiliary.total = meshes.sum_of_rows
        part = RowPart.of(meshes, model.config.convolution_history)
        return cls(model.train(), optimizer, balancer, auxiliary, config.ablation, meshes, part)

    # ---- a step ----

    def step(self, batches: Sequence[Batch], scale: float) -> StepFigures:
        """One update at `scale` times the recipe's rates, or none on any rank where loss or gradient is not finite."""
        batches = evened(batches, self.meshes, self.model.config.convolution_history, self.device)
        learned, real = self._totals(batches)
        loss = self._sum(sum(self._accumulate(batch, learned, real) for batch in batches))
        norm = self.optimizer.clip()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimizer.forget()
            self.balancer.forget()
            return StepFigures(loss, norm, (), taken=False)
        self.optimizer.step(scale)
        return StepFigures(loss, norm, self.balancer.step(min(1.0, scale)))

    @torch.no_grad()
    def loss_of(self, batches: Sequence[Batch]) -> float:
        """Mean negative log-likelihood of the learned tokens that all ranks have, in nats; nothing changes."""
        batches = evened(batches, self.meshes, self.model.config.convolution_history, self.device)
        learned, _real = self._totals(batches)
        return self._sum(sum(self._loss(batch, 1 / learned, None).item() for batch in batches))

    def _totals(self, batches: Sequence[Batch]) -> tuple[int, int]:
        """Learned and real tokens over all ranks; those of a row that ranks share are counted where they lie."""
        counts = [
            (batch.learned[:, self._places(batch)].sum(), batch.real[:, self._places(batch)].sum()) for batch in batches
        ]
        totals = self.meshes.sum(torch.tensor([*map(sum, zip(*counts))] or [0, 0], device=self.device))
        return max(1, int(totals[0])), max(1, int(totals[1]))

    def _sum(self, loss: float) -> float:
        return float(self.meshes.sum(torch.tensor(loss, dtype=torch.float64, device=self.device)))

    def _places(self, batch: Batch) -> slice:
        length = batch.input_ids.shape[1]
        return slice(0, length) if self.part is None else self.part.part(length)

    def _accumulate(self, batch: Batch, learned: int, real: int) -> float:
        kept = torch.from_numpy(batch.real[:, self._places(batch)]).flatten().to(self.device)
        routing = Routing()
        if self.auxiliary is not None:
            self.auxiliary.real_T, self.auxiliary.part = kept, int(kept.sum()) / real
        loss = self._loss(batch, 1 / learned, routing)
        loss.backward()
        self.balancer.count([chosen[kept] for chosen in routing.chosen])
        return loss.item()

    def _loss(self, batch: Batch, scale: float, routing: Routing | None) -> Tensor:
        place, device, places = torch.from_numpy, self.device, self._places(batch)
        documents = None if batch.document_ids is None else place(batch.document_ids).to(device)
        hidden = self.model.hidden(
            place(batch.input_ids).to(device), document_ids=documents, routing=routing, context=self.part
        )
        learned = place(batch.learned[:, places]).to(device)
        # After the forward the tensors of the root, the head among them, are whole until the backward ends.
        head = self.model.model.embed_tokens.weight if self.model.lm_head is None else self.model.lm_head.weight
        targets = place(batch.targets[:, places]).to(device)[learned]
        return linear_cross_entropy(hidden[learned], head, targets, scale=scale, lift=self.model.numerics.lift)

    # ---- state and export ----

    def load(self, tensors: Mapping[str, Tensor] | Stored, progress: Progress) -> None:
        """Take up the state of an equal learner, on however many ranks it was: a checkpoint, or whole tensors."""
        # A forward without a backward leaves tensors of the old weights gathered.
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        if isinstance(tensors, Stored):
            tensors.load_into(self.state())
            tensors = self.state()
        Learner.load(self, tensors, progress)

    def master_model(self) -> ZayaForCausalLM | None:
        if self.meshes.world is None:
            return Learner.master_model(self)
        copy = self._blank() if self.meshes.rank == 0 else None
        assert isinstance(self.optimizer, ShardedMuonAdamW)
        self._merge_into(copy, _Gathered(self.optimizer.weights()))
        return copy


@dataclass(frozen=True, slots=True)
class _Gathered(Mapping[str, Tensor]):
    """Whole tensors, each gathered when it is asked for, by all ranks together."""

    parts: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        part = self.parts[name]
        return whole_of(part) if isinstance(part, DTensor) else part

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)
