from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models import SAMPLING
from openzaya.engine.params import SamplingParams
from openzaya.engine.sampling import derived_seed, logprobs, sample, uniforms

CHI_SQUARE_999 = {19: 43.8, 36: 67.98}
"""The 99.9% points of the chi-square distribution, by degrees of freedom."""


def oracle(scores, params):
    """The distribution that a row is drawn from, by definition and in float64: (probabilities, order of the tokens)."""
    scores = scores.astype(np.float64)
    if params.temperature == 0:
        return np.eye(len(scores))[scores.argmax()]
    scores = (scores - scores.max()) / params.temperature
    kept = np.ones(len(scores), dtype=bool)
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    if params.top_k:
        kept[order[params.top_k :]] = False
    probability = np.where(kept, np.exp(scores), 0.0)
    probability /= probability.sum()
    if params.top_p < 1:
        before = 0.0
        for token in order:
            if before >= params.top_p:
                kept[token] = False
            before += probability[token]
    kept &= probability >= params.min_p * probability.max()
    probability = np.where(kept, probability, 0.0)
    return probability / probability.sum()


def draw(scores, params, count):
    """`count` tokens, each of its own sequence."""
    seeds = np.arange(count, dtype=np.uint64)
    rows = torch.from_numpy(scores).expand(count, -1)
    return sample(rows, [params] * count, seeds, np.zeros(count, dtype=np.int64))


@pytest.mark.parametrize("params", SAMPLING, ids=repr)
def test_drawn_frequencies_follow_the_distribution(params):
    scores = (2 * np.random.default_rng(0).standard_normal(37)).astype(np.float32)
    expected = oracle(scores, params)
    drawn = np.bincount(draw(scores, params, 20_000), minlength=37)
    assert (drawn[expected == 0] == 0).all()
    possible = expected > 0
    squares = (drawn - 20_000 * expected)[possible] ** 2 / (20_000 * expected[possible])
    assert squares.sum() < CHI_SQUARE_999[36]


def test_a_large_vocabulary_is_drawn_from_across_its_blocks():
    scores = np.full(5_000, -np.inf, dtype=np.float32)
    likely = np.random.default_rng(0).permutation(5_000)[:20]
    scores[likely] = 0
    drawn = np.bincount(draw(scores, SamplingParams(), 20_000), minlength=5_000)
    assert drawn[likely].sum() == 20_000
    assert ((drawn[likely] - 1_000) ** 2 / 1_000).sum() < CHI_SQUARE_999[19]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.3, 1.0, 1.5]),
            st.sampled_from([0, 1, 3, 50]),
            st.sampled_from([0.01, 0.5, 0.95, 1.0]),
            st.sampled_from([0.0, 0.1, 1.0]),
            st.integers(0, 2**64 - 1),
            st.integers(0, 10**6),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 1000),
    st.sampled_from([40, 600, 1500]),
)
def test_a_row_draws_the_same_possible_token_alone_and_in_any_batch(rows, number, vocabulary):
    scores = np.random.default_rng(number).standard_normal((len(rows), vocabulary)).astype(np.float32) * 3
    params = [
        SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        for temperature, top_k, top_p, min_p, _, _ in rows
    ]
    seeds = np.array([row[4] for row in rows], dtype=np.uint64)
    places = np.array([row[5] for row in rows])
    together = sample(torch.from_numpy(scores), params, seeds, places)
    for row in range(len(rows)):
        one = slice(row, row + 1)
        assert sample(torch.from_numpy(scores[one]), params[one], seeds[one], places[one])[0] == together[row]
        assert oracle(scores[row], params[row])[together[row]] > 0


def test_top_p_over_more_tokens_than_the_first_candidates_is_exact():
    scores = np.zeros(3_000, dtype=np.float32)
    drawn = draw(scores, SamplingParams(top_p=0.9), 5_000)
    assert drawn.max() == 2_699


def test_equal_scores_are_kept_in_the_order_of_their_ids():
    scores = np.zeros(2_000, dtype=np.float32)
    assert set(draw(scores, SamplingParams(top_k=3), 200).tolist()) == {0, 1, 2}


def test_of_equal_scores_at_the_end_of_top_k_the_smaller_ids_stay_whatever_the_other_rows():
    scores = torch.ones(1, 2_000)
    scores[0, 1_500:] = 2

    def drawn(*top_k):
        params = [SamplingParams(top_k=k) for k in top_k]
        seeds, place = np.arange(200, dtype=np.uint64), np.zeros(len(params), dtype=np.int64)
        return [
            int(sample(scores.repeat(len(params), 1), params, seed.repeat(len(params)), place)[0]) for seed in seeds
        ]

    assert set(drawn(3)) == {1_500, 1_501, 1_502}
    assert drawn(3) == drawn(3, 700)


def test_a_tiny_temperature_is_greedy_and_not_a_number_too_large():
    scores = np.array([1.0, 90.0, 89.0], dtype=np.float32)
    assert set(draw(scores, SamplingParams(temperature=1e-40), 50).tolist()) == {1}


def test_chance_depends_on_seed_and_place_and_is_even():
    seeds = np.arange(50_000, dtype=np.uint64)
    chance = uniforms(seeds, np.zeros(50_000, dtype=np.int64))
    later = uniforms(seeds, np.ones(50_000, dtype=np.int64))
    assert 0 < chance.min() < chance.max() < 1
    for values in (chance, later):
        counts = np.histogram(values, bins=20, range=(0, 1))[0]
        assert ((counts - 2_500) ** 2 / 2_500).sum() < CHI_SQUARE_999[19]
    assert abs(np.corrcoef(chance, later)[0, 1]) < 0.02


def test_derived_seeds_differ_by_prompt_and_by_sample():
    seeds = {derived_seed(seed, prompt, number) for seed in range(3) for prompt in range(30) for number in range(30)}
    assert len(seeds) == 2_700
    assert derived_seed(5, 1, 2) == derived_seed(5, 1, 2)


def test_log_probabilities_ignore_temperature_and_filters():
    scores = np.random.default_rng(1).standard_normal((3, 50)).astype(np.float32)
    expected = scores.astype(np.float64) - np.log(np.exp(scores.astype(np.float64)).sum(-1, keepdims=True))
    records = logprobs(torch.from_numpy(scores), np.array([4, 5, 6]), [0, 2, 5])
    for row, (record, count) in enumerate(zip(records, [0, 2, 5])):
        assert record.token_id == row + 4
        assert record.logprob == pytest.approx(expected[row, row + 4], abs=1e-5)
        best = np.argsort(-expected[row])[:count]
        assert [token for token, _ in record.top] == best.tolist()
        assert [value for _, value in record.top] == pytest.approx(expected[row, best].tolist(), abs=1e-5)
