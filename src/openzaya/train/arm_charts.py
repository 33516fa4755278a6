"""The charts of an ablation as one SVG file: every run's figures as dots, and the balance of the experts over steps.

The file stands alone: no scripts, no fonts, and colours that follow the reader's theme.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from openzaya.train.arm_table import Results, spread
from openzaya.train.curves import COLOURS, ticks
from openzaya.train.measures import FIGURES, Measured

_WIDTH, _LEFT, _RIGHT = 760, 210, 20
_ROW, _HEAD, _FOOT = 22, 30, 34
_CURVES = 220
"""Height of a panel of curves."""
_SMOOTHED = 10
"""Steps that a point of a curve is the mean of."""

_STYLE = """
svg { --text: #1b1f24; --quiet: #5c6670; --rule: #dfe3e8; --c0: #0b62a8; --c1: #b8500a; --c2: #0d7f5f; --c3: #a0356f;
  --c4: #6a5200; --c5: #5b4bb3; font: 13px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg { --text: #e6e9ec; --quiet: #9aa4ae; --rule: #3a4149; --c0: #63b0f0;
  --c1: #f0a05a; --c2: #4cc9a0; --c3: #ee8fc2; --c4: #dcc25a; --c5: #aca0f5; } }
text { fill: var(--text); } .quiet { fill: var(--quiet); font-size: 12px; } .title { font-weight: 600; }
.grid { stroke: var(--rule); } .first { stroke: var(--quiet); stroke-dasharray: 4 3; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .mean { stroke-width: 2.5; }
"""


def chart(title: str, results: Results, figures: Sequence[str]) -> str:
    """The SVG file: a panel for each figure that some run has, and one of load entropy where a figure is about it."""
    known = [name for name in figures if any(spread(runs, name) for runs in results.values())]
    panels: list[_Dots | _Curves] = [_Dots(results, name) for name in known]
    if any(name.startswith(("entropy", "steps_to")) for name in known):
        panels.append(_Curves(results))
    drawn, top = [], 0.0
    for panel in panels:
        drawn.append(f'<g transform="translate(0 {top:g})">{"".join(panel.parts())}</g>')
        top += panel.height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top:g}" role="img" '
        f'aria-label="{escape(title)}"><style>{_STYLE}</style>{"".join(drawn)}</svg>\n'
    )


class _Scale:
    """Numbers from `low` to `high` as places from `start` to `end`."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.ticks = ticks(min(values), max(values))
        self._low, self._high = min(self.ticks[0], *values), max(self.ticks[-1], *values)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) / (self._high - self._low) * (self._end - self._start)


class _Dots:
    """One figure: an arm a row, a dot a seed, a bar at the mean, a dashed line at the first arm's mean."""

    def __init__(self, results: Results, figure: str) -> None:
        self._figure = FIGURES[figure]
        self._arms = {arm: spread(runs, figure) for arm, runs in results.items()}
        self.height = _HEAD + _ROW * len(self._arms) + _FOOT

    def parts(self) -> Iterator[str]:
        figure, arms = self._figure, self._arms
        scale = _Scale([value for found in arms.values() if found for value in found.values], _LEFT, _WIDTH - _RIGHT)
        bottom = _HEAD + _ROW * len(arms)
        better = "less" if figure.lower else "more"
        yield f'<text class="title" x="8" y="18">{escape(figure.title)}</text>'
        yield (
            f'<text class="quiet" x="{_WIDTH - _RIGHT}" y="18" text-anchor="end">'
            f"{escape(figure.unit)}, {better} is better</text>"
        )
        for tick in scale.ticks:
            yield f'<line class="grid" x1="{scale(tick):.1f}" x2="{scale(tick):.1f}" y1="{_HEAD}" y2="{bottom}"/>'
            yield f'<text class="quiet" x="{scale(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:.4g}</text>'
        first = next(iter(arms.values()))
        if first is not None:
            x = scale(first.mean)
            yield f'<line class="first" x1="{x:.1f}" x2="{x:.1f}" y1="{_HEAD}" y2="{bottom}"/>'
        for place, (arm, found) in enumerate(arms.items()):
            y, colour = _HEAD + _ROW * (place + 0.5), f"var(--c{0 if place == 0 else 1})"
            yield f'<text x="{_LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(arm)}</text>'
            if found is None:
                continue
            x = scale(found.mean)
            yield (
                f'<line class="mean" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 8:.1f}" y2="{y + 8:.1f}" '
                f'style="stroke:{colour}"/>'
            )
            for value in found.values:
                yield (
                    f'<circle cx="{scale(value):.1f}" cy="{y:.1f}" r="4" style="fill:{colour};fill-opacity:.65">'
                    f"<title>{escape(arm)}: {value:.5g}</title></circle>"
                )


class _Curves:
    """Load entropy over steps, a line an arm: the mean over seeds of as many steps as show."""

    def __init__(self, results: Results) -> None:
        self._lines = {arm: _mean_curve(runs) for arm, runs in results.items() if runs}
        self.height = _HEAD + _CURVES + _FOOT + 18 * -(-len(self._lines) // 3)

    def parts(self) -> Iterator[str]:
        points = [point for line in self._lines.values() for point in line]
        left, bottom = 56, _HEAD + _CURVES
        across = _Scale([step for step, _value in points], left, _WIDTH - _RIGHT)
        up = _Scale([value for _step, value in points], bottom, _HEAD)
        yield '<text class="title" x="8" y="18">load entropy, mean over layers and seeds</text>'
        yield f'<text class="quiet" x="{_WIDTH - _RIGHT}" y="18" text-anchor="end">1 is balanced</text>'
        for tick in up.ticks:
            yield f'<line class="grid" x1="{left}" x2="{_WIDTH - _RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>'
            yield f'<text class="quiet" x="{left - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
        for tick in across.ticks:
            yield f'<text class="quiet" x="{across(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
        yield f'<text class="quiet" x="{_WIDTH / 2}" y="{bottom + 30}" text-anchor="middle">step</text>'
        for place, (arm, line) in enumerate(self._lines.items()):
            dashes = f";stroke-dasharray:{4 * (place // COLOURS)} 3" if place >= COLOURS else ""
            stroke = f'class="line" style="stroke:var(--c{place % COLOURS}){dashes}"'
            path = "M" + "L".join(f"{across(step):.1f} {up(value):.1f}" for step, value in line)
            x, y = left + place % 3 * 230, bottom + _FOOT + 12 + 18 * (place // 3)
            yield f'<path {stroke} d="{path}"/><path {stroke} d="M{x} {y - 4}H{x + 22}"/>'
            yield f'<text x="{x + 28}" y="{y}">{escape(arm)}</text>'


def _mean_curve(runs: Sequence[Measured]) -> list[tuple[float, float]]:
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for step, value in run.load_entropy:
            by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    means = [sum(by_step[step]) / len(by_step[step]) for step in steps]
    groups = [slice(start, start + _SMOOTHED) for start in range(0, len(steps), _SMOOTHED)]
    return [(steps[group][-1], sum(means[group]) / len(means[group])) for group in groups]
