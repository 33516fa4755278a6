"""How fast ranks exchange: all-reduce and all-to-all, among all of them and within each host."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from openzaya.train.launch import Place
from openzaya.train.plan.cluster import Cluster
from openzaya.train.plan.collectives import all_to_all_seconds, group, ring_seconds
from openzaya.train.preflight.products import wait
from openzaya.train.preflight.ranks import exchange

BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""That a rank contributes: large enough for latency not to count."""
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class LinkFigures:
    """One kind of exchange among one set of ranks."""

    what: str
    ranks: int
    """That take part in one group."""
    seconds: float
    """Of the slowest rank, the best of several rounds."""
    bandwidth: float
    """Bytes a second over each rank's slowest link, the bus bandwidth of nccl-tests."""
    expected: float | None
    """The same from the description of the cluster, without what it assumes of collectives."""


def measure_links(place: Place, cluster: Cluster | None, size: int | None = None) -> list[LinkFigures]:
    """Measure among all ranks, and within hosts where there are several; nothing for a rank on its own."""
    if place.ranks == 1:
        return []
    size = size or BYTES.get(place.device.type, BYTES["cuda"])
    found = [
        _figures(place, "all-reduce", place.ranks, None, size, cluster),
        _figures(place, "all-to-all", place.ranks, None, size, cluster),
    ]
    if 1 < place.local_ranks < place.ranks:
        hosts = [range(first, first + place.local_ranks) for first in range(0, place.ranks, place.local_ranks)]
        # Every rank has to take part in the making of every group.
        groups = [dist.new_group(list(host)) for host in hosts]
        mine = groups[place.rank // place.local_ranks]
        found.append(_figures(place, "all-reduce in a host", place.local_ranks, mine, size, cluster))
        found.append(_figures(place, "all-to-all in a host", place.local_ranks, mine, size, cluster))
    return found


def _figures(
    place: Place, what: str, ranks: int, among: dist.ProcessGroup | None, size: int, cluster: Cluster | None
) -> LinkFigures:
    size -= size % (4 * ranks)
    reduce = what.startswith("all-reduce")
    own = torch.ones(size // 4, device=place.device)
    other = torch.empty_like(own)

    def once() -> None:
        if reduce:
            dist.all_reduce(own, op=dist.ReduceOp.MAX, group=among)
        else:
            dist.all_to_all_single(other, own, group=among)
        wait(place.device)

    seconds = max(exchange(place, _best_of(once)))
    moved = size * (ranks - 1) / ranks * (2 if reduce else 1)
    expected = None if cluster is None else moved / _expected(cluster, ranks, size, reduce)
    return LinkFigures(what, ranks, seconds, moved / seconds, expected)


def _best_of(once: Callable[[], None]) -> float:
    once()  # the first one connects
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        once()
        best = min(best, time.perf_counter() - began)
    return best


def _expected(cluster: Cluster, ranks: int, size: int, reduce: bool) -> float:
    """Seconds at the described speeds."""
    among = group(cluster, ranks)
    full = cluster.model_copy(update={"assumed": cluster.assumed.model_copy(update={"collectives": 1.0})})
    return 2 * ring_seconds(full, among, size) if reduce else all_to_all_seconds(full, among, size)
