"""When a failed request is tried again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

TRANSIENT_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
"""HTTP statuses after which the same request may succeed later. 52x are proxies that lost their origin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """At most `retries` further tries, with exponential backoff and full jitter; times are in seconds."""

    retries: int = 4
    base: float = 0.5
    longest: float = 30.0
    longest_retry_after: float = 60.0
    """A server may ask for more; we come back earlier and count the try."""

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}; it must be 0 (none) or more")

    def delay(self, attempt: int, retry_after: float | None, rng: random.Random) -> float:
        """Seconds to wait after failure number `attempt` (from 0), jittered so that a round does not return at once."""
        if retry_after is not None:
            return min(retry_after, self.longest_retry_after) + rng.uniform(0, self.base)
        return rng.uniform(0, min(self.longest, self.base * 2**attempt))


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as an HTTP date; None if it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value)
        except ValueError:
            return None
        if until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        seconds = (until - (now or datetime.now(UTC))).total_seconds()
    if seconds != seconds:
        return None
    return max(0.0, seconds)
