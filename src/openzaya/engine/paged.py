"""The model's cache protocol over a `StatePool`: one view for decoding rows, one for chunks of prompts.

B rows, S new tokens, T keys, K key-value heads, G query heads a key-value head, C head channels, Z convolution
channels, P earlier columns, V delayed value channels; N pages of a segment, W rows that share each of them, E the
`PAGE` places of a page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openzaya.engine.state import PAGE, StatePool, pages_for

_SPARSE = 2.5
"""A range of the pool with this many times the pages wanted is read page by page, not as a whole."""


class OneToken:
    """One new token a row, whatever the rows' lengths: where it is written, and the state before it.

    How its query attends to the pages of its row is `_attend`, which each kind of view has its own.
    """

    def __init__(self, pool: StatePool, slots_B: Tensor, lengths_B: Tensor, pages_B: Tensor) -> None:
        """On the pool's device, integers of 64 bits; `pages_B` are those that the new tokens go to."""
        self._pool, self._slots_B, self._lengths_B = pool, slots_B, lengths_B
        self._pages_B, self._places_B = pages_B, lengths_B % PAGE
        self._stand_in = torch.ones(len(slots_B), 1, 1, 1, dtype=torch.bool, device=pool.device)

    def positions(self, length: int) -> Tensor:
        return self._lengths_B[:, None]

    def tokens(self, length: int) -> Tensor | None:
        return None

    def mask(self, length: int, window: int | None) -> Tensor | None:
        # What is seen is the affair of `_attend`; the model only learns that attention is not plainly causal.
        return self._stand_in

    def state(self, layer: int) -> tuple[Tensor, Tensor]:
        columns_UPZ, delayed_UV = self._pool.columns[layer], self._pool.delayed[layer]
        return columns_UPZ.index_select(0, self._slots_B), delayed_UV.index_select(0, self._slots_B)

    def update_state(self, layer: int, columns_BSZ: Tensor, delayed_BSV: Tensor) -> None:
        columns_UPZ, delayed_UV = self._pool.columns[layer], self._pool.delayed[layer]
        joined = torch.cat([columns_UPZ.index_select(0, self._slots_B), columns_BSZ.to(columns_UPZ.dtype)], dim=1)
        columns_UPZ.index_copy_(0, self._slots_B, joined[:, 1:])
        delayed_UV.index_copy_(0, self._slots_B, delayed_BSV[:, 0].to(delayed_UV.dtype))

    def update(self, layer: int, keys_BKSC: Tensor, values_BKSC: Tensor) -> tuple[Any, Any]:
        self._pool.keys[layer][self._pages_B, :, self._places_B] = keys_BKSC[:, :, 0]
        self._pool.values[layer][self._pages_B, :, self._places_B] = values_BKSC[:, :, 0]
        stored = PagedKeys(lambda q_BKGC: self._attend(layer, q_BKGC), keys_BKSC.shape)
        return stored, stored

    def _attend(self, layer: int, q_BKGC: Tensor) -> Tensor:
        raise NotImplementedError


class DecodeView(OneToken):
    """Attention visits each page once, where it lies in the pool: keys are not gathered into a dense block, no short
    row is padded to a long one, and a page that several rows share is read once for all of them.
    """

    def __init__(self, pool: StatePool, slots_B: np.ndarray) -> None:
        """Each of `slots_B` must have room reserved for one more token."""
        lengths_B = pool.lengths[slots_B]
        pages_B = pool.tables[slots_B, lengths_B // PAGE].astype(np.int64)
        on_device = (torch.from_numpy(values).to(pool.device) for values in (slots_B, lengths_B, pages_B))
        super().__init__(pool, *on_device)
        tables = pool.tables[slots_B, : pages_for(int(lengths_B.max()) + 1)]
        self._segments = [segment.on(pool.device, lengths_B) for segment in segments_of(tables, lengths_B + 1)]

    def _attend(self, layer: int, q_BKGC: Tensor) -> Tensor:
        """Softmax attention over the pages of every row; each segment first gives its part, then all are joined."""
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        window = self._pool.config.window(layer)
        parts = [(segment, segment.scores(q_BKGC, keys, window)) for segment in self._segments]
        highest_BKG = torch.full(q_BKGC.shape[:3], float("-inf"), dtype=torch.float32, device=q_BKGC.device)
        for segment, scores in parts:
            segment.raise_to_highest(highest_BKG, scores)
        weight_BKG = torch.zeros_like(highest_BKG)
        mixed_BKGC = torch.zeros(q_BKGC.shape, dtype=torch.float32, device=q_BKGC.device)
        for segment, scores in parts:
            segment.add_weighted(weight_BKG, mixed_BKGC, scores, highest_BKG, values)
        return (mixed_BKGC / weight_BKG[..., None]).to(q_BKGC.dtype)


class PagedKeys:
    """Stands for keys and values that stay in the pool: torch hands it the attention over them.

    What torch calls a tensor-like: a torch function given one calls `__torch_function__` instead of computing. It
    answers `scaled_dot_product_attention` alone, which is all that the model does with what `Cache.update` returns.
    """

    def __init__(self, attend: Callable[[Tensor], Tensor], shape: Sequence[int]) -> None:
        self._attend = attend
        self.shape = shape

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is not F.scaled_dot_product_attention:
            return NotImplemented
        query_BKGC, keys, _values = args
        return keys._attend(query_BKGC)


# ---- segments: pages that are attended to together ----


@dataclass(slots=True, eq=False)
class Segment:
    """Pages that the same number of rows read, at most; `rows_NW` is -1 where a page has fewer readers."""

    pages_N: np.ndarray | slice
    firsts_N: np.ndarray
    """Position of each page's first token; the same for all rows that share the page."""
    rows_NW: np.ndarray
    pages: Tensor | slice = field(default_factory=lambda: slice(0))
    readers: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    """The rows, (N * W), with 0 for -1."""
    lasts_N1W: np.ndarray = field(default_factory=lambda: np.empty(0))
    biases: dict[int | None, Tensor] = field(default_factory=dict)

    def on(self, device: torch.device, lasts_B: np.ndarray) -> Segment:
        """Ready for use on `device`; `lasts_B` is the position of each row's newest token."""
        readers = np.maximum(self.rows_NW, 0)
        # A place that no row reads is after every newest token.
        self.lasts_N1W = np.where(self.rows_NW < 0, -1, lasts_B[readers])
        self.readers = torch.from_numpy(readers.reshape(-1)).to(device)
        self.pages = self.pages_N if isinstance(self.pages_N, slice) else torch.from_numpy(self.pages_N).to(device)
        return self

    def bias(self, window: int | None) -> Tensor:
        """(N, 1, W, 1, E): 0 where the row may look, minus infinity elsewhere."""
        if window not in self.biases:
            places_N1E = self.firsts_N[:, None, None] + np.arange(PAGE)
            last = self.lasts_N1W[:, :, None]
            seen_NWE = places_N1E <= last
            if window is not None:
                seen_NWE &= last - places_N1E < window
            bias = torch.from_numpy(np.where(seen_NWE, np.float32(0), np.float32("-inf")))
            self.biases[window] = bias.to(self.readers.device)[:, None, :, None, :]
        return self.biases[window]

    def scores(self, q_BKGC: Tensor, keys: Tensor, window: int | None) -> Tensor:
        """(N, K, W, G, E) in float32."""
        pages, width = self.rows_NW.shape
        _, heads, group, channels = q_BKGC.shape
        q = (q_BKGC * channels**-0.5).index_select(0, self.readers)
        q = q.view(pages, width, heads, group, channels).transpose(1, 2).reshape(pages, heads, -1, channels)
        scores = torch.matmul(q, self._of(keys).transpose(-1, -2)).float()
        return scores.view(pages, heads, width, group, PAGE).add_(self.bias(window))

    def raise_to_highest(self, highest_BKG: Tensor, scores: Tensor) -> None:
        own = self._by_reader(scores.amax(dim=-1))
        index = self.readers[:, None, None].expand_as(own)
        highest_BKG.scatter_reduce_(0, index, own, "amax")

    def add_weighted(
        self, weight_BKG: Tensor, mixed_BKGC: Tensor, scores: Tensor, highest_BKG: Tensor, values: Tensor
    ) -> None:
        pages, heads, width, group, _ = scores.shape
        highest = highest_BKG.index_select(0, self.readers).view(pages, width, heads, group).transpose(1, 2)
        weights = scores.sub_(highest[..., None]).exp_()
        weight_BKG.index_add_(0, self.readers, self._by_reader(weights.sum(dim=-1)))
        values = self._of(values)
        mixed = torch.matmul(weights.view(pages, heads, width * group, PAGE).to(values.dtype), values)
        mixed = mixed.view(pages, heads, width, group, -1)
        mixed_BKGC.index_add_(0, self.readers, self._by_reader(mixed).float())

    def _of(self, stored: Tensor) -> Tensor:
        return stored[self.pages] if isinstance(self.pages, slice) else stored.index_select(0, self.pages)

    def _by_reader(self, tensor: Tensor) -> Tensor:
        """(N, K, W, ...) to (N * W, K, ...)."""
        return tensor.transpose(1, 2).flatten(0, 1)


def segments_of(tables: np.ndarray, lengths_B: np.ndarray) -> Iterator[Segment]:
    """The pages that rows of `lengths_B` tokens hold by their page tables, grouped by how many rows hold each.

    Pages of one row form one segment; shared pages are grouped by the next power of two of their number of rows.
    """
    counts_B = -(-lengths_B // PAGE)
    places = np.arange(counts_B.max())
    held = places < counts_B[:, None]
    rows, places = np.nonzero(held)
    pages = tables[:, : held.shape[1]][held].astype(np.int64)
    holders = np.bincount(pages)
    shared = holders[pages] > 1
    if not shared.all():
        yield _own_pages(pages[~shared], places[~shared] * PAGE, rows[~shared])
    if shared.any():
        yield from _shared_pages(pages[shared], places[shared] * PAGE, rows[shared])


def _own_pages(pages: np.ndarray, firsts: np.ndarray, rows: np.ndarray) -> Segment:
    low, high = int(pages.min()), int(pages.max()) + 1
    if high - low > _SPARSE * len(pages):
        return Segment(pages, firsts, rows[:, None])
    # Reading a few pages for nothing is cheaper than copying those wanted.
    all_firsts = np.zeros(high - low, dtype=np.int64)
    all_rows = np.full(high - low, -1, dtype=np.int64)
    all_firsts[pages - low], all_rows[pages - low] = firsts, rows
    return Segment(slice(low, high), all_firsts, all_rows[:, None])


def _shared_pages(pages: np.ndarray, firsts: np.ndarray, rows: np.ndarray) -> Iterator[Segment]:
    order = np.argsort(pages, kind="stable")
    unique, starts, counts = np.unique(pages[order], return_index=True, return_counts=True)
    widths = 2 ** np.ceil(np.log2(counts)).astype(np.int64)
    for width in np.unique(widths):
        chosen = np.nonzero(widths == width)[0]
        index = starts[chosen, None] + np.arange(width)
        present = np.arange(width) < counts[chosen, None]
        rows_NW = np.where(present, rows[order][np.where(present, index, 0)], -1)
        yield Segment(unique[chosen], firsts[order][starts[chosen]], rows_NW)


# ---- chunks of prompts ----


class PrefillView:
    """Chunks of prompts, one a row, shorter ones padded on the right.

    Padding follows every real token, so no real token sees it: pads are neither stored nor counted.
    """

    def __init__(self, pool: StatePool, slots_B: np.ndarray, counts_B: np.ndarray) -> None:
        """`counts_B` new tokens follow in each of `slots_B`, which must have room reserved for them."""
        self._pool = pool
        starts_B = pool.lengths[slots_B]
        longest = int(counts_B.max())
        real_BS = np.arange(longest) < counts_B[:, None]
        rows, columns = np.nonzero(real_BS)
        positions = starts_B[rows] + columns
        self._fresh = not starts_B.any()
        self._slots_B = torch.from_numpy(slots_B).to(pool.device)
        self._starts_B = torch.from_numpy(starts_B).to(pool.device)
        self._counts_B = torch.from_numpy(counts_B).to(pool.device)
        self._real_BS = torch.from_numpy(real_BS).to(pool.device)
        self._padded = not real_BS.all()
        pages = pool.tables[slots_B[rows], positions // PAGE].astype(np.int64)
        self._pages = torch.from_numpy(pages).to(pool.device)
        self._places = torch.from_numpy(positions % PAGE).to(pool.device)
        # Places beyond a row's own pages repeat page 0; only its padding looks there.
        held = pages_for(int((starts_B + counts_B).max()))
        own = np.arange(held) < pool.page_counts[slots_B][:, None]
        tables = np.where(own, pool.tables[slots_B, :held], 0).astype(np.int64)
        self._tables = torch.from_numpy(tables).to(pool.device)

    def positions(self, length: int) -> Tensor:
        return self._starts_B[:, None] + torch.arange(length, device=self._starts_B.device)

    def tokens(self, length: int) -> Tensor | None:
        return self._real_BS if self._padded else None

    def mask(self, length: int, window: int | None) -> Tensor | None:
        if self._fresh and (window is None or window >= length):
            return None
        keys = length if self._fresh else self._tables.shape[1] * PAGE
        query_BS1 = self.positions(length)[:, :, None]
        key_T = torch.arange(keys, device=query_BS1.device)
        mask_BST = key_T <= query_BS1
        if window is not None:
            mask_BST = mask_BST & (query_BS1 - key_T < window)
        return mask_BST[:, None]

    def state(self, layer: int) -> tuple[Tensor, Tensor]:
        columns_UPZ, delayed_UV = self._pool.columns[layer], self._pool.delayed[layer]
        return columns_UPZ.index_select(0, self._slots_B), delayed_UV.index_select(0, self._slots_B)

    def update_state(self, layer: int, columns_BSZ: Tensor, delayed_BSV: Tensor) -> None:
        columns_UPZ, delayed_UV = self._pool.columns[layer], self._pool.delayed[layer]
        joined = torch.cat([columns_UPZ.index_select(0, self._slots_B), columns_BSZ.to(columns_UPZ.dtype)], dim=1)
        rows_B1 = torch.arange(len(self._slots_B), device=joined.device)[:, None]
        last_P = self._counts_B[:, None] + torch.arange(columns_UPZ.shape[1], device=joined.device)
        columns_UPZ.index_copy_(0, self._slots_B, joined[rows_B1, last_P])
        last_delayed = delayed_BSV[rows_B1[:, 0], self._counts_B - 1]
        delayed_UV.index_copy_(0, self._slots_B, last_delayed.to(delayed_UV.dtype))

    def update(self, layer: int, keys_BKSC: Tensor, values_BKSC: Tensor) -> tuple[Tensor, Tensor]:
        return self._store(self._pool.keys[layer], keys_BKSC), self._store(self._pool.values[layer], values_BKSC)

    def _store(self, stored: Tensor, new_BKSC: Tensor) -> Tensor:
        stored[self._pages, :, self._places] = new_BKSC.transpose(1, 2)[self._real_BS]
        if self._fresh:
            return new_BKSC
        held_BKNEC = stored[self._tables].transpose(1, 2)
        return held_BKNEC.flatten(2, 3)
