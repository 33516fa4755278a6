"""Everything random in a run, derived from its seed: no two rollouts share a seed of their own."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence


def derive_seed(seed: int, round: int, index: int, purpose: str = "rollout") -> int:
    """A seed below 2**63 for one place of a run, unrelated to the seeds of every other place and purpose."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{round}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_tails(usable: Sequence[int], count: int, seed: int, round: int, index: int) -> tuple[int, ...]:
    """Which tails one candidate reads: `count` of the usable places, uniformly without replacement.

    With fewer usable than `count` it reads all of them. The order is random too, so that no place in the prompt is
    always the same candidate's.
    """
    generator = random.Random(derive_seed(seed, round, index, "tails"))
    return tuple(generator.sample(list(usable), min(count, len(usable))))


def draw_one(places: Sequence[int], seed: int) -> int:
    """One of the places, uniformly."""
    return random.Random(derive_seed(seed, 0, 0, "selection")).choice(list(places))
