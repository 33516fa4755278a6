"""The header of a shard that is still on the hub: enough to check a checkpoint before any of its weights are here."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from openzaya.model.hub.listing import HubFile, Listing
from openzaya.model.hub.transfer import read_range

_FIRST_READ = 1 << 16
_LONGEST = 100_000_000
"""Bytes of a header that the safetensors library accepts."""


class ShardHeader:
    """Stands for a safetensors file in an `Archive` until the file is there: names, shapes and types, no values."""

    def __init__(self, name: str, header: Mapping[str, Any]) -> None:
        self.name = name
        self._metadata: Mapping[str, str] = header.get("__metadata__", {})
        self._tensors = {key: entry for key, entry in header.items() if key != "__metadata__"}

    def keys(self) -> list[str]:
        return list(self._tensors)

    def metadata(self) -> Mapping[str, str]:
        return self._metadata

    def get_slice(self, name: str) -> TensorHeader:
        return TensorHeader(self._tensors[name])

    def get_tensor(self, name: str) -> Tensor:
        raise RuntimeError(f"{name} was read before {self.name} was there")


class TensorHeader:
    """What the header says of one tensor."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self._entry = entry

    def get_shape(self) -> list[int]:
        return list(self._entry["shape"])

    def get_dtype(self) -> str:
        return str(self._entry["dtype"])


def read_shard_header(listing: Listing, file: HubFile) -> ShardHeader:
    """The header of a shard on the hub. Raises ValueError where it is no safetensors file, or as `told` does."""
    first = read_range(listing, file, 0, min(file.size, _FIRST_READ))
    broken = f"{file.name} of {listing.repository} is no whole safetensors file; tell its author, or give another model"
    if len(first) < 8:
        raise ValueError(broken)
    (length,) = struct.unpack("<Q", first[:8])
    if not 0 < length <= min(_LONGEST, file.size - 8):
        raise ValueError(broken)
    text = first[8 : 8 + length]
    if len(text) < length:
        text += read_range(listing, file, len(first), 8 + length)
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(broken) from None
    if whole != file.size:
        raise ValueError(broken)
    return ShardHeader(file.name, header)
