"""Where the tokens of a step stand: several sequences, one after the other.

T tokens, Q sequences, U slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openzaya.engine.core import library
from openzaya.engine.core.products import address

_COMPARED_PAGES = 8


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Which sequence and which place in it each token has, and which pages its sequence has."""

    sequence_of_T: np.ndarray
    firsts_Q: np.ndarray
    """First token of each sequence, and the number of all tokens after them."""
    slots_Q: np.ndarray
    positions_T: np.ndarray
    tables: np.ndarray
    """Pages of each slot (U, pages a slot)."""
    order_T: np.ndarray
    """The tokens, those that share pages being neighbours."""
    pages: int
    """Pages up to the furthest token."""

    @classmethod
    def of(
        cls, slots_Q: np.ndarray, counts_Q: np.ndarray, starts_Q: np.ndarray, tables: np.ndarray, page: int
    ) -> Batch:
        """`counts_Q` new tokens follow the `starts_Q` first ones of each slot; `page` is the tokens of a page."""
        sequence_of_T = np.repeat(np.arange(len(slots_Q), dtype=np.int32), counts_Q)
        firsts_Q = np.zeros(len(slots_Q) + 1, dtype=np.int32)
        np.cumsum(counts_Q, out=firsts_Q[1:])
        positions_T = np.arange(firsts_Q[-1]) - firsts_Q[sequence_of_T] + starts_Q[sequence_of_T]
        pages = int(positions_T.max()) // page + 1
        # By their first pages, which is where sequences of one prompt are alike; a sequence's own tokens stay together.
        held_Q = tables[slots_Q, : min(pages, _COMPARED_PAGES)]
        rank_Q = np.empty(len(slots_Q), dtype=np.int64)
        rank_Q[np.lexsort(held_Q.T[::-1])] = np.arange(len(slots_Q))
        order_T = np.argsort(rank_Q[sequence_of_T], kind="stable").astype(np.int32)
        return cls(
            sequence_of_T, firsts_Q, slots_Q.astype(np.int32), positions_T.astype(np.int64), tables, order_T, pages
        )

    @property
    def tokens(self) -> int:
        return len(self.positions_T)

    def stored(self) -> library.Batch:
        return library.Batch(
            self.tokens, len(self.slots_Q), self.pages, self.tables.shape[1], address(self.sequence_of_T),
            address(self.firsts_Q), address(self.slots_Q), address(self.positions_T), address(self.tables),
            address(self.order_T),
        )  # fmt: skip
