from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.evals.statistics import (
    bootstrap_means,
    percentile_interval,
    problem_weights,
    sign_flip_p_value,
)

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=9)


def test_bootstrap_means_have_the_distribution_of_all_possible_resamples() -> None:
    values = np.array([0.0, 0.3, 1.0])
    means = bootstrap_means(values[:, None], resamples=40_000, seed=1)[:, 0]
    possible = [np.mean(drawn) for drawn in itertools.product(values, repeat=3)]
    for mean in sorted(set(np.round(possible, 9))):
        wanted = np.mean(np.isclose(possible, mean))
        assert np.mean(np.isclose(means, mean)) == pytest.approx(wanted, abs=0.01)


def test_the_spread_of_bootstrap_means_follows_the_formula() -> None:
    values = np.random.default_rng(3).random(50)
    means = bootstrap_means(values[:, None], resamples=20_000, seed=2)[:, 0]
    assert means.std() == pytest.approx(values.std() / np.sqrt(50), rel=0.03)
    interval = percentile_interval(values.mean(), means)
    assert interval.low == pytest.approx(values.mean() - 1.96 * values.std() / np.sqrt(50), abs=0.01)
    assert interval.high == pytest.approx(values.mean() + 1.96 * values.std() / np.sqrt(50), abs=0.01)


def test_strata_weigh_the_same_and_are_drawn_from_separately() -> None:
    strata = np.array([0, 0, 0, 0, 1, 1])
    values = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    assert values @ problem_weights(6, strata) == pytest.approx(0.75)
    means = bootstrap_means(values[:, None], strata=strata, resamples=20_000, seed=1)[:, 0]
    # The first stratum never varies; the second has 0, 1 or 2 of its two right.
    assert set(np.round(means, 6)) == {0.5, 0.75, 1.0}
    assert np.mean(np.isclose(means, 0.75)) == pytest.approx(0.5, abs=0.02)


def test_columns_are_resampled_together() -> None:
    values = np.random.default_rng(5).random(30)
    means = bootstrap_means(np.stack([values, values + 0.1], axis=1), resamples=500, seed=1)
    assert np.allclose(means[:, 1] - means[:, 0], 0.1)


def test_bootstrap_means_in_chunks_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).random((10, 2))
    monkeypatch.setattr("openzaya.evals.statistics._CHUNK", 35)
    means = bootstrap_means(values, resamples=1000, seed=1)
    assert means.shape == (1000, 2)
    assert np.allclose(means.mean(axis=0), values.mean(axis=0), atol=0.02)


def test_the_same_seed_gives_the_same_resamples_and_another_does_not() -> None:
    values = np.random.default_rng(5).random((10, 1))
    first, again, other = (bootstrap_means(values, resamples=50, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@given(SCORES, SCORES)
def test_a_sign_flip_p_value_is_the_share_of_all_sign_patterns(left: list[float], right: list[float]) -> None:
    differences = np.array([a - b for a, b in zip(left, right)])
    observed = abs(differences.sum())
    reached = [
        abs(sum(sign * value for sign, value in zip(signs, differences))) >= observed - 1e-9
        for signs in itertools.product([1, -1], repeat=len(differences))
    ]
    assert sign_flip_p_value(differences, resamples=100, seed=0) == pytest.approx(np.mean(reached))


def test_drawn_sign_flips_agree_with_enumerated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.array([0.5, 0.25, -0.25, 1.0, 0.0, 0.75, -0.5, 0.25, 0.5, 0.25])
    strata = np.array([0] * 4 + [1] * 6)
    for groups in (None, strata):
        exact = sign_flip_p_value(differences, strata=groups, resamples=100, seed=0)
        with monkeypatch.context() as patch:
            patch.setattr("openzaya.evals.statistics._EXACT_FLIPS", 0)
            drawn = sign_flip_p_value(differences, strata=groups, resamples=50_000, seed=0)
        assert drawn == pytest.approx(exact, abs=0.01)


def test_a_p_value_is_never_0_and_is_1_without_a_difference() -> None:
    assert sign_flip_p_value(np.ones(200), resamples=999, seed=0) == 0.001
    assert sign_flip_p_value(np.zeros(20), resamples=100, seed=0) == 1.0


def test_no_problem_has_no_mean() -> None:
    with pytest.raises(ValueError, match="no problem"):
        problem_weights(0)
