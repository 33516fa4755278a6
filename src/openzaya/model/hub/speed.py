"""How long quantising will take here, by a moment of it."""

from __future__ import annotations

import time

import torch

from openzaya.model.config import ZayaConfig
from openzaya.model.info import model_info
from openzaya.model.quantised.packing import quantise
from openzaya.model.quantised.scheme import Scheme

_ROWS, _COLUMNS = 1024, 2048


def quantising_seconds(config: ZayaConfig, scheme: Scheme) -> float:
    """About the seconds that a model of this shape takes; 0 where it is too small to be worth a measurement."""
    total = model_info(config).total
    if total < 20 * _ROWS * _COLUMNS:
        return 0.0
    sample = torch.randn(_ROWS, _COLUMNS, generator=torch.Generator().manual_seed(0))
    quantise(sample[:32], scheme)  # What happens only once is not to be counted.
    began = time.perf_counter()
    quantise(sample, scheme)
    return total * (time.perf_counter() - began) / sample.numel()
