"""What an engine serves: weights, the state that they need, and the executor that computes with them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, Protocol

import torch

from openzaya.engine.executor import Executor, TorchExecutor
from openzaya.engine.state import StatePool
from openzaya.model.checkpoint import load_model
from openzaya.model.config import ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.quantised.container import Container
from openzaya.model.quantised.header import is_container
from openzaya.model.storage import Archive

ExecutorName = Literal["auto", "compiled", "torch"]
EXECUTORS: tuple[ExecutorName, ...] = ("auto", "compiled", "torch")
KVType = Literal["auto", "float32", "float16", "int8"]
KV_DTYPES: dict[str, torch.dtype] = {
    "auto": torch.float16, "float32": torch.float32, "float16": torch.float16, "int8": torch.int8,
}  # fmt: skip
"""Of the core. Float16 changes scores less than weights of 8 bits do (`benchmarks/quantised.py`), in half the bytes."""

_log = logging.getLogger(__name__)


class Served(Protocol):
    """Weights in use."""

    config: ZayaConfig

    def pool(self, *, memory: int, slots: int) -> StatePool:
        """State of sequences in `memory` bytes; raises ValueError where they are too few."""
        ...

    def executor(self, pool: StatePool) -> Executor:
        """Raises ValueError for a pool of another type than `pool` gives."""
        ...

    def changed(self) -> bool:
        """Whether the weights were changed in place since this was asked before."""
        ...


class ServedModel:
    """A model in torch, computed with as it is."""

    def __init__(self, model: ZayaForCausalLM) -> None:
        self.config, self._model = model.config, model
        self._versions = _versions(model)

    def pool(self, *, memory: int, slots: int) -> StatePool:
        weight = self._model.model.embed_tokens.weight
        return StatePool(
            self.config,
            memory=memory,
            slots=slots,
            dtype=weight.dtype,
            device=weight.device,
            numerics=self._model.numerics,
        )

    def executor(self, pool: StatePool) -> Executor:
        weight = self._model.model.embed_tokens.weight
        if (pool.keys.dtype, pool.device) != (weight.dtype, weight.device):
            raise ValueError(
                f"the model is {weight.dtype} on {weight.device}, the engine is {pool.keys.dtype} on {pool.device}; "
                "load it like the engine's model, or make a new Engine for it"
            )
        return TorchExecutor(self._model, pool)

    def changed(self) -> bool:
        before, self._versions = self._versions, _versions(self._model)
        return before != self._versions


class ServedContainer:
    """A folder of quantised weights, computed with in the compiled core, straight from the mapped file."""

    def __init__(
        self, folder: str | Path, threads: int | None, kv_dtype: torch.dtype, variant: str | None = None
    ) -> None:
        """`threads` of the core, None measures how many pay; `variant` is its instruction set, None the best one.

        Raises CoreUnavailable where there is no core or it cannot run a model of this shape, and ValueError for a
        folder that is damaged.
        """
        from openzaya.engine.core.opening import weights_of
        from openzaya.engine.core.plan import refusal
        from openzaya.engine.core.products import Core, CoreUnavailable

        container = Container(folder)
        if message := refusal(container.config):
            raise CoreUnavailable(message)
        self.core = Core(threads=threads, variant=variant)
        self.weights = weights_of(container)
        self.config, self.scheme, self._kv_dtype = container.config, container.scheme, kv_dtype

    def pool(self, *, memory: int, slots: int) -> StatePool:
        return StatePool(self.config, memory=memory, slots=slots, kv=self._kv_dtype)

    def executor(self, pool: StatePool) -> Executor:
        from openzaya.engine.core.executor import CompiledExecutor

        return CompiledExecutor(self.weights, pool, self.core)

    def changed(self) -> bool:
        return False


def serve_folder(
    folder: Path,
    *,
    executor: ExecutorName,
    threads: int | None,
    kv_dtype: str,
    packed: bool,
    dtype: str,
    device: str,
    numerics: str,
) -> Served:
    """The weights in `folder` on the executor asked for.

    "auto" is the compiled core for quantised weights on the CPU, unless a type is asked for (the core computes in
    float32), and torch for everything else. Where there is no core for the model, torch takes over and the log says so,
    unless `kv_dtype` asks for the core. Raises ValueError where the model cannot be read, and where what is asked for
    cannot run it.
    """
    if executor not in EXECUTORS:
        raise ValueError(f"executor is {executor!r}; it must be one of {', '.join(EXECUTORS)}")
    if kv_dtype not in KV_DTYPES:
        raise ValueError(f"kv_dtype is {kv_dtype!r}; it must be one of {', '.join(KV_DTYPES)}")
    quantised = is_container(Archive(folder).metadata)
    fits = quantised and not packed and device == "cpu" and dtype in ("auto", "float32")
    if executor == "compiled" and not fits:
        raise ValueError(
            f"the compiled core runs quantised weights on the CPU in float32; {folder} is "
            f"{'quantised' if quantised else 'not quantised (openzaya quantize does it)'}, device is {device!r}, dtype "
            f"{dtype!r} and packed {packed}; change them or take the torch executor"
        )
    if executor == "compiled" or (executor == "auto" and fits and dtype == "auto"):
        from openzaya.engine.core.library import CoreUnavailable

        try:
            return ServedContainer(folder, threads, KV_DTYPES[kv_dtype])
        except CoreUnavailable as error:
            if executor == "compiled" or kv_dtype != "auto":
                raise ValueError(f"{error}; or leave executor and kv_dtype at 'auto' to go on in torch") from error
            _log.warning("%s; going on in torch, which takes more memory and time", error)
    if kv_dtype != "auto":
        raise ValueError(
            f"kv_dtype {kv_dtype!r} needs the compiled core, and {folder} runs in torch; leave it at 'auto'"
        )
    return ServedModel(load_model(folder, dtype=dtype, device=device, numerics=numerics, packed=packed))


def _versions(model: ZayaForCausalLM) -> list[int]:
    """How often each tensor of `model` was changed in place; inference tensors never are."""
    tensors = [*model.parameters(), *model.buffers()]
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]
