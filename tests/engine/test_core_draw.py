"""Tokens drawn in the compiled core: always those of engine.sampling, and nearly always without its help."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models import SAMPLING
from openzaya.engine.constraint import FORBIDDEN
from openzaya.engine.core import draw
from openzaya.engine.core.products import Core
from openzaya.engine.params import SamplingParams
from openzaya.engine.sampling import logprobs, sample, uniforms


@pytest.fixture(scope="module")
def cores(variants):
    return [Core(threads=2, variant=variant) for variant in {variants[0], variants[-1]}]


def scores(seed, rows, vocabulary, spread):
    """Scores as a model's: few likely tokens, many unlikely ones."""
    random = np.random.default_rng(seed)
    return torch.from_numpy((random.standard_normal((rows, vocabulary)) * spread).astype(np.float32))


@settings(max_examples=60)
@given(data=st.data())
def test_tokens_are_those_of_sampling(cores, data):
    rows, vocabulary = data.draw(st.integers(1, 12), label="rows"), data.draw(st.integers(1, 3000), label="vocabulary")
    seed, spread = data.draw(st.integers(0, 1 << 30), label="seed"), data.draw(st.sampled_from([0.1, 1, 4, 30]))
    logits = scores(seed, rows, vocabulary, spread)
    if data.draw(st.booleans(), label="ties"):
        logits = logits.round()
    forbidden = torch.zeros_like(logits, dtype=torch.bool)
    if data.draw(st.booleans(), label="held to a form"):
        forbidden = scores(seed + 1, rows, vocabulary, 1) > data.draw(st.sampled_from([-2.5, 0]))
        forbidden[:, seed % vocabulary] = False
        logits = logits.masked_fill(forbidden, FORBIDDEN)
    some = st.builds(
        SamplingParams,
        temperature=st.sampled_from([0, 1e-40, 1e-3, 0.3, 1, 1.0, 5]),
        top_k=st.sampled_from([0, 0, 1, 2, 50, 4000]),
        top_p=st.sampled_from([1, 1, 1e-9, 0.5, 0.95, 0.999999]),
        min_p=st.sampled_from([0, 0, 1e-6, 0.1, 1]),
    )
    params = [data.draw(some) for _ in range(rows)]
    seeds, places = np.arange(seed, seed + rows, dtype=np.uint64), np.arange(rows)
    expected = sample(logits, params, seeds, places)
    assert not forbidden[np.arange(rows), expected].any()
    counts = data.draw(st.lists(st.integers(0, 30), min_size=rows, max_size=rows), label="counts")
    for core in cores:
        np.testing.assert_array_equal(draw.sample(core, logits, params, seeds, places), expected)
        tokens = draw.certain(core, logits, params, uniforms(seeds, places))
        np.testing.assert_array_equal(tokens[tokens >= 0], expected[tokens >= 0])
        records = draw.logprobs(core, logits, expected, counts)
        for record, other in zip(records, logprobs(logits, expected, counts), strict=True):
            assert record.token_id == other.token_id
            assert [token for token, _ in record.top] == [token for token, _ in other.top]
            values, others = ([one.logprob, *(value for _, value in one.top)] for one in (record, other))
            np.testing.assert_allclose(values, others, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("params", SAMPLING, ids=repr)
def test_the_core_is_nearly_always_certain(cores, params):
    rows = 400
    logits, seeds, places = scores(1, rows, 5000, 3), np.arange(rows, dtype=np.uint64), np.zeros(rows, dtype=np.int64)
    for core in cores:
        tokens = draw.certain(core, logits, [params] * rows, uniforms(seeds, places))
        assert (tokens < 0).mean() < 0.06  # the flattest of these distributions
        certain = tokens >= 0
        np.testing.assert_array_equal(tokens[certain], sample(logits, [params] * rows, seeds, places)[certain])


def test_rows_that_rounding_could_decide_are_left_to_sampling(cores):
    even, greedy, cold = SamplingParams(), SamplingParams(temperature=0), SamplingParams(temperature=1e-40)
    halves, tied = torch.zeros(1, 2), torch.tensor([[3.0, 1, 1, 0]])
    for core in cores:

        def token(logits, params, chance, core=core):
            return draw.certain(core, logits, [params], np.array([chance]))[0]

        assert [token(halves, even, chance) for chance in (0.499, 0.5, 0.501)] == [0, -1, 1]
        assert [token(halves, SamplingParams(top_p=0.9), chance) for chance in (0.499, 0.5, 0.501)] == [0, -1, 1]
        assert token(halves, SamplingParams(top_p=0.5), 0.3) == -1
        assert token(tied, SamplingParams(top_k=2), 0.3) == -1  # which of two equal ones is the second
        assert token(tied, SamplingParams(top_k=3), 0.3) == 0
        assert token(halves, cold, 0.3) == -1
        for wrong in (np.nan, np.inf):
            assert token(torch.tensor([[0.0, wrong]]), greedy, 0.3) == -1
        assert token(torch.tensor([[0.0, -np.inf]]), even, 0.9999) == 0


def test_log_probabilities_of_scores_that_are_no_numbers_are_those_of_sampling(cores):
    logits = torch.tensor([[0.0, np.nan, 1.0], [0.0, 2.0, 1.0]])
    for core in cores:
        records = draw.logprobs(core, logits, np.array([0, 1]), [0, 2])
        assert np.isnan(records[0].logprob)
        assert [token for token, _ in records[1].top] == [1, 2]


def test_arguments_that_do_not_fit_each_other_are_refused(cores):
    with pytest.raises(ValueError, match=r"scores are torch.float64 on cpu"):
        draw.certain(cores[0], torch.zeros(1, 2).double(), [SamplingParams()], np.array([0.5]))
    with pytest.raises(ValueError, match="2 rows of scores with 1 parameters"):
        draw.certain(cores[0], torch.zeros(2, 2), [SamplingParams()], np.array([0.5]))
