"""Draws docs/images/solve.svg, the picture of the live view in the README, from a run that really happens.

    python docs/images/make_live_view.py [--problem TEXT] [--seed S] [--model DIR | --backend URL]

It solves the problem, keeps the stream of events with their times, and draws the view as a terminal showed it in the
middle of the last round.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

import openzaya
from openzaya.cli.grid import draw_run
from openzaya.cli.run_state import RunState
from openzaya.mrsa import events

PICTURE = Path(__file__).parent / "solve.svg"
WIDTH = 92
_DIM = [(38, 42, 52), (240, 98, 98), (120, 200, 120), (226, 180, 86)]
_DIM += [(104, 156, 242), (196, 130, 226), (84, 190, 202), (222, 226, 234)]
_BRIGHT = [(120, 128, 146), (255, 122, 122), (138, 222, 132), (250, 208, 104)]
_BRIGHT += [(128, 176, 255), (222, 150, 250), (104, 220, 230), (255, 255, 255)]
THEME = TerminalTheme((18, 20, 26), (222, 226, 234), _DIM, _BRIGHT)


def main() -> None:
    """Run, replay to the moment, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="Solve 3(x - 4) + 2(x + 5) = 2x + 25 for x.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--backend")
    parser.add_argument("--preset", default="tiny")
    chosen = parser.parse_args()
    stream: list[tuple[float, events.Event]] = []
    solution = openzaya.solve(
        chosen.problem,
        model=chosen.model,
        backend=chosen.backend,
        preset=chosen.preset,
        seed=chosen.seed,
        on_event=lambda event: stream.append((time.monotonic(), event)),
    )
    print(solution.text)
    PICTURE.write_text(picture(stream, chosen.problem, chosen.model), encoding="utf-8")
    print(PICTURE)


def picture(stream: list[tuple[float, events.Event]], problem: str, source: str) -> str:
    """The view in the middle of the last round, as SVG."""
    moment = middle_of_last_round(stream)
    state = RunState()
    for when, event in stream:
        if when <= moment:
            state.observe(event, when)
    console = Console(record=True, file=io.StringIO(), width=WIDTH, force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "bright_black"), f'openzaya solve "{problem}"'))
    console.print(draw_run(state, problem, source, moment, WIDTH))
    return console.export_svg(title="openzaya", theme=THEME, unique_id="solve")


def middle_of_last_round(stream: list[tuple[float, events.Event]]) -> float:
    """The time half-way between the beginning and the end of the last round."""
    begun = max(when for when, event in stream if isinstance(event, events.RoundStarted))
    ended = max(when for when, event in stream if isinstance(event, events.RoundFinished))
    return (begun + ended) / 2


if __name__ == "__main__":
    main()
