"""Everything random in a run, derived from its seed: no two rollouts share a seed of their own."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence


def derive_seed(seed: int, round: int, index: int, purpose: str = "rollout") -> int:
    """A seed below 2**63 for one place of a run, unrelated to the seeds of every other place and purpose."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{round}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_tails(usable: Sequence[int], count: int, seed: int, round: int, index: int) -> tuple[int, ...]:
    """Which tails one candidate reads: `count` of the usable places, uniformly without replacement.

    With fewer usable than `count` it reads all of them.
    """
    generator = random.Random(derive_seed(seed, round, index, "tails"))
    return tuple(generator.sample(list(usable), min(count, len(usable))))


def order_to_share(drawn: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The same tails for each candidate of a round, in an order in which their prompts begin alike.

    In what order a candidate reads its tails is free, and what several prompts begin with an engine computes once. The
    tail that most candidates read comes first for all of them; so again among those, for what they read besides, and
    among the others.
    """
    ordered: list[tuple[int, ...]] = [()] * len(drawn)

    def arrange(left: list[tuple[int, frozenset[int]]], begun: tuple[int, ...]) -> None:
        while left:
            readers = Counter(tail for _, tails in left for tail in tails)
            if not readers:
                for place, _ in left:
                    ordered[place] = begun
                return
            favourite = min(readers, key=lambda tail: (-readers[tail], tail))
            arrange([(place, tails - {favourite}) for place, tails in left if favourite in tails], (*begun, favourite))
            left = [(place, tails) for place, tails in left if favourite not in tails]

    arrange([(place, frozenset(tails)) for place, tails in enumerate(drawn)], ())
    return ordered


def draw_one(places: Sequence[int], seed: int) -> int:
    """One of the places, uniformly."""
    return random.Random(derive_seed(seed, 0, 0, "selection")).choice(list(places))
