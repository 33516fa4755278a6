"""How fast this rank multiplies, while all others do the same: shared power and cooling show only then."""

from __future__ import annotations

import statistics
import time

import torch

_SIZES = {"cpu": 1024, "cuda": 8192}
_FEWEST = 5


def product_speed(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """FLOPs a second of the median of large square products of random matrices, repeated for about `seconds`."""
    size = _SIZES.get(device.type, _SIZES["cuda"])
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    torch.mm(left, right)  # the first one loads libraries and chooses a kernel
    wait(device)
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < _FEWEST or time.perf_counter() < ends:
        began = time.perf_counter()
        torch.mm(left, right)
        wait(device)
        times.append(time.perf_counter() - began)
    return 2.0 * size**3 / statistics.median(times)


def wait(device: torch.device) -> None:
    """Until an accelerator has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_free(device: torch.device) -> int | None:
    """Bytes that are free on the device; None where nothing tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    from openzaya.memory import memory_bytes

    return memory_bytes()[1]
