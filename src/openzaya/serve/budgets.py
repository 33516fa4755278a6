"""What each key may have by the minute: requests, and tokens, which are counted when they have been spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from openzaya.serve.config import Key
from openzaya.serve.errors import ApiError


class Bucket:
    """An allowance that fills up evenly to `by_minute`. Taking may leave a debt, which waiting pays back."""

    def __init__(self, by_minute: int, clock: Callable[[], float]) -> None:
        self.by_minute = by_minute
        self._clock = clock
        self._level = float(by_minute)
        self._at = clock()

    @property
    def level(self) -> float:
        """What is left; below zero where more was taken than there was."""
        now = self._clock()
        self._level = min(self.by_minute, self._level + (now - self._at) * self.by_minute / 60)
        self._at = now
        return self._level

    def take(self, amount: float) -> None:
        """Take something, whether or not it is there."""
        self._level = self.level - amount

    def seconds_until(self, level: float) -> float:
        """How long until so much is left."""
        return max(0.0, (level - self.level) * 60 / self.by_minute)


class Budgets:
    """The allowances of all keys that have any."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests: dict[str, Bucket] = {}
        self._tokens: dict[str, Bucket] = {}

    def admit(self, key: Key | None) -> None:
        """Take a request from a key's allowance; raises ApiError (429) where one of its two is used up."""
        requests, tokens = self._of(key)
        if requests is not None and (seconds := requests.seconds_until(1)) > 0:
            raise _used_up(f"{requests.by_minute} requests a minute", seconds)
        if tokens is not None and (seconds := tokens.seconds_until(1)) > 0:
            raise _used_up(f"{tokens.by_minute} tokens a minute", seconds)
        if requests is not None:
            requests.take(1)

    def spend(self, key: Key | None, tokens: int) -> None:
        """Take the tokens that a request of this key has cost."""
        _, bucket = self._of(key)
        if bucket is not None:
            bucket.take(tokens)

    def headers(self, key: Key | None) -> dict[str, str]:
        """OpenAI's headers about what is left."""
        headers: dict[str, str] = {}
        for name, bucket in zip(("requests", "tokens"), self._of(key), strict=True):
            if bucket is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(bucket.by_minute)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level)))
                headers[f"x-ratelimit-reset-{name}"] = f"{bucket.seconds_until(bucket.by_minute):.3f}s"
        return headers

    def _of(self, key: Key | None) -> tuple[Bucket | None, Bucket | None]:
        if key is None:
            return None, None
        return (
            self._bucket(self._requests, key.name, key.requests_per_minute),
            self._bucket(self._tokens, key.name, key.tokens_per_minute),
        )

    def _bucket(self, buckets: dict[str, Bucket], name: str, by_minute: int | None) -> Bucket | None:
        if by_minute is None:
            return None
        if name not in buckets:
            buckets[name] = Bucket(by_minute, self._clock)
        return buckets[name]


def _used_up(what: str, seconds: float) -> ApiError:
    wait = max(1, math.ceil(seconds))
    return ApiError(
        429,
        f"this key may have {what} and has had them; try again in {wait} s",
        code="rate_limit_exceeded",
        headers={"retry-after": str(wait)},
    )
