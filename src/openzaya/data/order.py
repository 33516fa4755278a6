"""Which examples a rank reads at a step: a pure function of (seed, step, rank, world size), so nothing of it is saved.

A step of the whole world is one slice of an endless sequence of shuffled passes over the data; ranks divide that slice.
A run that goes on with another world size therefore reads, step by step, what it would have read.
"""

from __future__ import annotations

from hashlib import blake2b

_ROUNDS = 8
"""Of the Feistel network; four already mix, and eight cost nothing beside reading an example."""


def shuffled(place: int, count: int, seed: int, epoch: int) -> int:
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


def step_examples(count: int, batch: int, seed: int, step: int) -> list[int]:
    """The `batch` examples, of `count`, that global step number `step` reads, in order; each once a pass.

    Raises ValueError for a count or a batch below one, and for a negative step.
    """
    if count < 1 or batch < 1:
        raise ValueError(f"{batch} of {count} examples cannot be drawn; give at least one of each")
    if step < 0:
        raise ValueError(f"step {step} does not exist; the first is 0")
    first = step * batch
    return [shuffled(place % count, count, seed, place // count) for place in range(first, first + batch)]


def rank_examples(count: int, batch: int, seed: int, step: int, rank: int, world_size: int) -> list[int]:
    """The share of `step_examples` that `rank` reads: every `world_size`-th of them; none where ranks outnumber them.

    Raises ValueError as `step_examples` does, and for a rank that the world does not have.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in a world of {world_size}; give 0 to {world_size - 1}")
    return step_examples(count, batch, seed, step)[rank::world_size]


def _feistel(value: int, half: int, key: str) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for round in range(_ROUNDS):
        digest = blake2b(f"{key}/{round}/{right}".encode(), digest_size=8).digest()
        left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
    return left << half | right
