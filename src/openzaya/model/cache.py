"""What a sequence keeps while it is decoded: keys and values, a few pre-convolution columns, one delayed value.

B batch, S new tokens, T slots, K key-value heads, C head channels, Z convolution channels, P earlier columns,
V delayed value channels (K * C / 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from openzaya.model.config import ZayaConfig
from openzaya.model.numerics import HF, Numerics


class Cache(Protocol):
    """What the model asks of a cache, whatever its storage; the engine's paged one answers the same calls.

    A forward over S new tokens calls `positions` and `mask` once, then `state`, `update_state` and `update` in every
    layer; the caller ends the step with `advance` (or its own equivalent).
    """

    def positions(self, length: int) -> Tensor:
        """Positions of the next `length` tokens, (B, S)."""
        ...

    def tokens(self, length: int) -> Tensor | None:
        """(B, S), False where one of the next `length` tokens is padding; None where none is."""
        ...

    def mask(self, length: int, window: int | None) -> Tensor | None:
        """(B, 1, S, T), True where a new token may look; None where that is plain causal over T = S."""
        ...

    def state(self, layer: int) -> tuple[Tensor, Tensor]:
        """Columns (B, P, Z) and delayed value (B, V) before the new tokens; valid until `update_state`."""
        ...

    def update_state(self, layer: int, columns_BSZ: Tensor, delayed_BSV: Tensor) -> None:
        """Append the new tokens' columns and keep their last delayed value."""
        ...

    def update(self, layer: int, keys_BKSC: Tensor, values_BKSC: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values and return all of them, (B, K, T, C)."""
        ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A place that a cache can return to: its length and the state that later tokens overwrite."""

    length: int
    columns: Tensor
    delayed: Tensor


class DecodeCache:
    """A dense cache for a batch of sequences that advance together, perhaps left-padded.

    ZAYA1-8B keeps 40 KiB a token for keys and values in bfloat16, and 210 KiB a sequence for the rest.
    """

    def __init__(
        self,
        config: ZayaConfig,
        batch: int,
        *,
        padding: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        numerics: Numerics = HF,
        capacity: int = 64,
    ) -> None:
        """`padding` (B) counts the padded places in front of each sequence of the first input."""
        layers, heads, channels = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        state = numerics.state_dtype(dtype)
        self.length = 0
        self.padding = padding
        self.keys = torch.zeros(layers, batch, heads, capacity, channels, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.columns = torch.zeros(
            layers, batch, config.convolution_history, config.convolution_channels, dtype=state, device=device
        )
        self.delayed = torch.zeros(layers, batch, config.key_value_size // 2, dtype=state, device=device)

    @property
    def batch(self) -> int:
        return self.keys.shape[1]

    def positions(self, length: int) -> Tensor:
        slots_S = torch.arange(self.length, self.length + length, device=self.keys.device)
        if self.padding is None:
            return slots_S.expand(self.batch, length)
        return (slots_S[None] - self.padding[:, None]).clamp_min(0)

    def tokens(self, length: int) -> Tensor | None:
        if self.padding is None:
            return None
        slots_S = torch.arange(self.length, self.length + length, device=self.keys.device)
        return slots_S[None] >= self.padding[:, None]

    def mask(self, length: int, window: int | None) -> Tensor | None:
        total = self.length + length
        if self.padding is None and self.length == 0 and (window is None or window >= length):
            return None
        query_S = torch.arange(self.length, total, device=self.keys.device)[:, None]
        key_T = torch.arange(total, device=self.keys.device)[None]
        mask_ST = key_T <= query_S
        if window is not None:
            mask_ST = mask_ST & (query_S - key_T < window)
        if self.padding is None:
            return mask_ST.expand(self.batch, 1, length, total)
        seen_BST = mask_ST & (key_T >= self.padding[:, None])[:, None]
        return (seen_BST | (key_T == query_S))[:, None]

    def state(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.columns[layer], self.delayed[layer]

    def update_state(self, layer: int, columns_BSZ: Tensor, delayed_BSV: Tensor) -> None:
        past = self.columns.shape[2]
        joined = torch.cat([self.columns[layer], columns_BSZ.to(self.columns.dtype)], dim=1)
        self.columns[layer] = joined[:, joined.shape[1] - past :]
        self.delayed[layer] = delayed_BSV[:, -1].to(self.delayed.dtype)

    def update(self, layer: int, keys_BKSC: Tensor, values_BKSC: Tensor) -> tuple[Tensor, Tensor]:
        total = self.length + keys_BKSC.shape[2]
        if total > self.keys.shape[3]:
            self._grow(max(total, 2 * self.keys.shape[3]))
        self.keys[layer, :, :, self.length : total] = keys_BKSC
        self.values[layer, :, :, self.length : total] = values_BKSC
        return self.keys[layer, :, :, :total], self.values[layer, :, :, :total]

    def advance(self, length: int) -> None:
        """Count the tokens of the forward that just ran."""
        self.length += length

    def _grow(self, capacity: int) -> None:
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:3], capacity, old.shape[4])
            new[:, :, :, : self.length] = old[:, :, :, : self.length]
            setattr(self, name, new)

    # ---- snapshot, rollback, fork ----

    def snapshot(self) -> Snapshot:
        """Remember this place; keys and values need no copy, since later tokens are only appended."""
        return Snapshot(self.length, self.columns.clone(), self.delayed.clone())

    def rollback(self, snapshot: Snapshot) -> None:
        """Return to `snapshot`, taken of this cache; raises ValueError where the cache is shorter than that."""
        if snapshot.length > self.length:
            raise ValueError(f"the snapshot is of length {snapshot.length} but the cache holds {self.length} tokens")
        self.length = snapshot.length
        self.columns, self.delayed = snapshot.columns.clone(), snapshot.delayed.clone()

    def fork(self, rollouts: int) -> DecodeCache:
        """`rollouts` copies of each sequence side by side (one prefill, N rollouts)."""
        return self.select(torch.arange(self.batch, device=self.keys.device).repeat_interleave(rollouts))

    def select(self, rows: Tensor) -> DecodeCache:
        """A cache of the given rows, in that order, repeats allowed."""
        chosen = DecodeCache.__new__(DecodeCache)
        chosen.length = self.length
        chosen.padding = None if self.padding is None else self.padding[rows]
        chosen.keys, chosen.values = self.keys[:, rows], self.values[:, rows]
        chosen.columns, chosen.delayed = self.columns[:, rows], self.delayed[:, rows]
        return chosen
