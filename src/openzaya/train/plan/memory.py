"""Memory of one training step on one rank, by kind."""

from __future__ import annotations

from dataclasses import dataclass, fields

from openzaya.model.config import ZayaConfig
from openzaya.model.info import ITEM_BYTES
from openzaya.train.plan.activations import KeptBytes
from openzaya.train.plan.layout import Layout
from openzaya.train.plan.parameters import MASTER_BYTES, Parameters

LOGIT_BYTES = 12
"""A score's log-likelihood, what the softmax makes of the target, and its gradient: float32 each."""
MOST_LOGITS = 1 << 28
"""Scores that exist at once in the fused cross-entropy."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes on one rank at the worst moment of a step."""

    weights: float
    """In the dtype of forward and backward."""
    gathered: float
    """Weights of blocks that are here only while they are used."""
    gradients: float
    masters: float
    moments: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return sum(getattr(self, kind.name) for kind in fields(self))


def step_memory(
    config: ZayaConfig,
    counts: Parameters,
    kept: KeptBytes,
    layout: Layout,
    *,
    tokens: int,
    checkpointing: bool,
    dtype: str = "bfloat16",
) -> StepMemory:
    """Memory of a step whose microbatch has `tokens` tokens on each rank.

    Where weights are sharded, two blocks are gathered at a time: the one that computes and the one that comes next;
    gradients are float32 then, reduced block by block, else in the dtype of the weights.
    """
    item, ranks = ITEM_BYTES[dtype], layout.gpus
    local = counts.other + counts.experts / layout.expert
    block = (counts.experts / layout.expert + counts.other) / config.num_hidden_layers
    shard = counts.total / ranks
    sharded = layout.weights == "sharded" and ranks > 1
    return StepMemory(
        weights=(shard if sharded else local) * item,
        gathered=2 * block * item if sharded else 0.0,
        gradients=shard * MASTER_BYTES + block * item if sharded else local * item,
        masters=shard * MASTER_BYTES,
        moments=counts.moment_bytes / ranks,
        activations=tokens * kept.forward(config.num_hidden_layers, checkpointing=checkpointing),
        logits=float(min(tokens * config.vocab_size, MOST_LOGITS) * LOGIT_BYTES),
    )
