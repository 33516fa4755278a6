"""Line charts as inline SVG: no scripts, no fonts; colours are the page's, so that they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 274
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 12, 48
_MOST_POINTS = 400
COLOURS = 6
"""Of the style sheet, `--series-0` and on; further series begin again with dashes."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name in the legend, and its points."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    """Marks at the points, for measurements that are far apart."""


def line_chart(title: str, series: Sequence[Series], x_label: str, *, low: float | None = None) -> str:
    """A figure with a legend; nothing for series without a finite point. The scale begins at `low` at the latest."""
    kept = [Series(one.name, _thinned(_finite(one.points)), one.dots) for one in series]
    kept = [one for one in kept if one.points]
    if not kept:
        return ""
    xs = [x for one in kept for x, _y in one.points]
    ys = [y for one in kept for _x, y in one.points] + ([] if low is None else [low])
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    frame = _Frame(min(x_ticks[0], *xs), max(x_ticks[-1], *xs), min(y_ticks[0], *ys), max(y_ticks[-1], *ys))
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in y_ticks:
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in x_ticks:
        parts.append(
            f'<text x="{frame.x(tick):.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{_short(tick)}</text>'
        )
    parts.append(f'<text x="{(WIDTH + _LEFT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    parts += [_line(one, place, frame) for place, one in enumerate(kept)]
    parts.append("</svg>")
    legend = "".join(
        f'<li><svg viewBox="0 0 22 10" class="key"><path {_stroke(place)} d="M1 5H21"/></svg>{escape(one.name)}</li>'
        for place, one in enumerate(kept)
    )
    return f"<figure><figcaption>{escape(title)}</figcaption>{''.join(parts)}<ul>{legend}</ul></figure>"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about as many as asked for."""
    if high <= low:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * place for place in range(math.floor(low / step), math.ceil(high / step) + 1)]


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where numbers stand in the picture."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - _TOP - _BOTTOM)


def _line(series: Series, place: int, frame: _Frame) -> str:
    spots = [(frame.x(x), frame.y(y)) for x, y in series.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
    drawn = f'<path {_stroke(place)} d="{path}"/>'
    if series.dots or len(spots) == 1:
        for (x, y), (at, value) in zip(spots, series.points):
            told = f"{escape(series.name)}: {value:.5g} at {at:,.0f}"
            drawn += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" {_fill(place)}><title>{told}</title></circle>'
    return drawn


def _stroke(place: int) -> str:
    dashes = f' stroke-dasharray="{4 * (place // COLOURS)} 3"' if place >= COLOURS else ""
    return f'class="line" style="stroke:var(--series-{place % COLOURS})"{dashes}'


def _fill(place: int) -> str:
    return f'style="fill:var(--series-{place % COLOURS})"'


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """As few points as show, each the mean of those that it stands for; the last one stays itself."""
    size = -(-len(points) // _MOST_POINTS)
    if size < 2:
        return points
    groups = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    return [(group[-1][0], sum(y for _x, y in group) / len(group)) for group in groups] + points[-1:]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.4g}"
