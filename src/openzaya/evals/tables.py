"""A report as tables: for a terminal, as plain text, and as Markdown for model cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openzaya.evals.report import Comparison, Estimate, Report, Row

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class Grid:
    """A table before it is drawn; the first column is text, the others are figures."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grids(report: Report) -> list[Grid]:
    """Scores, what they cost, and paired differences."""
    return [
        _scores(report, "Mean over candidates, %", "mean"),
        _scores(report, "Selected answer, %", "selected"),
        _costs(report),
        _differences(report),
    ]


def markdown(report: Report) -> str:
    """The tables of a report for a model card, each figure with its 95 % interval."""
    parts = [_markdown_grid(grid) for grid in grids(report) if grid.rows]
    problems = ", ".join(
        f"{entry.name} {entry.problems}" + (f" (difficulty {_span(entry.difficulty)})" if entry.difficulty else "")
        for entry in report.benchmarks
    )
    intervals = (
        f"Problems: {problems}; seed {report.seed}. Brackets are 95 % bootstrap intervals over problems "
        f"({report.resamples:,} resamples); p is two-sided, paired by problem, by sign flips."
    )
    return "\n\n".join([intervals, *parts]) + "\n"


def print_report(report: Report, console: Console | None = None) -> None:
    """Draw the tables on a terminal, or write them as plain text where there is none."""
    from rich.console import Console as RichConsole
    from rich.table import Table

    console = console or RichConsole()
    for grid in grids(report):
        if not grid.rows:
            continue
        if not console.is_terminal:
            console.file.write(plain(grid) + "\n")
            continue
        table = Table(title=grid.title, title_justify="left")
        for place, name in enumerate(grid.header):
            table.add_column(name, justify="left" if place == 0 else "right")
        for row in grid.rows:
            table.add_row(*row)
        console.print(table)


def plain(grid: Grid) -> str:
    """A table in aligned columns."""
    lines = [grid.header, *grid.rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(grid.header))]
    drawn = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])
        for line in lines
    ]
    return "\n".join([grid.title, *(line.rstrip() for line in drawn), ""])


def _markdown_grid(grid: Grid) -> str:
    rule = "|".join(["---", *["---:"] * (len(grid.header) - 1)])
    lines = ["| " + " | ".join(row) + " |" for row in (grid.header, *grid.rows)]
    return "\n".join([f"**{grid.title}**", "", lines[0], f"|{rule}|", *lines[1:]])


def _scores(report: Report, title: str, metric: str) -> Grid:
    rows = []
    for arm in report.arms:
        cells = [getattr(report.row(arm.name, scope), metric) for scope in report.scopes]
        if all(cell is not None for cell in cells):
            rows.append((_label(report, arm.name), *(_percent(cell) for cell in cells)))
    return Grid(title, ("arm", *report.scopes), tuple(rows))


def _costs(report: Report) -> Grid:
    rows = []
    scope = report.scopes[-1]
    for arm in report.arms:
        row = report.row(arm.name, scope)
        rounds = " → ".join(f"{100 * mean:.1f}" for mean in row.round_means) or "–"
        rows.append(
            (
                _label(report, arm.name),
                _span(row.candidates),
                f"{row.generated_tokens / row.problems:,.0f}",
                f"{row.prompt_tokens / row.problems:,.0f}",
                f"{100 * row.cut_share:.1f} %",
                f"{100 * row.unanswered_share:.1f} %",
                f"{row.finish_reasons.get('failed', 0)}",
                rounds,
            )
        )
    figures = ("candidates", "generated tokens", "prompt tokens", "cut", "no answer", "failed", "mean by round, %")
    return Grid("Cost of a problem, over all problems", ("arm", *figures), tuple(rows))


def _differences(report: Report) -> Grid:
    rows = []
    seen = dict.fromkeys((entry.arm, entry.against, entry.metric) for entry in report.comparisons)
    for arm, against, metric in seen:
        cells = [_difference(report.comparison(arm, against, metric, scope)) for scope in report.scopes]
        rows.append((f"{arm} − {_label(report, against)}, {metric}", *cells))
    return Grid("Paired differences, points", ("difference", *report.scopes), tuple(rows))


def _label(report: Report, arm: str) -> str:
    entry = next(each for each in report.arms if each.name == arm)
    row: Row = report.row(arm, report.scopes[-1])
    if entry.mode == "majority":
        return f"{arm}@{_span(row.candidates)}" + (" (equal tokens)" if entry.matches else "")
    return arm


def _span(limits: Sequence[int]) -> str:
    return str(limits[0]) if limits[0] == limits[1] else f"{limits[0]}–{limits[1]}"


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _difference(entry: Comparison) -> str:
    change = entry.difference
    p = "p < 0.001" if entry.p_value < 0.001 else f"p = {entry.p_value:.3f}"
    return f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}], {p}"
