"""The processes of one launch of `torchrun`, joined to one group; a process on its own is one rank of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

PATIENCE = timedelta(minutes=10)
"""For a rank that does not come, or does not answer in the midst of a step."""


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


class AnotherRankFailed(Exception):
    """This rank ends because another one failed before it; that one says why."""


@contextmanager
def launched(device: str | None = None, patience: timedelta = PATIENCE) -> Iterator[Place]:
    """Join the ranks that `torchrun` started. Processors talk by gloo, GPUs by nccl (rccl under ROCm).

    Of all ranks that fail inside, the first one raises what it met and the others `AnotherRankFailed`. Raises
    ValueError where a rank does not come within `patience`, naming those that did not where that is known, and
    ConnectionError where one is gone that said nothing.
    """
    place = _place(device)
    if place.ranks == 1:
        yield place
        return
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
    backend = "cpu:gloo,cuda:nccl" if place.device.type == "cuda" else "gloo"
    try:
        store, rank, ranks = next(rendezvous("env://", timeout=patience))
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=patience)
        dist.monitored_barrier(dist.new_group(backend="gloo"), timeout=patience)
    except (RuntimeError, dist.DistError) as error:
        raise ValueError(f"not all of the {place.ranks} ranks answered: {_first_line(error)}") from None
    try:
        yield place
    except BaseException as error:
        if not _fails_first(store):
            raise AnotherRankFailed(str(error)) from error
        if _is_lost_touch(error):
            raise ConnectionError(
                f"rank {place.rank} has lost touch with the others ({_first_line(error)}): one of them was killed, or "
                "does not answer; the same command goes on from the last state"
            ) from error
        raise
    # After a failure the group goes with the process: a state that is still being written may be using it.
    dist.destroy_process_group()


def _place(device: str | None) -> Place:
    numbers = {name: int(os.environ.get(name, default)) for name, default in _ALONE.items()}
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    several = numbers["WORLD_SIZE"] > 1
    return Place(
        rank=numbers["RANK"],
        ranks=numbers["WORLD_SIZE"],
        local_rank=numbers["LOCAL_RANK"],
        local_ranks=numbers["LOCAL_WORLD_SIZE"],
        device=torch.device("cuda", numbers["LOCAL_RANK"]) if several and kind.type == "cuda" else kind,
    )


_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def _fails_first(store: dist.Store) -> bool:
    try:
        return store.add(f"failures of start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (RuntimeError, dist.DistError):
        return True  # nobody is left to ask


def _is_lost_touch(error: BaseException) -> bool:
    """Whether a message between ranks failed; gloo has no type of its own for that."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
