"""What this machine has: cores, memory, devices, and how fast its memory is. Measured or read, never guessed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from openzaya.memory import memory_bytes

_READ_BYTES = 64 << 20
"""For each core: far beyond its caches."""
_TRIES = 5


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
    """How fast all cores together go through memory."""
    probe: str
    """What went through it."""
    no_core: str | None
    """Why the compiled core is not there; None where it is."""
    torch: str | None
    """Its version, None where it is not installed."""
    devices: tuple[Device, ...]


def this_machine() -> Machine:
    """Look around; takes some tenths of a second, the import of torch where it is installed, and once some seconds to
    compile the core where no installation brought it."""
    cores = _cores()
    speed, probe, no_core = _read_speed(cores)
    memory, available = memory_bytes()
    has_torch = importlib.util.find_spec("torch") is not None
    return Machine(
        cores,
        memory,
        available,
        speed,
        probe,
        no_core,
        importlib.metadata.version("torch") if has_torch else None,
        _devices() if has_torch else (),
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_speed(cores: int) -> tuple[float, str, str | None]:
    """Bytes a second while every core reads, the best of a few tries; what did it; and why there is no core, if so."""
    import numpy

    from openzaya.engine.core.library import CoreUnavailable
    from openzaya.engine.core.products import Core

    try:
        with Core(threads=cores) as core:
            memory = numpy.ones(_READ_BYTES * cores, dtype="uint8")
            return max(core.read_bandwidth(memory) for _ in range(_TRIES)), "a read", None
    except CoreUnavailable as error:
        return _copy_speed(cores), "a copy", str(error)


def _copy_speed(cores: int) -> float:
    """Bytes read and written a second while every core copies; the best of a few tries."""
    import numpy

    pairs = [(numpy.ones(_READ_BYTES, dtype="uint8"), numpy.ones(_READ_BYTES, dtype="uint8")) for _ in range(cores)]
    best = float("inf")
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(_TRIES):
            began = time.perf_counter()
            list(pool.map(lambda pair: numpy.copyto(*pair), pairs))
            best = min(best, time.perf_counter() - began)
    return 2 * _READ_BYTES * cores / best


def _devices() -> tuple[Device, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(Device(each.name, each.total_memory) for each in found)
