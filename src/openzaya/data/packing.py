"""Whole examples packed into rows by best-fit decreasing (ZAYA1-8B report, section IV-A): nothing is ever cut."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from openzaya.data.examples import Example


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the examples in each row; no row is longer than `capacity`.

    Longest first, each into the fullest row that still has room. Raises ValueError for an example that fits no row.
    """
    rows: list[list[int]] = []
    # Rows by their free places, the first made first, and the numbers of free places that some row has, sorted: there
    # are never more of those than lengths, however many rows there are.
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"an example of {length} tokens does not fit a row of {capacity}")
        place = bisect_left(rooms, length)
        if place == len(rooms):
            row, free = len(rows), capacity
            rows.append([])
        else:
            free = rooms[place]
            row = heappop(with_room[free])
            if not with_room[free]:
                del with_room[free]
                rooms.pop(place)
        rows[row].append(index)
        free -= length
        if free not in with_room:
            with_room[free] = []
            insort(rooms, free)
        heappush(with_room[free], row)
    return rows


@dataclass(frozen=True, slots=True)
class PackingReport:
    """How full rows of `capacity` places are."""

    examples: int
    tokens: int
    rows: int
    capacity: int

    @property
    def efficiency(self) -> float:
        """Places that hold a token, of all."""
        return self.tokens / (self.rows * self.capacity) if self.rows else 1.0

    @property
    def fewest_rows(self) -> int:
        """No packing of whole examples takes fewer rows than their tokens fill."""
        return -(-self.tokens // self.capacity)

    def __str__(self) -> str:
        return (
            f"{self.examples} examples of {self.tokens} tokens in {self.rows} rows of {self.capacity} "
            f"(at least {self.fewest_rows}; one a row would be {self.examples}): {self.efficiency:.1%} full"
        )


def packing_report(lengths: Sequence[int], rows: Sequence[Sequence[int]], capacity: int) -> PackingReport:
    """How well `rows`, indices into `lengths` as `best_fit_decreasing` gives them, use their places."""
    packed = [lengths[index] for row in rows for index in row]
    return PackingReport(len(packed), sum(packed), len(rows), capacity)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of packed examples, (B, S): the input, what follows each place, and whether that is learned."""

    input_ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    learned: NDArray[np.bool_]
    real: NDArray[np.bool_]
    """False at padding."""
    document_ids: NDArray[np.int64] | None
    """None where each row holds one example: padding follows it and nothing reads that."""

    @property
    def learned_tokens(self) -> int:
        return int(self.learned.sum())

    @property
    def tokens(self) -> int:
        return self.input_ids.size


def make_batch(rows: Sequence[Sequence[Example]], width: int | None = None) -> Batch:
    """Lay the examples of each row one behind the other, padded to the longest row, or to `width`.

    Padding is a document of its own, so that nothing reads it.
    """
    if width is None:
        width = max(sum(len(example) for example in row) for row in rows)
    shape = (len(rows), width)
    input_ids, targets = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    learned, document_ids = np.zeros(shape, dtype=np.bool_), np.full(shape, -1, dtype=np.int64)
    for row, examples in enumerate(rows):
        start = 0
        for document, example in enumerate(examples):
            end = start + len(example)
            input_ids[row, start:end] = example.ids
            targets[row, start : end - 1] = example.ids[1:]
            learned[row, start : end - 1] = example.learned[1:]
            document_ids[row, start:end] = document
            start = end
    single = all(len(examples) == 1 for examples in rows)
    return Batch(input_ids, targets, learned, document_ids >= 0, None if single else document_ids)
