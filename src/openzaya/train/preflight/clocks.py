"""How far the clocks of hosts are apart: timestamps of logs and expiries of leases go by them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from openzaya.train.launch import Place

_ROUNDS = 5


def clock_offset(place: Place, firsts: Sequence[int]) -> float | None:
    """Seconds that this host's clock is ahead of rank 0's; None on ranks that are not among `firsts`.

    Rank 0 asks the first rank of each other host for its time; of several answers the quickest one is believed, as if
    it was given half-way.
    """
    if place.rank == 0:
        for other in firsts:
            if other != 0:
                _answer(_ask(other), other)
        return 0.0
    if place.rank not in firsts:
        return None
    moment = torch.zeros(1, dtype=torch.float64)
    for _ in range(_ROUNDS):
        dist.recv(moment, src=0)
        dist.send(torch.tensor([time.time()], dtype=torch.float64), dst=0)
    dist.recv(moment, src=0)
    return float(moment)


def _ask(other: int) -> float:
    quickest, offset = float("inf"), 0.0
    theirs = torch.zeros(1, dtype=torch.float64)
    for _ in range(_ROUNDS):
        began = time.time()
        dist.send(torch.tensor([began], dtype=torch.float64), dst=other)
        dist.recv(theirs, src=other)
        ended = time.time()
        if ended - began < quickest:
            quickest, offset = ended - began, float(theirs) - (began + ended) / 2
    return offset


def _answer(offset: float, other: int) -> None:
    dist.send(torch.tensor([offset], dtype=torch.float64), dst=other)
