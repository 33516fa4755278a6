"""Where the model's Triton kernels take the place of the torch forms, which say what they compute."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor


def has_kernels(x: Tensor) -> bool:
    """Whether work on `x` is done by the kernels that train: on a GPU (CUDA or ROCm) that has Triton."""
    return x.device.type == "cuda" and x.dtype != torch.float64 and importlib.util.find_spec("triton") is not None
