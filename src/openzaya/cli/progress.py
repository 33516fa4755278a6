"""How a run is followed on standard error: drawn live on a terminal, as lines elsewhere, not at all where asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live

from openzaya.cli.figures import count, duration, rate, shortened
from openzaya.cli.grid import draw_run, time_left
from openzaya.cli.run_state import RunState, Stage
from openzaya.mrsa import events

_FRAMES_A_SECOND = 8
_SECONDS_BETWEEN_LINES = 10.0
_SHOWN_FAILURES = 3


@contextmanager
def follow(problem: str, source: str, stream: TextIO, *, quiet: bool = False) -> Iterator[events.OnEvent | None]:
    """The callable that takes a run's events and shows them on `stream` until the block ends; None with `quiet`."""
    if quiet:
        yield None
        return
    console = Console(file=stream)
    if console.is_terminal and not console.is_dumb_terminal and console.encoding.lower().startswith("utf"):
        with _live(problem, source, console) as on_event:
            yield on_event
    else:
        yield LineReport(source, lambda line: print(line, file=stream, flush=True))


@contextmanager
def _live(problem: str, source: str, console: Console) -> Iterator[events.OnEvent]:
    state = RunState()
    # Frames are drawn by a thread of rich, so that the clock runs on while no event comes.
    lock = threading.Lock()

    def draw() -> RenderableType:
        with lock:
            return draw_run(state, problem, source, time.monotonic(), console.width)

    def observe(event: events.Event) -> None:
        with lock:
            state.observe(event, time.monotonic())

    with Live(get_renderable=draw, console=console, refresh_per_second=_FRAMES_A_SECOND, redirect_stdout=False):
        yield observe
    for failure in state.failures[:_SHOWN_FAILURES]:
        console.print(f"a candidate failed: {failure}", style="yellow", markup=False, highlight=False)


class LineReport:
    """A run as lines of text: its settings, each round's end, and in between a line every ten seconds at most."""

    def __init__(self, source: str, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._source, self._write, self._clock = source, write, clock
        self._state = RunState()
        self._last_line = clock()

    def __call__(self, event: events.Event) -> None:
        now = self._clock()
        self._state.observe(event, now)
        match event:
            case events.RunStarted():
                self._say(_opening(event, self._source))
            case events.RoundFinished():
                self._say(self._round_line(event))
            case events.FinalStarted():
                self._say("no answer is held by more than half: one final aggregation")
            case events.CandidateFailed() if len(self._state.failures) <= _SHOWN_FAILURES:
                self._say(f"a candidate of round {event.round} failed: {event.failure}")
            case events.RunFinished():
                self._say(_closing(event))
            case _ if now - self._last_line >= _SECONDS_BETWEEN_LINES:
                self._say(self._current_line(now))

    def _say(self, line: str) -> None:
        self._write(line)
        self._last_line = self._clock()

    def _round_line(self, event: events.RoundFinished) -> str:
        votes = ", ".join(f"{shortened(answer, 40)} ×{number}" for answer, number in event.votes.items())
        lost = [f"{event.failed} failed" if event.failed else "", f"{event.cut} cut" if event.cut else ""]
        beside = "".join(f", {word}" for word in lost if word)
        return (
            f"round {event.round}: {len(self._state.rounds[event.round].places)} candidates{beside}; "
            f"{f'votes {votes}' if votes else 'no votes'}; "
            f"{event.completion_tokens:,} tokens in {duration(event.seconds)}"
        )

    def _current_line(self, now: float) -> str:
        row = self._state.final or self._state.rounds[-1]
        name = "final aggregation" if self._state.final else f"round {len(self._state.rounds) - 1}"
        words = [f"{row.ended} of {len(row.places)} done", f"{row.count(Stage.WRITING)} writing"]
        words.append(f"{self._state.tokens:,} tokens")
        if speed := self._state.tokens_per_second(now):
            words.append(f"{rate(speed)} a second")
        outlook = self._state.outlook(now)
        if outlook is not None and outlook.seconds is not None:
            words.append(time_left(outlook))
        return f"{name}: {', '.join(words)}"


def _opening(event: events.RunStarted, source: str) -> str:
    config = event.config
    bound = config.token_bound()
    shape = f"N {config.candidates}"
    if config.rounds:
        shape += f", C {config.tails}, T {config.rounds}, β {config.beta:,}, τ {config.tau:,}"
    expected = "as many tokens as the context leaves" if bound is None else f"at most {count(bound)} tokens"
    restored = f"; {event.restored} rollouts are taken from the journal" if event.restored else ""
    return f"Markovian RSA with {event.model or source}: {shape}; {expected}{restored}"


def _closing(event: events.RunFinished) -> str:
    how = "answered" if event.finish_reason == "answered" else f"ended by its {event.finish_reason}"
    return f"{how} after {duration(event.seconds)} and {event.completion_tokens:,} tokens"
