"""Repeated measurements: rounds that visit every case in turn, and the median of a figure with its spread.

Machines change speed for minutes at a time. So no case is measured all at once: each round visits all of them, and a
ratio is taken within a round, where both of its sides met the same weather.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

OnProgress = Callable[[int, int, str], None]
"""Takes measurements done, measurements in all, and what comes next."""


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of several rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Raises ValueError for no values."""
        if not values:
            raise ValueError("a figure needs at least one round; give 1 repeat or more")
        return cls(statistics.median(values), min(values), max(values))

    def as_json(self, digits: int = 4) -> dict[str, float]:
        """Rounded to so many significant digits."""
        values = {"median": self.median, "low": self.low, "high": self.high}
        return {name: float(f"{value:.{digits}g}") for name, value in values.items()}

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)} to {_short(self.high)})"


def ratio(these: Sequence[float], those: Sequence[float]) -> Figure:
    """These over those, round by round."""
    return Figure.of([one / other for one, other in zip(these, those, strict=True)])


def in_rounds(
    cases: Sequence[tuple[str, Callable[[], float]]], repeats: int, progress: OnProgress | None = None
) -> dict[str, list[float]]:
    """What each case returned in each round, by its name; every round runs all cases once, in their order."""
    found: dict[str, list[float]] = {name: [] for name, _ in cases}
    total = repeats * len(cases)
    for number in range(repeats):
        for place, (name, run) in enumerate(cases):
            if progress is not None:
                progress(number * len(cases) + place, total, name)
            found[name].append(run())
    if progress is not None:
        progress(total, total, "done")
    return found


def seconds_of(run: Callable[[], object]) -> float:
    """How long a call takes by the clock."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that compute without pause, each running by the time that the block begins."""
    spin = "print(flush=True)\nwhile True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"
