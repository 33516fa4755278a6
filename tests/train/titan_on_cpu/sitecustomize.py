"""What torchtitan 0.3.0 takes for granted and a machine without a GPU lacks; Python reads this at its start.

It imports Triton kernels without asking (Triton is not among its dependencies), and where there is no accelerator it
assumes CUDA.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace

import torch


class Absent(ModuleType):
    """A module whose every name is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class Processor:
    """The calls that torchtitan makes of `torch.cuda`."""

    set_device = synchronize = empty_cache = reset_peak_memory_stats = staticmethod(lambda *_arguments: None)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    memory_stats = staticmethod(lambda *_arguments: {})
    get_device_name = staticmethod(lambda *_arguments: "processor")
    get_device_properties = staticmethod(lambda *_arguments: SimpleNamespace(total_memory=1 << 30))


sys.modules["torchtitan.distributed.minimal_async_ep.kernels"] = Absent("kernels")
torch._utils._get_available_device_type = lambda: "cpu"
torch._utils._get_device_module = lambda _kind: Processor

if os.environ.get("LOCAL_RANK") is not None:
    import openzaya.train.muon as muon

    # Newton-Schulz iterations in bfloat16 would tell sums in another order apart.
    muon.iteration_dtype = lambda _device: torch.float32
