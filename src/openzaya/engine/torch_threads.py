"""How many threads torch computes with: a setting of the whole process, borrowed and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Have torch compute with `count` threads inside, for the whole process, and as before afterwards; None leaves it.

    Sums in another number of threads round differently, so a setting that outlived its owner would change what
    everything after it computes.
    """
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
