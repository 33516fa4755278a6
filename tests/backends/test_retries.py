"""Waiting times between tries."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.backends.retries import RetryPolicy, parse_retry_after

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


@given(attempt=st.integers(0, 60), seed=st.integers(0, 99))
def test_backoff_stays_between_zero_and_its_exponential_bound(attempt: int, seed: int) -> None:
    policy = RetryPolicy(base=0.5, longest=30.0)
    assert 0 <= policy.delay(attempt, None, random.Random(seed)) <= min(30.0, 0.5 * 2**attempt)


def test_backoff_is_jittered_over_the_whole_range() -> None:
    policy = RetryPolicy(base=1.0)
    delays = [policy.delay(2, None, random.Random(seed)) for seed in range(200)]
    assert min(delays) < 0.4
    assert max(delays) > 3.6


def test_the_servers_wish_is_kept_up_to_a_bound() -> None:
    policy = RetryPolicy(base=0.5, longest_retry_after=60.0)
    assert 7.0 <= policy.delay(0, 7.0, random.Random(0)) <= 7.5
    assert policy.delay(0, 3600.0, random.Random(0)) <= 60.5


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        ("0.25", 0.25),
        ("-3", 0.0),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("nan", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


def test_a_negative_number_of_retries_is_refused() -> None:
    with pytest.raises(ValueError, match="retries is -1"):
        RetryPolicy(retries=-1)
