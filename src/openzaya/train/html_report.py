"""The report of a run as one HTML page: figures by phase, curves, and its notes; nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from openzaya.locks import alone
from openzaya.train.curves import Series, line_chart
from openzaya.train.reports import PhaseLog, phase_logs, read_lines

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1f24; --quiet: #5c6670; --rule: #dfe3e8;
  --series-0: #0b62a8; --series-1: #b8500a; --series-2: #0d7f5f; --series-3: #a0356f; --series-4: #6a5200;
  --series-5: #5b4bb3; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --text: #e6e9ec; --quiet: #9aa4ae; --rule: #2c3238;
  --series-0: #63b0f0; --series-1: #f0a05a; --series-2: #4cc9a0; --series-3: #ee8fc2; --series-4: #dcc25a;
  --series-5: #aca0f5; } }
body { background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; max-width: 1360px;
  margin: 0 auto; padding: 24px; }
h1 { font-size: 22px; } h2 { font-size: 17px; margin-top: 28px; }
table { border-collapse: collapse; }
th, td { text-align: right; padding: 4px 12px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; } td { font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 20px; }
figure { margin: 0; } figcaption { font-weight: 600; }
figure > svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--quiet); }
.grid { stroke: var(--rule); } .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.key { width: 22px; height: 10px; margin-right: 6px; }
ul { list-style: none; margin: 0; padding: 0 0 0 56px; display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: 13px; }
.notes :is(th, td) { text-align: left; white-space: normal; } p { color: var(--quiet); }
/* Charts are drawn 640 wide and shrink to a phone's width, their letters with them. */
@media (max-width: 560px) { body { padding: 16px; } svg text { font-size: 21px; } ul { padding-left: 0; } }
"""


def write_html_report(folder: Path) -> Path:
    """Write `report.html` of the run in `folder` from its log, whole or not at all, and return its path."""
    page = folder / "report.html"
    partial = page.with_suffix(".partial")
    with alone(folder):
        partial.write_text(html_report(folder.name, read_lines(folder / "log.jsonl")), encoding="utf-8")
        partial.replace(page)
    return page


def html_report(title: str, lines: Sequence[dict[str, Any]]) -> str:
    """The page for the lines of a log."""
    phases = list(phase_logs(lines).values())
    notes = "".join(
        f"<tr><td>{escape(phase.name)}</td><td>{step:,}</td><td>{escape(note)}</td></tr>"
        for phase in phases
        for step, note in phase.notes
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1>{_table(phases)}<h2>Curves</h2>"
        f'<div class="curves">{"".join(_charts(phases))}</div>'
        '<h2>What happened</h2><div class="wide"><table class="notes">'
        "<tr><th>phase</th><th>step</th><th>note</th></tr>"
        f"{notes}</table></div></body></html>\n"
    )


def _charts(phases: Sequence[PhaseLog]) -> list[str]:
    def each(title: str, key: str, low: float | None = None) -> str:
        return line_chart(title, [Series(phase.name, phase.curve(key)) for phase in phases], "step", low=low)

    held_out = [
        line_chart(
            f"Held-out loss of {name} (nats)",
            [Series(phase.name, _held_out(phase, name), dots=True) for phase in phases],
            "step",
        )
        for name in _held_out_names(phases)
    ]
    layers = [
        line_chart(
            f"Load entropy by layer, {phase.name} (1 is balanced)",
            [
                Series(f"layer {layer}", _layer(phase, layer))
                for layer in range(len(phase.last.get("load_entropies", [])))
            ],
            "step",
        )
        for phase in phases
    ]
    return [
        each("Loss of a learned token (nats)", "loss"),
        *held_out,
        each("Gradient norm before clipping", "gradient_norm", 0.0),
        each("Learning rate, as a share of the recipe's", "rate", 0.0),
        each("Load entropy, mean over layers (1 is balanced)", "load_entropy"),
        each("Tokens a second", "tokens_per_second", 0.0),
        each("Utilisation: model operations over the matmul peak of the same run", "utilisation", 0.0),
        *layers,
    ]


def _held_out_names(phases: Sequence[PhaseLog]) -> list[str]:
    """What held-out loss was taken of, in the order in which it first was."""
    return list(dict.fromkeys(name for phase in phases for found in phase.held_out.values() for name in found))


def _held_out(phase: PhaseLog, name: str) -> list[tuple[float, float]]:
    return [(float(step), found[name]) for step, found in sorted(phase.held_out.items()) if name in found]


def _layer(phase: PhaseLog, layer: int) -> list[tuple[float, float]]:
    return [(float(step), line["load_entropies"][layer]) for step, line in sorted(phase.steps.items())]


def _table(phases: Sequence[PhaseLog]) -> str:
    rows, names = [], _held_out_names(phases)
    for phase in phases:
        last = phase.last
        held_out = phase.held_out[max(phase.held_out)] if phase.held_out else {}
        speeds = [speed for _step, speed in phase.curve("tokens_per_second")]
        shares = [share for _step, share in phase.curve("utilisation")]
        cells = [
            phase.name,
            f"{last['step']:,} of {last['steps']:,}" if last else "-",
            f"{last['loss']:.4f}" if last else "-",
            *(f"{held_out[name]:.4f}" if name in held_out else "-" for name in names),
            f"{last['load_entropy']:.3f}" if last else "-",
            f"{median(speeds):,.0f}" if speeds else "-",
            f"{median(shares):.1%}" if shares else "-",
            f"{last['seconds'] / 60:,.1f}" if last else "-",
        ]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    held_out_heads = [f"held-out {name}" for name in names]
    heads = ("phase", "steps", "loss", *held_out_heads, "load entropy", "tokens/s", "utilisation", "minutes")
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div><p>Speeds are medians.</p>'
