"""Slips: every computed value of a worked solution passes through a `Stepper`, which sometimes gets it wrong."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Stepper:
    """Passes computed values on, replacing each with probability `rate` by a plausible wrong one.

    The caller goes on from the value that it is given, so that a slip propagates as it does in a model's reasoning.
    `slips` counts the altered values.
    """

    __slots__ = ("_random", "rate", "slips")

    def __init__(self, rate: float = 0.0, random: Random | None = None) -> None:
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"slip rate {rate} is not a probability: give a number from 0 to 1")
        if rate > 0.0 and random is None:
            raise ValueError(f"slip rate {rate} needs a random generator: pass random.Random(seed)")
        self.rate = rate
        self.slips = 0
        self._random = random or Random(0)

    def _pick(self, right: T, wrong: Sequence[T]) -> T:
        if self.rate == 0.0 or not wrong or self._random.random() >= self.rate:
            return right
        self.slips += 1
        return self._random.choice(wrong)

    def value(self, right: int, low: int | None = None, high: int | None = None) -> int:
        """An integer; a slip is off by one or ten, has its last two digits swapped, or a neighbouring digit."""
        if self.rate == 0.0:
            return right
        return self._pick(right, [x for x in _near(right) if (low is None or x >= low) and (high is None or x <= high)])

    def divide(self, dividend: int, divisor: int) -> tuple[int, int]:
        """Quotient and remainder; a slip stops one short in the quotient or miscounts the remainder."""
        quotient, remainder = divmod(dividend, divisor)
        wrong = [(quotient, near) for near in (remainder - 1, remainder + 1) if 0 <= near < divisor]
        if quotient > 0:
            wrong.append((quotient - 1, remainder + divisor))
        return self._pick((quotient, remainder), wrong)

    def choose(self, right: T, among: Sequence[T]) -> T:
        """One of several things that were read; a slip picks another one."""
        if self.rate == 0.0:
            return right
        return self._pick(right, [other for other in among if other != right])

    def flag(self, right: bool) -> bool:
        """The outcome of a comparison; a slip is its opposite."""
        return self._pick(right, [not right])


def _near(right: int) -> list[int]:
    """The wrong values that a careless calculation gives for `right`, likelier ones more than once."""
    wrong = [right - 1, right + 1, right - 1, right + 1]
    if abs(right) >= 10:
        sign = -1 if right < 0 else 1
        rest, last = divmod(abs(right), 100)[0], abs(right) % 100
        wrong += [right - 10, right + 10, sign * (rest * 100 + last % 10 * 10 + last // 10)]
    if abs(right) >= 100:
        wrong += [right - 100, right + 100]
    return [x for x in wrong if x != right]
