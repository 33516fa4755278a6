"""How fast this rank multiplies, while all others do the same: shared power and cooling show only then."""

from __future__ import annotations

import statistics

import torch

from openzaya.train.peak import product_speeds


def product_speed(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Operations a second of the median of large square products, repeated for about `seconds`."""
    return statistics.median(product_speeds(device, dtype, seconds))


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
