from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.data.order import Interleaving, rank_places, shuffled

counts = st.integers(1, 70)
batches = st.integers(1, 40)
worlds = st.integers(1, 9)
seeds = st.integers(0, 1 << 32)
mixtures = st.dictionaries(
    st.sampled_from("abcdefg"), st.one_of(st.integers(1, 50), st.floats(0.001, 1.0)), min_size=1, max_size=7
)


@given(batches, seeds, st.integers(0, 1000), worlds)
def test_the_ranks_of_any_world_read_together_the_rows_of_the_step(
    batch: int, seed: int, step: int, world: int
) -> None:
    shares = [rank_places(batch, seed, step, rank, world) for rank in range(world)]
    together = sorted(place for share in shares for place in share)
    assert together == list(range(step * batch, (step + 1) * batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_ranks_are_not_dealt_the_pattern_of_a_mixture() -> None:
    mixture = Interleaving({"a": 1, "b": 1})
    first_rank = {mixture.at(place)[0] for step in range(4) for place in rank_places(8, 0, step, 0, 2)}
    assert first_rank == {"a", "b"}


@given(counts, seeds, st.integers(0, 9))
def test_a_pass_reads_each_example_once(count: int, seed: int, epoch: int) -> None:
    assert sorted(shuffled(place, count, seed, epoch) for place in range(count)) == list(range(count))


def test_the_order_depends_on_the_seed_and_on_the_pass_and_on_nothing_else() -> None:
    orders = {tuple(shuffled(place, 50, seed, epoch) for place in range(50)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert tuple(range(50)) not in orders
    # Of a run that was stopped, another machine or release must go on with the same examples.
    assert [shuffled(place, 1000, 3, 7) for place in range(6)] == [122, 947, 656, 267, 386, 24]


def test_each_example_comes_first_about_as_often() -> None:
    first = [shuffled(0, 8, seed, 0) for seed in range(800)]
    assert all(60 <= first.count(index) <= 140 for index in range(8))


@given(mixtures, st.integers(0, 10**13))
def test_at_every_moment_each_corpus_has_its_share(weights: dict[str, float], place: int) -> None:
    found = Interleaving(weights).counts(place)
    exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
    assert sum(found.values()) == place
    for name, weight in exact.items():
        assert abs(found[name] - place * weight / sum(exact.values())) <= Fraction(len(weights), 2)


@given(mixtures, st.integers(0, 10**12))
def test_each_corpus_is_taken_from_in_order_and_none_is_skipped(weights: dict[str, float], first: int) -> None:
    mixture = Interleaving(weights)
    expected = mixture.counts(first)
    for place in range(first, first + 30):
        name, number = mixture.at(place)
        assert number == expected[name]
        expected[name] += 1
    assert expected == mixture.counts(first + 30)


def test_weights_mean_the_same_however_they_are_written() -> None:
    names = [Interleaving({"a": 0.1, "b": 0.2}).at(place) for place in range(30)]
    assert names == [Interleaving({"b": 20, "a": 10}).at(place) for place in range(30)]


def test_a_rank_outside_of_the_world_and_empty_mixtures_are_refused() -> None:
    with pytest.raises(ValueError, match="rank 2 is not in a world of 2"):
        rank_places(4, 0, 0, 2, 2)
    with pytest.raises(ValueError, match="a batch of 0 rows"):
        rank_places(0, 0, 0)
    with pytest.raises(ValueError, match="step -1"):
        rank_places(4, 0, -1)
    with pytest.raises(ValueError, match="each above 0"):
        Interleaving({"a": 0.0})
    with pytest.raises(ValueError, match="give at least one"):
        Interleaving({})
