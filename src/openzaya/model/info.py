"""What a ZAYA of a given shape weighs and keeps: parameters, weight bytes, state bytes. Arithmetic only, no torch.

The published figures come out: ZAYA1-8B has 8.303 B parameters without its embedding, 0.754 B of them active, and keeps
40,960 bytes a token of keys and values in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from openzaya.model.config import ZayaConfig
from openzaya.model.names import expected_tensors

ITEM_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Sizes of one model; bytes of state are for keys, values and state in one dtype."""

    total: int
    """Elements of all tensors, balancing biases included."""
    embedding: int
    """Of which embedding and head, which published counts leave out."""
    without_embedding: int
    active: int
    """Of `without_embedding`, what one token passes through: one expert a layer, and everything else."""
    parts: Mapping[str, int]
    weight_bytes: Mapping[str, int]
    """By dtype; balancing biases are float32 in each."""
    key_value_bytes_per_token: int
    """In all layers; a sliding layer stops growing at its window, which `sequence_bytes` takes into account."""
    state_bytes_per_sequence: int
    """Convolution columns and delayed values, whatever the length."""


def model_info(config: ZayaConfig, dtype: str = "bfloat16") -> ModelInfo:
    """Sizes of a model of shape `config`, its state kept in `dtype`; raises ValueError for an unknown dtype."""
    item = _item_bytes(dtype)
    tensors = expected_tensors(config).values()
    parts: dict[str, int] = {}
    for tensor in tensors:
        parts[tensor.part] = parts.get(tensor.part, 0) + tensor.elements
    total = sum(parts.values())
    embedding = parts["embedding"] + parts.get("head", 0)
    idle_experts = parts["experts"] // config.num_experts * (config.num_experts - 1)
    biases = sum(tensor.elements for tensor in tensors if tensor.float32)
    return ModelInfo(
        total=total,
        embedding=embedding,
        without_embedding=total - embedding,
        active=total - embedding - idle_experts,
        parts=parts,
        weight_bytes={name: (total - biases) * size + biases * 4 for name, size in ITEM_BYTES.items()},
        key_value_bytes_per_token=config.num_hidden_layers * _key_value_elements(config) * item,
        state_bytes_per_sequence=config.num_hidden_layers * _state_elements(config) * item,
    )


def sequence_bytes(config: ZayaConfig, length: int, dtype: str = "bfloat16") -> int:
    """Bytes that one sequence of `length` tokens needs to be continued, sliding layers holding their window only."""
    item = _item_bytes(dtype)
    windows = (config.window(layer) for layer in range(config.num_hidden_layers))
    kept = sum(length if window is None else min(length, window) for window in windows)
    return (kept * _key_value_elements(config) + config.num_hidden_layers * _state_elements(config)) * item


def _key_value_elements(config: ZayaConfig) -> int:
    """Of one token in one layer."""
    return 2 * config.key_value_size


def _state_elements(config: ZayaConfig) -> int:
    """Of one sequence in one layer: columns before the convolutions and half a value."""
    return config.convolution_history * config.convolution_channels + config.key_value_size // 2


def _item_bytes(dtype: str) -> int:
    if dtype not in ITEM_BYTES:
        raise ValueError(f"dtype is {dtype!r}; sizes are known for {', '.join(ITEM_BYTES)}")
    return ITEM_BYTES[dtype]
