from __future__ import annotations

from collections.abc import Sequence
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.mrsa.config import ConfigError, check_context, make_config, preset, preset_names
from openzaya.mrsa.draws import derive_seed, draw_tails, order_to_share


@pytest.mark.parametrize(
    ("name", "n", "c", "t", "beta", "tau", "final"),
    [
        ("light", 8, 4, 2, 8192, 4096, 40960),
        ("default", 16, 4, 2, 16384, 4096, 40960),
        ("headline", 16, 4, 2, 40960, 4096, 40960),
        ("extra", 32, 4, 8, 32768, 4096, 40960),
        ("local", 4, 2, 2, 12000, 2000, 12000),
        ("delethink", 1, 1, 4, 8192, 4096, 40960),
    ],
)
def test_the_presets_are_those_of_the_table(name, n, c, t, beta, tau, final) -> None:
    config = preset(name)
    assert (config.candidates, config.tails, config.rounds) == (n, c, t)
    assert (config.beta, config.tau, config.final_tokens) == (beta, tau, final)
    assert (config.temperature, config.top_p, config.top_k) == (1.0, 1.0, 0)
    assert (config.final_temperature, config.final_top_p, config.final_top_k) == (0.6, 0.95, 40)


def test_a_baseline_is_never_cut_short_and_plain_rsa_reads_whole_replies() -> None:
    assert (preset("single").candidates, preset("single").rounds, preset("single").limit(0)) == (1, 0, None)
    assert (preset("majority").candidates, preset("majority").rounds, preset("majority").limit(0)) == (16, 0, None)
    rsa = preset("rsa")
    assert (rsa.candidates, rsa.tails, rsa.rounds, rsa.tail, rsa.tau) == (16, 4, 9, "whole", rsa.beta)


def test_every_preset_is_valid_and_tiny_is_among_them() -> None:
    assert {"tiny", "light", "default", "headline", "extra", "local", "single"} <= set(preset_names())
    for name in preset_names():
        preset(name)


def test_overrides_replace_and_none_keeps() -> None:
    config = preset("light", candidates=6, beta=None, seed=3)
    assert (config.candidates, config.beta, config.seed) == (6, 8192, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"candidates": 2, "tails": 4}, "C is 4 and N is 2"),
        ({"beta": 100, "tau": 200}, "τ is 200 and β is 100"),
        ({"candidates": 0}, "candidates is 0"),
        ({"rounds": -1}, "rounds is -1"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"select": "vote"}, "select is 'vote'"),
        ({"quorum": 1.5}, "quorum is 1.5"),
        ({"quorum": 17}, "quorum is 17"),
        ({"minimum": 17}, "minimum is 17"),
        ({"candidates": 2, "tails": 1, "final_n": 3}, "final_n is 3"),
        ({"deadline": 0}, "deadline is 0"),
        ({"betta": 5}, "betta is no setting"),
    ],
)
def test_a_bad_value_is_named_in_one_sentence(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'huge'.*headline"):
        preset("huge")


def test_without_aggregation_rounds_the_tails_settings_do_not_matter() -> None:
    config = make_config({"candidates": 1, "tails": 4, "rounds": 0, "beta": 1, "tau": 9})
    assert (config.rounds, config.tails, config.tau) == (0, 4, 9)


def test_widths_limits_and_quorum_by_round() -> None:
    config = make_config({"candidates": 8, "rounds": 2, "final_n": 3, "final_tokens": 99, "quorum": 0.75, "beta": 5000})
    assert [config.width(round) for round in range(3)] == [8, 8, 3]
    assert [config.limit(round) for round in range(4)] == [5000, 5000, 99, 99]
    assert [config.quorum_of(round) for round in range(3)] == [6, 6, 3]
    assert config.token_bound() == 2 * 8 * 5000 + 3 * 99


def test_only_what_changes_the_text_changes_the_digest() -> None:
    config = preset("light")
    assert preset("light", deadline=5.0, max_total_tokens=9, concurrency=2).digest == config.digest
    assert preset("light", seed=1).digest != config.digest


def test_a_context_that_is_too_small_is_refused_with_every_number() -> None:
    config = preset("light")
    check_context(config, 100, 100 + 50 + 4 * 4096 + 8192, overhead=50)
    with pytest.raises(ConfigError) as caught:
        check_context(config, 100, 100 + 50 + 4 * 4096 + 8192 - 1, overhead=50)
    for number in ("24725", "100", "4·4096", "50", "8192", "24726"):
        assert number in str(caught.value)
    with pytest.raises(ConfigError, match="question of 100 tokens"):
        check_context(preset("single"), 100, 100)


def test_seeds_are_distinct_and_below_2_to_63() -> None:
    seeds = {derive_seed(seed, round, index) for seed in range(5) for round in range(10) for index in range(40)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3) != derive_seed(1, 2, 3, "tails")


@given(
    st.sets(st.integers(0, 40), max_size=20), st.integers(1, 8), st.integers(), st.integers(0, 9), st.integers(0, 40)
)
def test_a_draw_is_a_subset_without_repeats_and_takes_all_where_there_are_too_few(usable, count, seed, round, index):
    drawn = draw_tails(sorted(usable), count, seed, round, index)
    assert len(drawn) == len(set(drawn)) == min(count, len(usable))
    assert set(drawn) <= usable
    assert drawn == draw_tails(sorted(usable), count, seed, round, index)


def beginnings(orders: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
    return {tuple(order[:length]) for order in orders for length in range(1, len(order) + 1)}


def test_the_tail_that_most_read_comes_first_and_so_again_among_its_readers() -> None:
    assert order_to_share([(3, 1), (2, 3), (3, 2), (1, 0), ()]) == [(3, 1), (3, 2), (3, 2), (0, 1), ()]


@given(st.lists(st.sets(st.integers(0, 15), max_size=6).map(tuple), max_size=20))
def test_ordering_keeps_each_candidates_tails_and_orders_equal_ones_equally(drawn: list[tuple[int, ...]]) -> None:
    orders = order_to_share(drawn)
    assert [sorted(order) for order in orders] == [sorted(tails) for tails in drawn]
    same = {}
    for tails, order in zip(drawn, orders):
        assert same.setdefault(frozenset(tails), order) == order


@pytest.mark.parametrize(("count", "saved"), [(4, 0.2), (8, 0.3)])
def test_ordering_saves_a_good_part_of_the_tails_of_a_round(count: int, saved: float) -> None:
    drawn = [draw_tails(range(16), count, seed=0, round=1, index=index) for index in range(16)]
    assert len(beginnings(order_to_share(drawn))) <= (1 - saved) * 16 * count < len(beginnings(drawn))


def test_subsets_are_drawn_uniformly() -> None:
    draws = 6000
    counts: dict[tuple[int, ...], int] = {}
    for index in range(draws):
        subset = tuple(sorted(draw_tails(range(6), 3, 7, 1, index)))
        counts[subset] = counts.get(subset, 0) + 1
    assert len(counts) == comb(6, 3)
    expected = draws / comb(6, 3)
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 43.8  # the 99.9 % point for 19 degrees of freedom
