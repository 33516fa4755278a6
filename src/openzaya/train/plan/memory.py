"""Memory of one training step on one rank, by kind."""

from __future__ import annotations

from dataclasses import dataclass, fields

from openzaya.model.config import ZayaConfig
from openzaya.model.info import ITEM_BYTES
from openzaya.train.loss import chunk_tokens
from openzaya.train.plan.activations import KeptBytes
from openzaya.train.plan.layout import Layout
from openzaya.train.plan.parameters import MASTER_BYTES, Parameters

SCORE_BYTES = 14
"""Of a score in the fused cross-entropy: its log-likelihood, the target's place and the gradient in float32, and the
gradient once more in bfloat16."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes on one rank at the worst moment of a step."""

    weights: float
    """In the dtype of forward and backward; where they are sharded the masters stand for them."""
    gathered: float
    """Weights that are here only while they are used."""
    gradients: float
    masters: float
    moments: float
    activations: float
    logits: float
    """Scores of the tokens that the fused cross-entropy takes at once, and the head's gradient summed over them."""

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
    device: str = "cuda",
) -> StepMemory:
    """Memory of a step whose microbatch has `tokens` tokens on each rank.

    Where weights are sharded the embedding stays gathered through a step, and two blocks are at a time: the one that
    computes and the one that comes next; gradients are float32 then, reduced block by block, else as the weights are.
    """
    item, ranks = ITEM_BYTES[dtype], layout.gpus
    local = counts.other + counts.experts / layout.expert
    embedding = config.vocab_size * config.hidden_size
    block = (local - embedding) / config.num_hidden_layers
    shard = counts.total / ranks
    sharded = layout.weights == "sharded" and ranks > 1
    return StepMemory(
        weights=0.0 if sharded else local * item,
        gathered=(2 * block + embedding) * item if sharded else 0.0,
        gradients=shard * MASTER_BYTES + block * item if sharded else local * item,
        masters=shard * MASTER_BYTES,
        moments=counts.moment_bytes / ranks,
        activations=tokens * kept.forward(config.num_hidden_layers, checkpointing=checkpointing),
        logits=_logits(config, tokens, chunk_tokens(config.vocab_size, device)),
    )


def _logits(config: ZayaConfig, tokens: int, chunk: int) -> float:
    head = config.vocab_size * config.hidden_size * MASTER_BYTES if tokens > chunk else 0
    return float(min(tokens, chunk) * config.vocab_size * SCORE_BYTES + head)
