"""ZAYA as torchtitan wants a model, spread over ranks by the same functions as in our own loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.protocols.model import BaseModel
from torchtitan.tools.utils import device_type

from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.numerics import numerics_profile
from openzaya.model.router import Routing
from openzaya.train.balancing import AuxiliaryLoss, Balancer
from openzaya.train.beginning import first_weights
from openzaya.train.plan.flops import forward_flops, model_flops
from openzaya.train.recompute import checkpoint_blocks
from openzaya.train.sharding.context import RowPart
from openzaya.train.sharding.meshes import Degrees, Meshes
from openzaya.train.sharding.model import shard_model
from openzaya.train.sharding.parts import copy_part, fill_shards, local_part, placed
from openzaya.train.titan.recipe import Assigned, Assignment


class TitanZaya(ZayaForCausalLM, BaseModel):
    """The model of a phase. Its forward gives hidden states, from which the loss makes a chunk of logits at a time."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseModel.Config):
        assignment: Assigned = None

        def update_from_config(self, *, config: Any, **_others: Any) -> None:
            """Read what the recipe's folder says of the model; torchtitan has started the ranks by now."""
            self.assignment.open(device_type)
            config.hf_assets_path = str(self.assignment.run.folder / "tokenizer")

        def get_nparams_and_flops(self, model: BaseModel, seq_len: int) -> tuple[int, int]:
            parameters = sum(parameter.numel() for parameter in model.parameters())
            return parameters, round(model_flops(forward_flops(self.assignment.shape, seq_len)))

        def to_dict(self) -> dict[str, Any]:
            """What torchtitan's log and curves keep of the run."""
            return {"recipe": self.assignment.run.config.model_dump(mode="json"), **self.assignment.to_dict()}

    def __init__(self, config: Config) -> None:
        assignment: Assignment = config.assignment
        assert assignment.shape is not None
        super().__init__(assignment.shape, numerics_profile(assignment.run.config.numerics))
        self.assignment = assignment
        self.part: RowPart | None = None
        self.balancer: Balancer | None = None
        self.auxiliary: AuxiliaryLoss | None = None

    def verify_module_protocol(self) -> None:
        """Nothing: the parts of the model are plain modules, and `init_states` fills them all."""

    def init_states(self, *, buffer_device: torch.device | None = None) -> None:
        """The weights before the first step, those of our own loop: of the recipe's checkpoint, or of its seed."""
        fill_shards(self, first_weights(self.assignment.run.config, self.config), self.assignment.meshes)

    # ---- a step ----

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, *, real: Tensor, document_ids: Tensor | None = None, real_in_step: int = 0
    ) -> Tensor:
        """Final hidden states (B, S, D) of this rank's part of the rows; a training forward counts its routing.

        `real` (B, S) is False at padding, `real_in_step` how many tokens of the whole step are not.
        """
        real_T = real[:, self.places(input_ids.shape[1])].flatten()
        if self.auxiliary is not None:
            self.auxiliary.real_T, self.auxiliary.part = real_T, int(real_T.sum()) / max(1, real_in_step)
        routing = Routing()
        # Past the hooks around `hidden`: those around this forward have gathered the weights.
        hidden_BSD = ZayaForCausalLM.hidden(
            self, input_ids, document_ids=document_ids, routing=routing, context=self.part
        )
        if self.training and self.balancer is not None:
            # Once, whatever is computed again: recomputation records nothing.
            self.balancer.count([chosen_T[real_T] for chosen_T in routing.chosen])
        return hidden_BSD

    def places(self, length: int) -> slice:
        """The places of a row that this rank computes."""
        return slice(0, length) if self.part is None else self.part.part(length)

    @property
    def head(self) -> Tensor:
        """The matrix (V, D) that scores tokens: whole after a forward, until its backward ends."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    # ---- state ----

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """All weights by their native names; those that are sharded know which part of the whole they are."""
        held = super().state_dict(*args, **kwargs)
        meshes = self.assignment.meshes
        return {
            name: placed(local_part(tensor), tensor, meshes) if isinstance(tensor, DTensor) else tensor
            for name, tensor in held.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> None:  # type: ignore[override]
        """Take this rank's part of every weight that `state_dict` has, which where `strict` is all of them."""
        for name, held in self.state_dict().items():
            if strict or name in state_dict:
                copy_part(held, state_dict[name])


def parallelise(model: TitanZaya, *, parallel_dims: Any, training: Any, ac_config: Any, **_others: Any) -> TitanZaya:
    """Put recomputation, experts, context and FSDP2 around `model`, in this order, on the meshes of our own loop.

    Where torchtitan gives ranks to expert and context parallelism, the rest of them divides rows. Raises ValueError
    where the ranks or the experts cannot be divided so.
    """
    meshes = Meshes.create(Degrees(parallel_dims.ep, parallel_dims.cp), device_type, alone=True)
    model.assignment.meshes = meshes
    if ac_config is not None:
        checkpoint_blocks(model)
    shard_model(model, meshes, getattr(torch, training.mixed_precision_param))
    model.part = RowPart.of(meshes, model.config.convolution_history)
    return model
