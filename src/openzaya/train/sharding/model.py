"""FSDP2, expert and context parallelism around a model, in the order in which they fit into each other."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard

from openzaya.model.decoder import Block, ZayaForCausalLM
from openzaya.train.sharding.experts import split_experts
from openzaya.train.sharding.meshes import Meshes

# Nothing adds in place to what a block gives.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def shard_model(model: ZayaForCausalLM, meshes: Meshes, dtype: torch.dtype = torch.float32) -> None:
    """Spread the weights of `model` over the ranks, in place; forwards compute in `dtype`.

    The model may be on the meta device: nothing is read. What learns must be float32 and stays so: shards are the
    masters. Gradients come as sums over the ranks, float32 too, so the loss of a
    rank must be its share of the loss of the whole batch. Apply activation checkpointing before. With one rank nothing
    happens. Raises ValueError where the experts cannot be split evenly.
    """
    if meshes.world is None or meshes.experts is None:
        return
    precision = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,
        # The residual stream between blocks is float32 and stays so.
        cast_forward_inputs=False,
    )
    copies = meshes.experts["copies"]
    for block in model.model.layers:
        assert isinstance(block, Block)
        experts = block.mlp.experts
        split_experts(experts, meshes)
        fully_shard(experts, mesh=copies, mp_policy=precision, shard_placement_fn=_expert_placement(copies.size()))
        fully_shard(block, mesh=meshes.world, mp_policy=precision)
    fully_shard(model, mesh=meshes.world, mp_policy=precision)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo has no product with a factor inside a sum.
            module.set_force_sum_reduction_for_comms(True)


def _expert_placement(ranks: int) -> Callable[[nn.Parameter], Shard]:
    """Whole experts to a rank, which Muon likes; where ranks outnumber experts, some rows of each."""

    def placement(stack: nn.Parameter) -> Shard:
        return Shard(1 if stack.shape[0] < ranks and stack.shape[1] % ranks == 0 else 0)

    return placement
