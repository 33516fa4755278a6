"""Which rows a step reads: a pure function of (seed, step, rank, world size), so nothing of it is saved.

A corpus is an endless sequence of shuffled passes over its rows. A mixture is one endless sequence of rows that takes
from them by weight, exactly at every moment. A step of the whole world is a slice of it that ranks divide: a run that
goes on with another world size therefore reads, step by step, what it would have read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import blake2b

_ROUNDS = 8
"""Of the Feistel network; four already mix, and eight cost nothing beside reading an example."""


def shuffled(place: int, count: int, seed: int | str, epoch: int) -> int:
    """The example at `place` of pass number `epoch` over `count` examples: a permutation that is never stored.

    Raises ValueError for a place outside of the pass.
    """
    if not 0 <= place < count:
        raise ValueError(f"place {place} is outside of a pass over {count} examples; give 0 to {count - 1}")
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    # A Feistel network permutes 2 * half bits; walking on from what lies outside of `count` permutes the rest.
    while True:
        place = _feistel(place, half, f"{seed}/{epoch}")
        if place < count:
            return place


@dataclass(frozen=True)
class Interleaving:
    """An endless sequence of names, each with a place in a sequence of its own, by weight.

    Of the first n, for every n, a name of weight w has its share n * w / sum(weights) to within half of one for each
    name. Names come in an order that does not depend on the order of `weights`. Raises ValueError for no weights and
    for one that is not above zero.
    """

    weights: Mapping[str, float]
    _ratios: dict[str, Fraction] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # As written, because 0.1 + 0.2 is to be 0.3.
        exact = {name: Fraction(str(weight)) for name, weight in self.weights.items()}
        if not exact or min(exact.values()) <= 0:
            raise ValueError(f"the weights are {dict(self.weights)}; give at least one, each above 0")
        left = sum(exact.values(), Fraction())
        for name in sorted(exact, key=lambda name: (-exact[name], name)):
            self._ratios[name] = exact[name] / left
            left -= exact[name]

    def counts(self, first: int) -> dict[str, int]:
        """How many of the `first` so many each name has."""
        counts = {}
        # Each name takes its share, rounded, of what those before it left: such counts never fall as `first` grows.
        for name, ratio in self._ratios.items():
            counts[name] = (2 * first * ratio.numerator + ratio.denominator) // (2 * ratio.denominator)
            first -= counts[name]
        return counts

    def at(self, place: int) -> tuple[str, int]:
        """The name at a place, and its place in the name's own sequence."""
        before, after = self.counts(place), self.counts(place + 1)
        name = next(name for name in before if after[name] > before[name])
        return name, before[name]


def rank_places(batch: int, seed: int, step: int, rank: int = 0, ranks: int = 1) -> list[int]:
    """The places in the sequence of all rows that `rank` reads at `step`, of the `batch` rows of the whole world.

    They are dealt out at random, because a mixture repeats in patterns. A rank gets none where ranks outnumber rows.
    Raises ValueError for a batch below one, a negative step and a rank that the world does not have.
    """
    if batch < 1:
        raise ValueError(f"a batch of {batch} rows holds nothing; give at least 1")
    if step < 0:
        raise ValueError(f"step {step} does not exist; the first is 0")
    if not 0 <= rank < ranks:
        raise ValueError(f"rank {rank} is not in a world of {ranks}; give 0 to {ranks - 1}")
    return [step * batch + shuffled(place, batch, f"deal/{seed}", step) for place in range(rank, batch, ranks)]


def _feistel(value: int, half: int, key: str) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for round in range(_ROUNDS):
        digest = blake2b(f"{key}/{round}/{right}".encode(), digest_size=8).digest()
        left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
    return left << half | right
