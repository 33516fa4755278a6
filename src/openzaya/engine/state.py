"""What all running sequences keep, in one block of memory of a stated size.

Keys and values live in pages of `PAGE` tokens that sequences of one prompt share; the few convolution columns and the
delayed value of a sequence cannot be rebuilt from keys and values, so every sequence has its own, in a slot.

L layers, N pages, U slots, K key-value heads, C head channels, P earlier columns, Z convolution channels, V delayed
value channels.
"""

from __future__ import annotations

import heapq

import numpy as np
import torch

from openzaya.model.config import ZayaConfig
from openzaya.model.numerics import HF, Numerics

PAGE = 32
"""Tokens of one page: longer pages waste more of a sequence's last one, shorter ones make slow matrix products."""

SCALE_BYTES = 4
"""What a vector of int8 has after its codes: a float32."""

_CLEARED_AT_ONCE = 256


class StatePool:
    """Pages and slots, handed out and counted.

    A slot names a sequence: its page table, its length in tokens and its state. Full pages are never written again, so
    several slots may hold one; the page that a sequence still fills is always its own.
    """

    def __init__(
        self,
        config: ZayaConfig,
        *,
        memory: int,
        slots: int,
        dtype: torch.dtype = torch.float32,
        kv: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        numerics: Numerics = HF,
        filler: bool = False,
    ) -> None:
        """`memory` bounds pages and slots together, in bytes. Raises ValueError where it holds not one page.

        `kv` is the type of keys and values where it is not `dtype`, for an executor that reads such pages: int8 codes,
        of whole fours of channels, have the bytes of their float32 scales behind them. `filler` adds a page and a slot
        that no sequence gets, after the others, for rows that only fill up a batch of fixed size.
        """
        layers, heads, channels = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        state_dtype = numerics.state_dtype(dtype)
        state_size = config.convolution_history * config.convolution_channels + config.key_value_size // 2
        self.config = config
        self.memory = memory
        kv = kv or dtype
        vector = channels + (-channels % 4 + SCALE_BYTES if kv == torch.int8 else 0)
        self.page_bytes = 2 * layers * heads * PAGE * vector * kv.itemsize
        self.slot_bytes = layers * state_size * state_dtype.itemsize
        self.pages_a_slot = pages_for(config.max_position_embeddings)
        self.slots = slots
        self.filler = filler
        memory -= filler * (self.slot_bytes + self.page_bytes)
        self.pages = min((memory - slots * self.slot_bytes) // self.page_bytes, slots * self.pages_a_slot)
        if self.pages < 1:
            raise ValueError(
                f"memory is {self.memory:,} bytes, but the state of {slots} sequences takes "
                f"{slots * self.slot_bytes:,} and one page of {PAGE} tokens {self.page_bytes:,}; give more memory or a "
                "smaller max_batch"
            )
        # Uninitialised on purpose: an operating system commits what is touched, so an idle engine takes little.
        self.keys = torch.empty(layers, self.pages + filler, heads, PAGE, vector, dtype=kv, device=device)
        self.values = torch.empty_like(self.keys)
        self.keys[:, self.pages :] = 0
        self.values[:, self.pages :] = 0
        self.columns = torch.zeros(
            layers, slots + filler, config.convolution_history, config.convolution_channels, dtype=state_dtype,
            device=device,
        )  # fmt: skip
        self.delayed = torch.zeros(layers, slots + filler, config.key_value_size // 2, dtype=state_dtype, device=device)

        self.lengths = np.zeros(slots, dtype=np.int64)
        """Tokens that each slot holds."""
        self.tables = np.zeros((slots, self.pages_a_slot), dtype=np.int32)
        """Pages of each slot, in order; only the first `page_counts` entries count."""
        self.page_counts = np.zeros(slots, dtype=np.int64)
        self._references = np.zeros(self.pages, dtype=np.int32)
        self._free_slots = list(range(slots))
        # The lowest free page first keeps pages in use together, which is what attention over a range of them wants.
        self._returned_pages: list[int] = []
        self._never_used = 0
        self._cleared = 0

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def tokens(self) -> int:
        """The most tokens that the pages hold."""
        return self.pages * PAGE

    @property
    def free_pages(self) -> int:
        return self.pages - self._never_used + len(self._returned_pages)

    @property
    def free_slots(self) -> int:
        return len(self._free_slots)

    def open(self) -> int | None:
        """A slot for a new sequence, with no token in it; None where all are taken."""
        if not self._free_slots:
            return None
        slot = heapq.heappop(self._free_slots)
        self.columns[:, slot] = 0
        self.delayed[:, slot] = 0
        return slot

    def reserve(self, slot: int, length: int) -> bool:
        """Give `slot` pages for `length` tokens in all; False, and nothing changes, where too few are free."""
        have = int(self.page_counts[slot])
        missing = pages_for(length) - have
        if missing <= 0:
            return True
        if missing > self.free_pages:
            return False
        self.tables[slot, have : have + missing] = [self._take_page() for _ in range(missing)]
        self.page_counts[slot] = have + missing
        return True

    def fork(self, slot: int) -> int | None:
        """A second sequence that begins as `slot` does: full pages are shared, the last one and the state copied.

        None, and nothing changes, where no slot is free or no page for the copy.
        """
        length = int(self.lengths[slot])
        full, partial = divmod(length, PAGE)
        if not self._free_slots or (partial and not self.free_pages):
            return None
        twin = heapq.heappop(self._free_slots)
        shared = self.tables[slot, :full]
        self.tables[twin, :full] = shared
        self._references[shared] += 1
        self.page_counts[twin] = full
        if partial:
            original, copy = int(self.tables[slot, full]), self._take_page()
            self.keys[:, copy] = self.keys[:, original]
            self.values[:, copy] = self.values[:, original]
            self.tables[twin, full] = copy
            self.page_counts[twin] += 1
        self.columns[:, twin] = self.columns[:, slot]
        self.delayed[:, twin] = self.delayed[:, slot]
        self.lengths[twin] = length
        return twin

    def close(self, slot: int) -> None:
        """Give back a slot, and every page that no other slot holds."""
        held = self.tables[slot, : self.page_counts[slot]]
        self._references[held] -= 1
        for page in held[self._references[held] == 0].tolist():
            heapq.heappush(self._returned_pages, page)
        self.page_counts[slot] = self.lengths[slot] = 0
        heapq.heappush(self._free_slots, slot)

    def _take_page(self) -> int:
        if self._returned_pages:
            page = heapq.heappop(self._returned_pages)
        else:
            page = self._never_used
            self._never_used += 1
            if page >= self._cleared:
                # Places that no token fills yet are multiplied by zero, so they must hold finite numbers.
                end = min(self.pages, page + _CLEARED_AT_ONCE)
                self.keys[:, page:end] = 0
                self.values[:, page:end] = 0
                self._cleared = end
        self._references[page] = 1
        return page


def pages_for(tokens: int) -> int:
    """Pages that `tokens` tokens take."""
    return -(-tokens // PAGE)
