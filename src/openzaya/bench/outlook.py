"""What of a model fits a machine in each way of keeping its weights, and about how fast it would decode. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openzaya.bench.traffic import small_in_core, step_traffic, weights_of
from openzaya.model.config import ZayaConfig
from openzaya.model.info import ITEM_BYTES, model_info, sequence_bytes
from openzaya.model.quantised.matrices import check_shapes, container_bytes
from openzaya.model.quantised.scheme import SCHEMES, Scheme

SHARE_IN_CORE, SHARE_IN_TORCH = 0.65, 0.2
"""Of the bandwidth that one row gets, cautiously: `openzaya bench decode` measures it."""
SEQUENCE = 16384
"""Tokens of the sequences that are counted: a candidate of the presets with what it has read."""
_CACHED_BYTES = 128e6
"""Weights below this may live in the caches of a processor: then its memory does not bound the speed."""
_EMPTY_CONTEXT = 0


@dataclass(frozen=True, slots=True)
class Outlook:
    """One way of keeping the weights. None stands for what is not known, or cannot be."""

    scheme: str
    group: int | None
    refusal: str | None
    """Why the model cannot be kept so, in one sentence; then the rest is None."""
    executor: str = ""
    disk_bytes: int | None = None
    memory_bytes: int | None = None
    sequence_tokens: int | None = None
    sequence_bytes: int | None = None
    fits: bool | None = None
    """Whether weights and one sequence of `sequence_tokens` do."""
    sequences: int | None = None
    """How many of them have room beside the weights."""
    tokens_a_second: float | None = None
    """An estimate for one sequence with little context."""


def outlooks(config: ZayaConfig, *, available_bytes: int | None, bytes_a_second: float, core: bool) -> list[Outlook]:
    """Plain bfloat16 first, then the schemes from fine to coarse.

    `bytes_a_second` is a measured read of memory, `core` whether the compiled core is there; without it quantised
    weights run in torch, dequantised.
    """
    return [_outlook(config, scheme, available_bytes, bytes_a_second, core) for scheme in _ways()]


def outlooks_on_gpu(config: ZayaConfig, name: str, memory_bytes: int) -> list[Outlook]:
    """The same for a GPU of so much memory, where quantised weights stay packed; schemes that refuse are left out.

    Its speed is not estimated: no share of a GPU's bandwidth has been measured yet.
    """
    found = []
    for scheme in _ways():
        try:
            if scheme is not None:
                check_shapes(config, scheme)
        except ValueError:
            continue
        weights = weights_of(config, scheme, 2)
        label, group = ("bfloat16", None) if scheme is None else (scheme.name, scheme.group)
        disk = container_bytes(config, scheme, 2) if scheme else model_info(config).weight_bytes["bfloat16"]
        length = min(SEQUENCE, config.max_position_embeddings)
        memory, sequence = weights.total(config), sequence_bytes(config, length, "bfloat16")
        room = memory_bytes - memory
        found.append(
            Outlook(
                label, group, None, f"torch on {name}", disk, memory, length, sequence, room >= sequence,
                max(0, room // sequence),
            )
        )  # fmt: skip
    return found


def _ways() -> Sequence[Scheme | None]:
    return (None, *sorted(SCHEMES, key=lambda scheme: (-int(scheme.name[1:]), scheme.group or 0)))


def _outlook(config: ZayaConfig, scheme: Scheme | None, available: int | None, bandwidth: float, core: bool) -> Outlook:
    name, group = ("bfloat16", None) if scheme is None else (scheme.name, scheme.group)
    disk = model_info(config).weight_bytes["bfloat16"]
    if scheme is not None:
        try:
            check_shapes(config, scheme)
        except ValueError as error:
            return Outlook(name, group, str(error))
        disk = container_bytes(config, scheme, ITEM_BYTES.get(config.dtype, 2))
    compiled = core and scheme is not None
    # The core keeps the small tensors, and keys and values, in float32.
    weights = weights_of(config, scheme, 2, small=small_in_core(config)) if compiled else weights_of(config, None, 2)
    state = "float32" if compiled else "bfloat16"
    length = min(SEQUENCE, config.max_position_embeddings)
    memory, sequence = weights.total(config), sequence_bytes(config, length, state)
    room = None if available is None else available - memory
    read = step_traffic(
        config, weights, rows=1, context=_EMPTY_CONTEXT, experts=config.num_hidden_layers, vector_bytes=0
    )
    share = SHARE_IN_CORE if compiled else SHARE_IN_TORCH
    return Outlook(
        name,
        group,
        None,
        "core" if compiled else "torch",
        disk,
        memory,
        length,
        sequence,
        None if room is None else room >= sequence,
        None if room is None else max(0, room // sequence),
        bandwidth * share / read.total if memory > _CACHED_BYTES else None,
    )
