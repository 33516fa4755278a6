"""How fast a device multiplies large matrices: what utilisation is measured against, probed in the same run."""

from __future__ import annotations

import time

import torch

_SIZES = {"cpu": 1024, "cuda": 8192}
_SECONDS, _FEWEST = 0.1, 5


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second (a multiply and an add are two) of the best of several large square products."""
    return max(product_speeds(device, dtype, _SECONDS))


def product_speeds(device: torch.device, dtype: torch.dtype, seconds: float) -> list[float]:
    """Operations a second of each of the large square products that fit into about `seconds`, five at least."""
    size = _SIZES.get(device.type, _SIZES["cuda"])
    # Random numbers, since a GPU multiplies equal ones with less power and so faster; from a generator of their own.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    _settle(left @ right)  # the first one loads libraries and chooses a kernel
    speeds: list[float] = []
    ends = time.perf_counter() + seconds
    while len(speeds) < _FEWEST or time.perf_counter() < ends:
        began = time.perf_counter()
        _settle(left @ right)
        speeds.append(2.0 * size**3 / (time.perf_counter() - began))
    return speeds


def _settle(product: torch.Tensor) -> None:
    product[0, 0].item()  # waits for the device
