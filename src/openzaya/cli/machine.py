"""What this machine has: cores, memory, devices, and how fast its memory is. Measured or read, never guessed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from openzaya.memory import memory_bytes

_COPIED_BYTES = 64 << 20
"""For each core: far beyond its caches."""
_COPIES = 3


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator that torch can use."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to run a model on; None stands for what this system does not tell."""

    cores: int
    memory_bytes: int | None
    available_bytes: int | None
    """Memory that a new program can have now, limits of a container included."""
    bytes_per_second: float
    """Read and written by a copy on all cores."""
    torch: str | None
    """Its version, None where it is not installed."""
    devices: tuple[Device, ...]


def this_machine() -> Machine:
    """Look around; takes some tenths of a second, and the import of torch where it is installed."""
    cores = _cores()
    memory, available = memory_bytes()
    has_torch = importlib.util.find_spec("torch") is not None
    return Machine(
        cores,
        memory,
        available,
        _copy_speed(cores),
        importlib.metadata.version("torch") if has_torch else None,
        _devices() if has_torch else (),
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _copy_speed(cores: int) -> float:
    """Bytes read and written a second while every core copies; the best of a few tries."""
    import numpy

    pairs = [(numpy.ones(_COPIED_BYTES, dtype="uint8"), numpy.ones(_COPIED_BYTES, dtype="uint8")) for _ in range(cores)]
    best = float("inf")
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(_COPIES):
            began = time.perf_counter()
            list(pool.map(lambda pair: numpy.copyto(*pair), pairs))
            best = min(best, time.perf_counter() - began)
    return 2 * _COPIED_BYTES * cores / best


def _devices() -> tuple[Device, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(Device(each.name, each.total_memory) for each in found)
