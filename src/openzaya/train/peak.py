"""How fast a device multiplies large matrices: what utilisation is measured against, probed in the same run."""

from __future__ import annotations

import time

import torch

SIZES = {"cpu": 1024, "cuda": 8192}
_SECONDS = 0.1


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second (a multiply and an add are two) of the best of several large square products."""
    size = SIZES.get(device.type, SIZES["cuda"])
    # Random numbers, since a GPU multiplies equal ones with less power and so faster; from a generator of their own.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    fastest, began, rounds = float("inf"), time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - began < _SECONDS:
        start = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for the device
        fastest, rounds = min(fastest, time.perf_counter() - start), rounds + 1
    return 2.0 * size**3 / fastest
