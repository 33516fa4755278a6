"""What learns: a model in its training dtype with its optimizers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from openzaya.data.packing import Batch
from openzaya.model.checkpoint import Unfilled
from openzaya.model.config import ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.router import Routing
from openzaya.train.ablation import exchange_parts
from openzaya.train.ablation_recipe import AblationRecipe
from openzaya.train.balancing import AuxiliaryLoss, Balancer
from openzaya.train.beginning import starting_model
from openzaya.train.config import PhaseRecipe, TrainConfig
from openzaya.train.lora import merged_weights
from openzaya.train.loss import linear_cross_entropy
from openzaya.train.muon import MuonAdamW
from openzaya.train.recompute import checkpoint_blocks
from openzaya.train.state import Progress


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What came of one step."""

    loss: float
    """Mean negative log-likelihood of a learned token, in nats."""
    gradient_norm: float
    """Before clipping."""
    load_entropies: Sequence[float]
    """By layer; 1 is balanced."""
    taken: bool = True
    """False where loss or gradient was not finite: nothing has changed then."""

    @property
    def load_entropy(self) -> float:
        """The mean over layers."""
        return sum(self.load_entropies) / max(1, len(self.load_entropies))


@dataclass(slots=True)
class Learner:
    """The model in its training dtype with its optimizers; `step` is one update."""

    model: ZayaForCausalLM
    optimizer: MuonAdamW
    balancer: Balancer
    auxiliary: AuxiliaryLoss | None = None
    ablation: AblationRecipe = field(default_factory=AblationRecipe)

    @classmethod
    def create(cls, config: TrainConfig, model_config: ZayaConfig, phase: PhaseRecipe | None = None) -> Learner:
        """The learner of a phase (the first where none is given), before a state is loaded into it."""
        phase = phase or config.phases[0]
        model = starting_model(config, phase.shape(model_config))
        optimizer = MuonAdamW(model.named_parameters(), config.optimizer)
        # The optimizer has copied its float32 masters by now; buffers (the balancing biases) stay float32.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, config.dtype))
        balancer = Balancer(model, config.optimizer.balancing_rate, config.balancing)
        weight = config.balancing.auxiliary_weight
        auxiliary = AuxiliaryLoss(model, weight) if config.balancing.method == "auxiliary" else None
        if phase.activation_checkpointing:
            checkpoint_blocks(model)
        return cls(model.train(), optimizer, balancer, auxiliary, config.ablation)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def step(self, batches: Sequence[Batch], scale: float) -> StepFigures:
        """One update at `scale` times the recipe's rates, or none where its loss or gradient is not finite."""
        return self.update(self.gradients(batches), scale)

    def gradients(self, batches: Sequence[Batch]) -> float:
        """Forward and backward of a step; returns its loss."""
        learned = sum(batch.learned_tokens for batch in batches)
        real = sum(int(batch.real.sum()) for batch in batches)
        return sum(self._accumulate(batch, learned, real) for batch in batches)

    def update(self, loss: float, scale: float) -> StepFigures:
        """Take the gradients at hand, those of a step with this loss, to an update; they are gone afterwards."""
        norm = self.optimizer.clip()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimizer.forget()
            self.balancer.forget()
            return StepFigures(loss, norm, (), taken=False)
        self.optimizer.step(scale)
        return StepFigures(loss, norm, self.balancer.step(min(1.0, scale)))

    def _accumulate(self, batch: Batch, learned: int, real: int) -> float:
        routing, kept = Routing(), torch.from_numpy(batch.real).flatten().to(self.device)
        if self.auxiliary is not None:
            self.auxiliary.real_T, self.auxiliary.part = kept, int(batch.real.sum()) / real
        loss = self._loss(batch, 1 / learned, routing)
        loss.backward()
        self.balancer.count([chosen[kept] for chosen in routing.chosen])
        return loss.item()

    def _loss(self, batch: Batch, scale: float, routing: Routing | None) -> Tensor:
        place, device = torch.from_numpy, self.device
        documents = None if batch.document_ids is None else place(batch.document_ids).to(device)
        hidden = self.model.hidden(place(batch.input_ids).to(device), document_ids=documents, routing=routing)
        learned = place(batch.learned).to(device)
        head = self.model.model.embed_tokens.weight if self.model.lm_head is None else self.model.lm_head.weight
        targets = place(batch.targets).to(device)[learned]
        return linear_cross_entropy(hidden[learned], head, targets, scale=scale, lift=self.model.numerics.lift)

    @torch.no_grad()
    def loss_of(self, batches: Sequence[Batch]) -> float:
        """Mean negative log-likelihood of the learned tokens of `batches`, in nats; nothing changes."""
        learned = sum(batch.learned_tokens for batch in batches)
        return sum(self._loss(batch, 1 / learned, None).item() for batch in batches)

    # ---- state and export ----

    def state(self) -> dict[str, Tensor]:
        """Everything that moves, by name."""
        return self.optimizer.state() | self.balancer.state()

    def load(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Take up `state()` of an equal learner."""
        self.optimizer.load_state(tensors, progress.optimizer_steps)
        self.balancer.load_state(tensors, progress.balancing_steps)

    def master_model(self) -> ZayaForCausalLM | None:
        """A float32 copy of the model made of the masters, adapters merged, on the processor.

        Of many ranks the first one gets it and the others None; all of them call this together.
        """
        masters = {name: slot.master for name, slot in self.optimizer.slots.items()}
        frozen = {name: p.detach() for name, p in self.model.named_parameters() if name not in masters}
        copy = self._blank()
        self._merge_into(copy, {**frozen, **masters})
        return copy

    def _blank(self) -> ZayaForCausalLM:
        """A model such as `model` was before adapters, with nothing in it."""
        with Unfilled(torch.float32, torch.device("cpu")):
            copy = ZayaForCausalLM(self.model.config, self.model.numerics)
            exchange_parts(copy, self.ablation)
        return copy.eval()

    @torch.no_grad()
    def _merge_into(self, copy: ZayaForCausalLM | None, tensors: Mapping[str, Tensor]) -> None:
        """Put parameters, adapters merged, and buffers into `copy`; where that is None they are only asked for."""
        places = {} if copy is None else copy.state_dict()
        for name, tensor in chain(self.model.named_buffers(), merged_weights(self.model, tensors)):
            if places:
                places[name].copy_(tensor)
