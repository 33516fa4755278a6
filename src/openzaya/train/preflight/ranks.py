"""What each rank of a launch says of itself, exchanged as JSON between processors."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from openzaya.train.launch import Place


@dataclass(frozen=True, slots=True)
class RankFigures:
    """One rank's own measurements; None where it was not its turn to measure."""

    rank: int
    host: str
    device: str
    torch: str
    matmul: float
    """FLOPs a second, the median of many large products."""
    memory_free: int | None
    """Bytes on the device."""
    clock_offset: float | None
    """Seconds that its host's clock is ahead of rank 0's."""
    disk: DiskFigures | None


@dataclass(frozen=True, slots=True)
class DiskFigures:
    """The folder of the run, as one host sees it."""

    write: float
    """Bytes a second, up to and with fsync."""
    read: float
    """Bytes a second, from the disk where the system lets go of its cache."""
    fsync: float
    """Seconds of an fsync after a small write."""
    free: int
    """Bytes."""
    shared: bool
    """Whether this host sees what rank 0 wrote there."""


def barrier(place: Place) -> None:
    """Wait for every rank, on the processors."""
    if place.ranks > 1:
        dist.all_reduce(torch.zeros(1))


def exchange(place: Place, value: Any) -> list[Any]:
    """What every rank gives, by rank; anything that JSON can say."""
    if place.ranks == 1:
        return [value]
    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.long) for _ in range(place.ranks)]
    dist.all_gather(sizes, torch.tensor([own.numel()]))
    longest = int(torch.stack(sizes).max())
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: own.numel()] = own
    everyone = [torch.zeros(longest, dtype=torch.uint8) for _ in range(place.ranks)]
    dist.all_gather(everyone, padded)
    return [json.loads(bytes(each[: int(size)].tolist())) for each, size in zip(everyone, sizes)]


def exchange_figures(place: Place, own: RankFigures) -> list[RankFigures]:
    """The figures of every rank, by rank."""
    found = exchange(place, asdict(own))
    return [RankFigures(**{**each, "disk": each["disk"] and DiskFigures(**each["disk"])}) for each in found]


def host_name() -> str:
    return socket.gethostname()


def by_host(figures: Sequence[RankFigures]) -> dict[str, list[RankFigures]]:
    """Ranks grouped by host, in order of rank."""
    hosts: dict[str, list[RankFigures]] = {}
    for each in figures:
        hosts.setdefault(each.host, []).append(each)
    return hosts
