"""Which folder an engine runs for the name of a model."""

from __future__ import annotations

from pathlib import Path

from openzaya.engine.core.plan import refusal
from openzaya.engine.served import ExecutorName
from openzaya.engine.sizes import parse_bytes
from openzaya.model.checkpoint import find_model
from openzaya.model.config import ZayaConfig
from openzaya.model.hub.journey import Journey
from openzaya.model.hub.kept import quantised_model
from openzaya.model.hub.listing import is_hub_id
from openzaya.model.hub.plan import MemoryNeed
from openzaya.model.info import model_info


def find_weights(
    model: str | Path,
    *,
    executor: ExecutorName = "auto",
    dtype: str = "auto",
    device: str = "cpu",
    packed: bool = False,
    memory: int | str = "4GiB",
    journey: Journey | None = None,
    offline: bool = False,
) -> Path:
    """The folder of `model`, after a download where it is a hub id; the other options are those of `Engine`.

    On the CPU a model of the hub is run quantised, and kept so (`quantised_model`), unless a dtype or the torch
    executor is asked for: then, and on other devices, its plain weights are downloaded. Raises ValueError as
    `find_model` and `quantised_model` do.
    """
    in_core = executor == "compiled" or (executor == "auto" and dtype == "auto" and device == "cpu")
    quantised = packed or in_core
    if not quantised or not is_hub_id(model):
        return find_model(model)
    state = parse_bytes(memory)

    def need(config: ZayaConfig, size: int) -> MemoryNeed:
        if packed:
            return MemoryNeed(size, state)
        return _need_in_the_core(config, size, state, executor, dtype)

    return quantised_model(str(model), journey=journey, offline=offline, need=need)


def _need_in_the_core(config: ZayaConfig, size: int, state: int, executor: ExecutorName, dtype: str) -> MemoryNeed:
    """What running takes; in torch, where there is no core, weights are held unpacked."""
    from openzaya.engine.core.library import CoreUnavailable, load

    try:
        load()
    except CoreUnavailable as error:
        if executor == "compiled":
            raise ValueError(str(error)) from None
        unpacked = model_info(config).weight_bytes[config.dtype if dtype == "auto" else dtype]
        return MemoryNeed(unpacked, state, f"unpacked, since {error}")
    if message := refusal(config):
        raise ValueError(message)
    return MemoryNeed(size, state)
