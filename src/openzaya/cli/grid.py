"""The picture of a run: rounds by candidates, each answer in a colour and shape of its own. Draws, and nothing else."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from openzaya.cli.figures import duration, for_terminal, rate, shortened
from openzaya.cli.run_state import Outlook, Place, RoundState, RunState, Stage
from openzaya.mrsa.config import MrsaConfig

# A shape beside the colour: the picture must read without colours, and for people who see few of them.
_ANSWERS = (
    ("●", "bright_green"),
    ("◆", "bright_magenta"),
    ("▲", "bright_yellow"),
    ("■", "bright_blue"),
    ("★", "bright_red"),
    ("▼", "bright_cyan"),
    ("◉", "green"),
    ("◈", "magenta"),
)
_FURTHER_ANSWER = ("•", "white")
_STAGES = {
    Stage.WAITING: ("·", "bright_black"),
    Stage.SILENT: ("○", "bright_black"),
    Stage.CUT: ("✂", "yellow"),
    Stage.FAILED: ("✗", "bold red"),
}
_LEVELS = "▁▂▃▄▅▆▇█"
_UNKNOWN_LIMIT = 4096
"""Scale of the growing bar where neither a token limit nor a finished candidate gives one."""
_ABOVE_LONGEST = 1.25
"""A full bar is this much longer than the longest candidate so far: few come near their limit."""
_SPACED_WIDTH = 20
"""Rounds up to this width have a space between their candidates."""
_FINAL_LINES = 3


def draw_run(state: RunState, problem: str, source: str, now: float, width: int) -> RenderableType:
    """The whole picture for a terminal of `width` columns; before the run has started, what it waits for."""
    if state.config is None:
        return Text.assemble(("◌ ", "cyan"), (f"getting {source} ready", "dim"))
    parts: list[RenderableType] = [
        Text(shortened(problem, 2 * (width - 6)), style="bold", overflow="fold"),
        _settings(state, state.config),
        Text(),
        _grid(state, state.config, width),
        Text(),
    ]
    if state.final_text.strip() and state.final is not None and state.ended is None:
        parts += [Text(_last_lines(state.final_text, width - 6), style="italic"), Text()]
    parts += [_ending(state) if state.ended is not None else _footer(state, now), Text(), _legend()]
    return Panel(
        Group(*parts),
        title=Text.assemble(("Markovian RSA", "bold cyan"), (f" · {state.model or source}", "cyan")),
        title_align="left",
        border_style="cyan",
        box=box.ROUNDED,
        padding=(0, 2),
        width=min(width, 100),
    )


def _settings(state: RunState, config: MrsaConfig) -> Text:
    values = [f"{config.candidates} candidates a round"]
    if config.rounds:
        values.append(f"{config.rounds} rounds over {config.tails} tails of {config.tau:,} tokens")
    bound = config.token_bound()
    values.append("as many tokens as the context leaves" if bound is None else f"at most {bound:,} tokens")
    if state.restored:
        values.append(f"{state.restored} rollouts from the journal")
    return Text(" · ".join(values), style="dim")


# ---- the grid ----


def _grid(state: RunState, config: MrsaConfig, width: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=True, header_style="bright_black", expand=True)
    table.add_column("round", no_wrap=True)
    table.add_column("candidates", no_wrap=True)
    table.add_column("votes", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for number in range(config.rounds + 1):
        row = state.rounds[number] if number < len(state.rounds) else None
        table.add_row(*_row(state, str(number), row, config.width(number)))
    if state.final is not None:
        table.add_row(*_row(state, "final", state.final, 1))
    return table


def _row(state: RunState, label: str, row: RoundState | None, width: int) -> tuple[Text, ...]:
    places = row.places if row is not None else [Place()] * width
    scale = _scale(state, row.limit if row is not None else None)
    marks = Text(" " if width <= _SPACED_WIDTH else "").join(_mark(place, scale) for place in places)
    if row is None:
        return Text(label, style="bright_black"), marks, Text(), Text(), Text()
    running = row.ended < len(row.places)
    return (
        Text(label, style="bold" if running else ""),
        marks,
        _votes(state, row),
        Text(f"{row.tokens:,}" if row.tokens else ""),
        Text("" if row.seconds is None else duration(row.seconds)),
    )


def _scale(state: RunState, limit: int | None) -> float:
    """Tokens of a candidate whose bar is full."""
    longest = max((place.tokens for row in state.rows for place in row.places if place.ended), default=0)
    known = [tokens for tokens in (limit, _ABOVE_LONGEST * longest) if tokens]
    return min(known, default=_UNKNOWN_LIMIT)


def _mark(place: Place, scale: float) -> Text:
    if place.stage is Stage.WRITING:
        level = int(len(_LEVELS) * place.tokens / scale)
        return Text(_LEVELS[min(level, len(_LEVELS) - 1)], style="cyan")
    if place.answer is not None and place.stage is not Stage.FAILED:
        return Text(*_answer_mark(place.answer))
    return Text(*_STAGES[place.stage])


def _answer_mark(answer: int) -> tuple[str, str]:
    return _ANSWERS[answer] if answer < len(_ANSWERS) else _FURTHER_ANSWER


def _votes(state: RunState, row: RoundState) -> Text:
    cells: list[Text] = []
    for answer, votes in row.votes():
        mark, style = _answer_mark(answer)
        shown = shortened(state.answers[answer], 18)
        cells.append(Text.assemble((f"{mark} ", style), shown, (f" ×{votes}" if len(row.places) > 1 else "", "dim")))
    for stage, word in ((Stage.FAILED, "failed"), (Stage.CUT, "cut")):
        if number := row.count(stage):
            cells.append(Text(f"{number} {word}", style=_STAGES[stage][1]))
    return Text("  ").join(cells)


# ---- below the grid ----


def _footer(state: RunState, now: float) -> RenderableType:
    outlook = state.outlook(now)
    speed = state.tokens_per_second(now)
    words = [f"{state.tokens:,} tokens", f"{rate(speed)} a second" if speed else "", duration(state.seconds(now))]
    if outlook is not None and outlook.seconds is not None:
        words.append(time_left(outlook))
    line = Table.grid(padding=(0, 2), expand=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    total = state.tokens + outlook.tokens if outlook is not None else None
    bar = ProgressBar(
        total=total or None,
        completed=state.tokens if total else 0,
        pulse=total is None,
        animation_time=now,
        complete_style="cyan",
        finished_style="cyan",
        style="bright_black",
    )
    line.add_row(bar, Text(" · ".join(word for word in words if word)))
    return line


def time_left(outlook: Outlook) -> str:
    """ "about 4 s left", "at most 3 min left", "almost done"; only for an outlook with a time."""
    assert outlook.seconds is not None
    if outlook.seconds < 0.5:
        return "almost done"
    return f"{'at most' if outlook.at_most else 'about'} {duration(outlook.seconds)} left"


def _ending(state: RunState) -> Text:
    assert state.ended is not None
    took = f"after {duration(state.ended.seconds)} and {state.ended.completion_tokens:,} tokens"
    answer = "" if state.ended.answer is None else f" {shortened(state.ended.answer, 40)}"
    if state.ended.finish_reason == "answered":
        return Text.assemble((f"✓ answered{answer}", "bold green"), f" {took}")
    return Text.assemble(
        (f"■ ended by its {state.ended.finish_reason},{answer or ' no answer'}", "bold yellow"), f" {took}"
    )


def _legend() -> Text:
    answers = Text(" ").join(Text(mark, style=style) for mark, style in _ANSWERS[:3])
    entries = [
        Text.assemble(("▁▄█", "cyan"), " writing"),
        Text.assemble(answers, " an answer each"),
        *(
            Text.assemble(_STAGES[stage], f" {word}")
            for stage, word in (
                (Stage.SILENT, "no answer"), (Stage.CUT, "cut"), (Stage.FAILED, "failed"), (Stage.WAITING, "to come")
            )
        ),
    ]  # fmt: skip
    return Text("   ", style="bright_black").join(entries)


def _last_lines(text: str, width: int) -> str:
    lines = [
        line[start : start + width]
        for line in for_terminal(text).strip().splitlines()
        for start in range(0, len(line), width)
    ]
    return "\n".join(lines[-_FINAL_LINES:])
