"""How long a step takes on a described cluster, by parts.

Predicted from the shape: operations, bytes on each axis. Taken from the description: speeds of products, memory, links.
Assumed, and named in `cluster.Assumed`: which share of these speeds training reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

from openzaya.model.config import ZayaConfig
from openzaya.model.info import ITEM_BYTES
from openzaya.train.plan.cluster import Cluster
from openzaya.train.plan.collectives import (
    all_to_all_seconds,
    context_group,
    dense_group,
    expert_group,
    expert_weight_group,
    ring_seconds,
)
from openzaya.train.plan.flops import TokenFlops, forward_flops, model_flops, training_flops
from openzaya.train.plan.layout import Layout, Share
from openzaya.train.plan.parameters import MASTER_BYTES, MOMENT_BYTES, Parameters, optimizer_flops

_GRADIENT_BYTES = 4
"""Gradients are reduced in float32."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step. What data ranks say to each other goes on beside products; the other axes are waited for."""

    products: float
    """Forward and backward, and what checkpointing repeats."""
    optimizer: float
    experts: float
    """Tokens to their experts and back."""
    context: float
    """Keys and values of the whole row to each of its ranks, their gradients back, the halo of the convolutions."""
    data: float
    """Weights gathered and gradients reduced, in all."""
    data_waited: float
    """What of it is not hidden behind products: at least the first block's gathering and the last one's reduction."""
    flops: float
    """Of one rank's forward and backward, nothing counted twice."""
    bound: float
    """Seconds that its products take at the full speed of large ones: no step is shorter."""

    @property
    def total(self) -> float:
        return self.products + self.optimizer + self.experts + self.context + self.data_waited

    def utilisation(self, matmul: float) -> float:
        """Share of `matmul` that the whole step reaches."""
        return self.flops / (matmul * self.total)


def step_time(
    config: ZayaConfig,
    counts: Parameters,
    cluster: Cluster,
    layout: Layout,
    share: Share,
    *,
    row: int,
    checkpointing: bool,
    dtype: str = "bfloat16",
    newton_schulz_steps: int = 5,
) -> StepTime:
    """Predict the step of the slowest rank: with shared rows, the one with the row's end, whose tokens see most."""
    forward = forward_flops(config, row)
    slowest = _last_of_row(forward, layout.context)
    speed = cluster.gpu.matmul * cluster.assumed.utilisation
    products = share.tokens * training_flops(slowest, checkpointing=checkpointing) / speed
    data = _data_seconds(config.num_hidden_layers, counts, cluster, layout, share, ITEM_BYTES[dtype])
    flops = share.tokens * model_flops(forward)
    return StepTime(
        products=products,
        optimizer=_optimizer_seconds(counts, cluster, layout, newton_schulz_steps),
        experts=_expert_seconds(config, cluster, layout, share, ITEM_BYTES[dtype], checkpointing),
        context=_context_seconds(config, cluster, layout, share, ITEM_BYTES[dtype], checkpointing),
        data=data,
        data_waited=max(data / config.num_hidden_layers, data - products),
        flops=flops,
        bound=flops / cluster.gpu.matmul,
    )


def _last_of_row(forward: TokenFlops, ranks: int) -> TokenFlops:
    """A token's operations in the last of `ranks` equal parts of a row, where it sees (2 - 1/ranks) times the mean."""
    return TokenFlops(
        forward.projections,
        forward.convolutions,
        forward.attention * (2 - 1 / ranks),
        forward.router,
        forward.experts,
        forward.head,
    )


def _data_seconds(layers: int, counts: Parameters, cluster: Cluster, layout: Layout, share: Share, item: int) -> float:
    """Whole weights: gathered once a step, gradients reduced once. Sharded: blocks gathered for each forward and each
    backward, gradients reduced after each."""
    times = share.microbatches if layout.weights == "sharded" else 1
    gathers = 2 * times if layout.weights == "sharded" else 1
    shared = [(dense_group(cluster, layout), counts.total)]
    if layout.weights == "sharded":
        # Experts have collectives of their own, also where every rank has all of them.
        local = counts.experts // layout.expert
        shared = [(dense_group(cluster, layout), counts.other), (expert_weight_group(cluster, layout), local)]
    seconds = 0.0
    for among, elements in shared:
        seconds += gathers * ring_seconds(cluster, among, elements * item, calls=layers)
        seconds += times * ring_seconds(cluster, among, elements * _GRADIENT_BYTES, calls=layers)
    return seconds


def _expert_seconds(
    config: ZayaConfig, cluster: Cluster, layout: Layout, share: Share, item: int, checkpointing: bool
) -> float:
    """Two all-to-alls a layer in each pass."""
    calls = 2 * config.num_hidden_layers * (3 if checkpointing else 2)
    sent = share.microbatch * config.hidden_size * item
    return share.microbatches * calls * all_to_all_seconds(cluster, expert_group(cluster, layout), sent)


def _context_seconds(
    config: ZayaConfig, cluster: Cluster, layout: Layout, share: Share, item: int, checkpointing: bool
) -> float:
    """Keys and values gathered in each forward, their gradients reduced in the backward; a halo beside each."""
    among = context_group(cluster, layout)
    if among.ranks == 1:
        return 0.0
    passes = config.num_hidden_layers * (3 if checkpointing else 2)
    gathered = share.microbatch * layout.context * 2 * config.key_value_size * item
    halo = cluster.assumed.network_latency if among.nodes > 1 else cluster.assumed.link_latency
    return share.microbatches * passes * (ring_seconds(cluster, among, gathered) + halo)


def _optimizer_seconds(counts: Parameters, cluster: Cluster, layout: Layout, steps: int) -> float:
    """Newton-Schulz of the busiest rank, whole matrices brought to it and their updates taken back, and the passage of
    masters, moments, gradients and weights through memory."""
    products = optimizer_flops(counts.matrices, steps=steps, ranks=layout.gpus)
    # Read and written: master and moments; read: the gradient; written: the weight.
    touched = 2 * counts.state_bytes + counts.total * (_GRADIENT_BYTES + 2)
    exchange = all_to_all_seconds(
        cluster, dense_group(cluster, layout), counts.muon / layout.gpus * (MASTER_BYTES + MOMENT_BYTES), calls=2
    )
    return (
        products / (cluster.gpu.matmul * cluster.assumed.newton_schulz)
        + touched / layout.gpus / cluster.gpu.memory_bandwidth
        + exchange
    )
