"""Batches that all ranks can compute together: as many on each, with rows that split evenly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from openzaya.data.packing import Batch
from openzaya.train.sharding.meshes import Meshes

Values = TypeVar("Values", np.int64, np.bool_)


def evened(batches: Sequence[Batch], meshes: Meshes, history: int, device: torch.device) -> list[Batch]:
    """`batches` with padding behind rows that do not split evenly, and empty ones where another rank has more."""
    most = int(meshes.most(torch.tensor(len(batches), device=device)))
    parts = meshes.degrees.context
    least = max(1, history) if parts > 1 else 1
    rows = [padded(batch, parts, least) for batch in batches]
    return rows + [_empty(parts * least)] * (most - len(rows))


def padded(batch: Batch, parts: int, least: int = 1) -> Batch:
    """`batch` with rows of a multiple of `parts`, each part with at least `least` places."""
    length = batch.input_ids.shape[1]
    more = max(parts * least, -(-length // parts) * parts) - length
    if parts == 1 or more == 0:
        return batch

    def longer(values: NDArray[Values], fill: int) -> NDArray[Values]:
        return np.pad(values, ((0, 0), (0, more)), constant_values=fill)

    return Batch(
        longer(batch.input_ids, 0),
        longer(batch.targets, 0),
        longer(batch.learned, 0),
        longer(batch.real, 0),
        None if batch.document_ids is None else longer(batch.document_ids, -1),
    )


def _empty(length: int) -> Batch:
    """One row of padding, from which nothing is learned."""
    ids, no = np.zeros((1, length), dtype=np.int64), np.zeros((1, length), dtype=np.bool_)
    return Batch(ids, ids, no, no, ids - 1)
