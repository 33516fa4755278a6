"""The ranks of a launch and what each one says of itself, exchanged as JSON between processors."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_PATIENCE = timedelta(minutes=2)
"""For a rank that does not answer; a healthy collective of this check takes seconds."""


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


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands in its launch."""

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    device: torch.device

    @property
    def first_of_host(self) -> bool:
        return self.local_rank == 0


@contextmanager
def launched(device: str | None) -> Iterator[Place]:
    """Join the ranks that `torchrun` started; a process on its own is one rank of one.

    Raises ValueError where a rank does not answer in time, naming those that did not where that is known.
    """
    numbers = {name: int(os.environ.get(name, default)) for name, default in _ALONE.items()}
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    place = Place(
        rank=numbers["RANK"],
        ranks=numbers["WORLD_SIZE"],
        local_rank=numbers["LOCAL_RANK"],
        local_ranks=numbers["LOCAL_WORLD_SIZE"],
        device=torch.device(kind, numbers["LOCAL_RANK"]) if kind == "cuda" else torch.device(kind),
    )
    if place.ranks == 1:
        yield place
        return
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.device.type == "cuda" else "gloo", timeout=_PATIENCE)
        dist.monitored_barrier(dist.new_group(backend="gloo"), timeout=_PATIENCE)
    except (RuntimeError, dist.DistError) as error:
        raise ValueError(f"not all of the {place.ranks} ranks answered: {_first_line(error)}") from None
    try:
        yield place
    finally:
        dist.destroy_process_group()


_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


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
