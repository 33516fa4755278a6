"""How many threads torch computes with: a setting of the whole process, borrowed and given back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Reentrant, because a borrower may be collected, and give back, at any allocation inside.
_lock = threading.RLock()
_asked: dict[object, int] = {}
"""Counts in force, the latest last."""
_own = 0
"""What torch had before the first of them."""


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Have torch compute with `count` threads inside, for the whole process, and as before afterwards; None leaves it.

    Of several at once, which may end in any order, the latest that goes on decides. Sums in another number of threads
    round differently, so a setting that outlived its owner would change what everything after it computes. Raises
    ValueError for less than one.
    """
    global _own
    if count is None:
        yield
        return
    if count < 1:
        raise ValueError(f"threads is {count}; it must be at least 1, or None for torch's own choice")
    borrower = object()
    with _lock:
        if not _asked:
            _own = torch.get_num_threads()
        _asked[borrower] = count
        torch.set_num_threads(count)
    try:
        yield
    finally:
        with _lock:
            del _asked[borrower]
            torch.set_num_threads([_own, *_asked.values()][-1])
