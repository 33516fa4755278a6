from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.data.order import rank_examples, shuffled, step_examples

counts = st.integers(1, 70)
batches = st.integers(1, 40)
worlds = st.integers(1, 9)
seeds = st.integers(0, 1 << 32)


@given(counts, batches, seeds, st.integers(0, 1000), worlds)
def test_the_ranks_of_any_world_read_together_what_one_rank_reads(
    count: int, batch: int, seed: int, step: int, world: int
) -> None:
    shares = [rank_examples(count, batch, seed, step, rank, world) for rank in range(world)]
    assert sorted(index for share in shares for index in share) == sorted(rank_examples(count, batch, seed, step, 0, 1))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(counts, st.integers(1, 12), seeds, st.lists(worlds, min_size=1, max_size=12))
def test_a_run_whose_world_changes_at_every_step_reads_what_an_unchanged_one_reads(
    count: int, batch: int, seed: int, sizes: list[int]
) -> None:
    changing = [
        sorted(index for rank in range(world) for index in rank_examples(count, batch, seed, step, rank, world))
        for step, world in enumerate(sizes)
    ]
    assert changing == [sorted(step_examples(count, batch, seed, step)) for step in range(len(sizes))]


@given(counts, seeds, st.integers(0, 9))
def test_a_pass_reads_each_example_once(count: int, seed: int, epoch: int) -> None:
    assert sorted(shuffled(place, count, seed, epoch) for place in range(count)) == list(range(count))


@given(counts, batches, seeds)
def test_steps_go_through_whole_passes_one_after_the_other(count: int, batch: int, seed: int) -> None:
    read = [index for step in range(count) for index in step_examples(count, batch, seed, step)]
    for epoch in range(batch):
        assert sorted(read[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_the_order_depends_on_the_seed_and_on_the_pass_and_on_nothing_else() -> None:
    orders = {tuple(shuffled(place, 50, seed, epoch) for place in range(50)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert tuple(range(50)) not in orders
    # Of a run that was stopped, another machine or release must go on with the same examples.
    assert step_examples(1000, 6, seed=3, step=7) == [0, 0, 0, 0, 0, 0]


def test_each_example_comes_first_about_as_often() -> None:
    first = [shuffled(0, 8, seed, 0) for seed in range(800)]
    assert all(60 <= first.count(index) <= 140 for index in range(8))


def test_a_rank_outside_of_the_world_and_empty_data_are_refused() -> None:
    with pytest.raises(ValueError, match="rank 2 is not in a world of 2"):
        rank_examples(10, 4, 0, 0, 2, 2)
    with pytest.raises(ValueError, match="4 of 0 examples"):
        step_examples(0, 4, 0, 0)
    with pytest.raises(ValueError, match="step -1"):
        step_examples(10, 4, 0, -1)
