"""What came of an ablation: means with their spread over seeds, and differences to the first arm with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from openzaya.train.measures import FIGURES, Figure, Measured

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The 97.5 % quantile of Student's distribution for 1 to 9 degrees of freedom."""

Results = Mapping[str, Sequence[Measured]]
"""What was measured, by arm; the first one is what the others are compared with."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Values of the seeds that have one: their mean, and their standard deviation where there are two."""

    values: tuple[float, ...]
    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None where there is no value."""
        if not values:
            return None
        return cls(tuple(values), fmean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True, slots=True)
class Difference:
    """An arm less the first arm, paired by seed: the mean and its 95 % interval (Student's)."""

    mean: float
    low: float
    high: float
    verdict: str
    """"better" or "worse" where the interval does not hold zero, else "not told apart"."""


def spread(runs: Sequence[Measured], figure: str) -> Spread | None:
    """One figure over the seeds of an arm."""
    return Spread.of([run.figures[figure] for run in runs if figure in run.figures])


def difference(runs: Sequence[Measured], first: Sequence[Measured], figure: str) -> Difference | None:
    """How an arm differs from the first one, over the seeds that both have; None with fewer than two of them."""
    own, other = ({run.seed: run.figures[figure] for run in found if figure in run.figures} for found in (runs, first))
    found = Spread.of([own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())])
    if found is None or found.deviation is None:
        return None
    half = _STUDENT[len(found.values) - 2] * found.deviation / sqrt(len(found.values))
    low, high = found.mean - half, found.mean + half
    if low <= 0 <= high:
        verdict = "not told apart"
    else:
        verdict = "better" if (high < 0) == FIGURES[figure].lower else "worse"
    return Difference(found.mean, low, high, verdict)


def results_json(results: Results, figures: Sequence[str], changes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Everything that table and charts are made of, each run's own figures and curves among it."""
    return {
        "figures": {
            name: {"title": FIGURES[name].title, "unit": FIGURES[name].unit, "judged": name in figures}
            for name in FIGURES
            if any(name in run.figures for runs in results.values() for run in runs)
        },
        "arms": {
            arm: {"changes": list(changes[arm]), "runs": [asdict(run) for run in runs]} for arm, runs in results.items()
        },
    }


def results_of(facts: Mapping[str, Any]) -> tuple[dict[str, list[Measured]], list[str]]:
    """What `results_json` was made of: what was measured by arm, and the figures that are judged."""
    judged = [name for name, figure in facts["figures"].items() if figure["judged"]]
    return {arm: [Measured(**run) for run in found["runs"]] for arm, found in facts["arms"].items()}, judged


def table(results: Results, figures: Sequence[str]) -> str:
    """A Markdown table: an arm a row; for each figure the mean ± standard deviation and the difference to the first."""
    first = next(iter(results.values()))
    heads = ["arm", "seeds", "learned parameters"]
    for name in figures:
        heads += [f"{FIGURES[name].title} ({FIGURES[name].unit})", "difference, 95 %"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for arm, runs in results.items():
        learned = f"{runs[0].learned_parameters:,}" if runs else "-"
        cells = [arm, str(len(runs)), learned]
        for name in figures:
            cells += [
                _spread_cell(spread(runs, name), FIGURES[name]),
                "-" if runs is first else _difference_cell(difference(runs, first, name), FIGURES[name]),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread_cell(found: Spread | None, figure: Figure) -> str:
    if found is None:
        return "-"
    told = f"{found.mean:.{figure.digits}f}"
    return told if found.deviation is None else f"{told} ± {found.deviation:.{figure.digits}f}"


def _difference_cell(found: Difference | None, figure: Figure) -> str:
    if found is None:
        return "-"
    mean, low, high = (f"{value:+.{figure.digits}f}" for value in (found.mean, found.low, found.high))
    return f"{mean} ({low} to {high}): {found.verdict}"
