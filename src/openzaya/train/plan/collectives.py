"""How long collectives take on a described cluster: the slower of its links and its network, plus every hop's latency.

Ring collectives: a rank passes on everything but its own part, and every node lets the whole of it in and out once,
over the network of all members that it has. An all-to-all sends a member's part straight to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from openzaya.train.plan.cluster import Cluster
from openzaya.train.plan.layout import Layout


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that take part together; the same is going on in every other group of the axis."""

    ranks: int
    in_node: int
    """Members that share a node."""

    @property
    def nodes(self) -> int:
        return self.ranks // self.in_node


def group(cluster: Cluster, ranks: int, stride: int = 1) -> Group:
    """A group of `ranks` whose members are `stride` ranks apart."""
    return Group(ranks, max(1, min(ranks, cluster.node.gpus // stride)))


def context_group(cluster: Cluster, layout: Layout) -> Group:
    return group(cluster, layout.context)


def expert_group(cluster: Cluster, layout: Layout) -> Group:
    return group(cluster, layout.expert, stride=layout.context)


def dense_group(cluster: Cluster, layout: Layout) -> Group:
    """Ranks over which everything but experts is shared out."""
    return group(cluster, layout.gpus)


def expert_weight_group(cluster: Cluster, layout: Layout) -> Group:
    """Ranks that have the same experts, over which these are shared out."""
    return group(cluster, layout.gpus // layout.expert, stride=layout.expert)


def ring_seconds(cluster: Cluster, among: Group, total_bytes: float, calls: int = 1) -> float:
    """All-gather or reduce-scatter of `total_bytes` (all ranks' parts together), in `calls` pieces."""
    if among.ranks == 1:
        return 0.0
    inside = total_bytes * (among.ranks - 1) / among.ranks / _link(cluster, among) if among.in_node > 1 else 0.0
    outside = total_bytes * (among.nodes - 1) / among.nodes / (_network(cluster, among) * among.in_node)
    assumed = cluster.assumed
    between_nodes = among.nodes if among.nodes > 1 else 0
    hops = (among.ranks - among.nodes) * assumed.link_latency + between_nodes * assumed.network_latency
    return max(inside, outside) / assumed.collectives + calls * hops


def all_to_all_seconds(cluster: Cluster, among: Group, rank_bytes: float, calls: int = 1) -> float:
    """Every rank sends `rank_bytes`, the same to each member (its own part stays), in `calls` pieces."""
    if among.ranks == 1:
        return 0.0
    inside = rank_bytes * (among.in_node - 1) / among.ranks / _link(cluster, among) if among.in_node > 1 else 0.0
    outside = rank_bytes * (among.ranks - among.in_node) / among.ranks / _network(cluster, among)
    assumed = cluster.assumed
    latency = assumed.network_latency if among.nodes > 1 else assumed.link_latency
    return max(inside, outside) / assumed.collectives + calls * latency


def _link(cluster: Cluster, among: Group) -> float:
    """Bytes a second that a rank sends to the members of its node."""
    node = cluster.node
    if node.topology == "switch":
        return node.link
    return node.link * (among.in_node - 1) / (node.gpus - 1)


def _network(cluster: Cluster, among: Group) -> float:
    """Bytes a second that a rank sends to other nodes; without a network nothing goes there, so any number will do."""
    if cluster.node.network is None:
        if among.nodes > 1:
            raise ValueError(f"{among.ranks} ranks do not fit the one node of {cluster.name!r}")
        return 1.0
    return cluster.node.network
