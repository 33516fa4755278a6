"""The whole check, in the order that finds a dead rank first and the slow disk last."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch

from openzaya.train.launch import launched
from openzaya.train.plan.cluster import Cluster
from openzaya.train.preflight.clocks import clock_offset
from openzaya.train.preflight.disks import measure_disk
from openzaya.train.preflight.links import LinkFigures, measure_links
from openzaya.train.preflight.products import memory_free, product_speed
from openzaya.train.preflight.ranks import RankFigures, barrier, exchange, exchange_figures, host_name
from openzaya.train.preflight.verdict import Problem, judge

DISK_BYTES = {"cpu": 32 << 20, "cuda": 2 << 30}
_SECONDS = {"cpu": 0.3, "cuda": 3.0}
_PATIENCE = timedelta(minutes=2)
"""For a rank that does not answer; a healthy collective of this check takes seconds."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the check found; the same on every rank."""

    ranks: list[RankFigures]
    links: list[LinkFigures]
    problems: list[Problem]
    needed_bytes: int
    """That the run will keep in its folder."""
    speaks: bool
    """Whether this is the rank that prints."""

    @property
    def stops(self) -> bool:
        """Whether something is wrong enough not to start."""
        return any(problem.stops for problem in self.problems)


def run_preflight(
    folder: Path, *, needed_bytes: int, dtype: torch.dtype, device: str | None = None, cluster: Cluster | None = None
) -> Report:
    """Check the ranks of this launch against each other, and against a description where one is given.

    Raises ValueError where a rank does not answer, OSError where the folder cannot be written.
    """
    with launched(device, _PATIENCE) as place:
        kind = place.device.type
        hosts = exchange(place, host_name())
        firsts = [hosts.index(host) for host in dict.fromkeys(hosts)]
        barrier(place)
        figures = RankFigures(
            rank=place.rank,
            host=hosts[place.rank],
            device=torch.cuda.get_device_name(place.device) if kind == "cuda" else kind,
            torch=torch.__version__,
            matmul=product_speed(place.device, dtype, _SECONDS.get(kind, _SECONDS["cuda"])),
            memory_free=memory_free(place.device),
            clock_offset=clock_offset(place, firsts),
            disk=None,
        )
        links = measure_links(place, cluster)
        disk = measure_disk(place, folder, DISK_BYTES.get(kind, DISK_BYTES["cuda"]))
        ranks = exchange_figures(place, replace(figures, disk=disk))
        return Report(ranks, links, judge(ranks, links, cluster, needed_bytes), needed_bytes, place.rank == 0)
