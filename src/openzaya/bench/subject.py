"""What is measured: a model, the executor that runs it, and the probe that says how fast its memory can be read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openzaya.bench.figures import seconds_of
from openzaya.bench.traffic import Weights, small_in_core, weights_of
from openzaya.engine.core.executor import CompiledExecutor
from openzaya.engine.core.library import STAGES
from openzaya.engine.core.products import Core, CoreUnavailable, supported_variants
from openzaya.engine.executor import Executor, TorchExecutor
from openzaya.engine.served import KV_DTYPES, Served, ServedContainer, ServedModel
from openzaya.engine.state import StatePool, pages_for
from openzaya.engine.torch_threads import torch_threads
from openzaya.model.checkpoint import load_model
from openzaya.model.config import ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.quantised.container import Container
from openzaya.model.quantised.header import is_container
from openzaya.model.quantised.scheme import Scheme
from openzaya.model.router import Router
from openzaya.model.storage import Archive

PROBE_BYTES = 512 << 20
"""Far more than any cache of a processor that people have."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Subject:
    """A model that runs, and what its steps read."""

    config: ZayaConfig
    served: Served
    weights: Weights
    probe: Callable[[], float]
    """Reads memory once, with the threads (or on the device) of the executor; bytes a second."""
    facts: dict[str, Any]
    """What ran, for the record: executor, scheme, threads, device, the probe."""

    def pool(self, tokens: int, slots: int) -> StatePool:
        """State for `slots` sequences and about `tokens` tokens in all."""
        small = self.served.pool(memory=1 << 28, slots=1)
        spare = 1 if small.filler else 0
        memory = (pages_for(tokens) + slots + spare) * small.page_bytes + (slots + spare) * small.slot_bytes
        del small
        return self.served.pool(memory=memory, slots=slots)

    def executor(self, pool: StatePool) -> Executor:
        return self.served.executor(pool)


@contextmanager
def open_subject(
    model: Path | ZayaForCausalLM,
    *,
    threads: int | None = None,
    variant: str | None = None,
    kv_dtype: str = "auto",
    device: str = "cpu",
    dtype: str = "auto",
) -> Iterator[Subject]:
    """A folder or a model in memory, on the executor that `Engine` would take for it.

    Quantised folders run in the compiled core on the CPU, and packed in torch elsewhere; everything else runs in torch.
    `threads` None measures how many pay in the core, and leaves torch's. Raises ValueError where the model cannot be
    read or run so, and CoreUnavailable where a quantised folder has no core to run in.
    """
    if kv_dtype not in KV_DTYPES:
        raise ValueError(f"kv_dtype is {kv_dtype!r}; it must be one of {', '.join(KV_DTYPES)}")
    with torch_threads(threads):
        if isinstance(model, Path) and is_container(Archive(model).metadata):
            container = Container(model)
            if device == "cpu":
                yield _compiled(ServedContainer(model, threads, KV_DTYPES[kv_dtype], variant))
                return
            loaded = load_model(model, device=device, dtype=dtype, packed=True)
            yield _in_torch(loaded, container.scheme)
            return
        if kv_dtype != "auto" or variant is not None:
            raise ValueError(
                f"kv_dtype {kv_dtype!r} and variant {variant!r} belong to the compiled core; quantise the model, or "
                "leave them out"
            )
        plain = model if isinstance(model, ZayaForCausalLM) else load_model(model, device=device, dtype=dtype)
        yield _in_torch(plain, None)


def _compiled(served: ServedContainer) -> Subject:
    core = served.core
    buffer = np.ones(PROBE_BYTES, dtype=np.uint8)
    for matrix in served.weights.matrices.values():
        core.read_bandwidth(matrix.codes)  # from disk, where it is not in memory yet
    return Subject(
        served.config,
        served,
        weights_of(served.config, served.scheme, 2, small=small_in_core(served.config)),
        lambda: core.read_bandwidth(buffer),
        {
            "executor": "compiled core",
            "scheme": str(served.scheme),
            "threads": core.threads,
            "variant": core.variant,
            "probe": f"a read of {PROBE_BYTES >> 20} MiB by the core's threads",
        },
    )


def _in_torch(model: ZayaForCausalLM, scheme: Scheme | None) -> Subject:
    weight = next(model.parameters())
    facts: dict[str, Any] = {
        "executor": "torch",
        "scheme": model.config.dtype if scheme is None else f"{scheme}, packed",
        "threads": torch.get_num_threads(),
        "device": "cpu" if weight.device.type == "cpu" else torch.cuda.get_device_name(weight.device),
    }
    probe, facts["probe"] = _torch_probe(weight.device, PROBE_BYTES)
    item = torch.finfo(torch.float32 if model.config.dtype == "float32" else torch.bfloat16).bits // 8
    return Subject(model.config, ServedModel(model), weights_of(model.config, scheme, item), probe, facts)


def _torch_probe(device: torch.device, size: int) -> tuple[Callable[[], float], str]:
    """The core's read with torch's threads where there is a core and memory is the processor's, else torch's sum."""
    if device.type == "cpu":
        try:
            supported_variants()
        except CoreUnavailable as error:
            _log.warning("%s; torch's own sum stands in for the probe", error)
        else:
            core, buffer = Core(threads=torch.get_num_threads()), np.ones(size, dtype=np.uint8)
            return lambda: core.read_bandwidth(buffer), f"a read of {size >> 20} MiB by the core with torch's threads"
    numbers = torch.ones(size // 4, dtype=torch.float32, device=device)

    def summed() -> float:
        float(numbers[0])  # what the device was given before is done by now
        return size / seconds_of(lambda: float(numbers.sum()))

    return summed, f"torch's sum of {size >> 20} MiB"


# ---- where the time went ----


@contextmanager
def timed_stages(executor: Executor) -> Iterator[dict[str, float]]:
    """Seconds by part of the steps in the block, once it has ended; nothing for an executor that does not tell."""
    spent: dict[str, float] = {}
    if not isinstance(executor, CompiledExecutor):
        yield spent
        return
    executor.stage_seconds = np.zeros(len(STAGES))
    try:
        yield spent
        spent.update(zip(STAGES, executor.stage_seconds.tolist()))
    finally:
        executor.stage_seconds = None


# ---- which experts were read ----


@contextmanager
def routed(executor: Executor) -> Iterator[list[np.ndarray]]:
    """The class of every token in every layer (L, T), a list entry a step of decoding, once the block has ended."""
    steps: list[np.ndarray] = []
    if isinstance(executor, CompiledExecutor):
        executor.routing = steps
        try:
            yield steps
        finally:
            executor.routing = None
        return
    assert isinstance(executor, TorchExecutor)
    routers = [module for module in executor.model.modules() if isinstance(module, Router)]
    seen: list[Tensor] = []
    static, executor.static = executor.static, None  # a graph that is replayed calls no hook
    hooks = [router.register_forward_hook(lambda _m, _a, output: seen.append(output[0])) for router in routers]
    try:
        yield steps
    finally:
        for hook in hooks:
            hook.remove()
        executor.static = static
        for first in range(0, len(seen), len(routers)):
            steps.append(np.stack([chosen.cpu().numpy() for chosen in seen[first : first + len(routers)]]))


def experts_read(steps: list[np.ndarray], experts: int) -> float:
    """Distinct experts of all layers that a step reads, the mean over steps; skipped tokens read none."""
    counts = [sum(len(np.unique(layer[layer < experts])) for layer in chosen_LT) for chosen_LT in steps]
    return float(np.mean(counts))
