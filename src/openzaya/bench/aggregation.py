"""The prompts of an aggregation round, and what of them is shared. Arithmetic only.

Each of N candidates reads C tails of the round before, after one question. In what order it reads them is free, so
candidates that read some of the same can read those first: what they then begin with is computed once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Tails = tuple[int, ...]
"""Places of tails, in the order in which they are read."""


def order_to_share(drawn: Sequence[Sequence[int]]) -> list[Tails]:
    """The same tails for each candidate, in an order in which beginnings are alike.

    The tail that most candidates read comes first for all of them; so again among those, for what they read besides,
    and among the others.
    """
    ordered: list[Tails] = [()] * len(drawn)

    def arrange(left: list[tuple[int, frozenset[int]]], begun: Tails) -> None:
        while left:
            readers = Counter(tail for _, tails in left for tail in tails)
            if not readers:
                for place, _ in left:
                    ordered[place] = begun
                return
            favourite = min(readers, key=lambda tail: (-readers[tail], tail))
            reading = [(place, tails - {favourite}) for place, tails in left if favourite in tails]
            arrange(reading, (*begun, favourite))
            left = [(place, tails) for place, tails in left if favourite not in tails]

    arrange([(place, frozenset(tails)) for place, tails in enumerate(drawn)], ())
    return ordered


def shared_beginnings(orders: Sequence[Tails]) -> list[Tails]:
    """The beginnings that two candidates or more have in common, shorter ones first.

    One that all of its readers continue alike is left out: the longer one is what they share.
    """
    readers = Counter(order[:length] for order in orders for length in range(len(order) + 1))
    return sorted(
        (
            beginning
            for beginning, count in readers.items()
            if count > 1
            and not any(
                len(other) == len(beginning) + 1 and other[:-1] == beginning and readers[other] == count
                for other in readers
            )
        ),
        key=lambda beginning: (len(beginning), beginning),
    )


def tails_computed(orders: Sequence[Tails]) -> int:
    """How many tails are computed where every beginning is computed once."""
    return len({order[:length] for order in orders for length in range(1, len(order) + 1)})
