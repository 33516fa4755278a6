"""How far an evaluation is, and how it is shown while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

_TOLD_SECONDS = 0.5
_PLAIN_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an evaluation stands; rollouts that a resumed one already had are in `done` and `total`."""

    stage: str
    done: int
    total: int
    """Rollouts; an estimate until the sizes of majorities at equal tokens are known."""
    tokens: int
    """Generated since this process began."""
    seconds: float
    left: float | None
    """Seconds still to go at the pace so far; None while there is no pace."""


OnProgress = Callable[[Progress], None]


class Meter:
    """Counts rollouts and tokens and tells `on_progress`, at most twice a second unless a stage begins or ends."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._stage = ""
        self._restored = self._done = self._tokens = self._total = 0
        self._began = time.monotonic()
        self._told = self._began

    def plan(self, done: int, total: int) -> None:
        """State how many rollouts there are in all, and how many of them are done by now.

        Ended rollouts beyond the plan (final calls, repeated ones) stay counted, so that a bar never goes back.
        """
        beyond = max(0, self._restored + self._done - done)
        self._total, self._restored = total + beyond, done + beyond - self._done

    def begin(self, stage: str) -> None:
        self._stage = stage
        self._tell()

    def count(self, tokens: int, ended: bool) -> None:
        """Take in new tokens, and the end of a rollout."""
        self._tokens += tokens
        self._done += ended
        if time.monotonic() - self._told >= _TOLD_SECONDS:
            self._tell()

    def finish(self) -> None:
        self._total = self._restored + self._done
        self.begin("done")

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._on_progress is None:
            return
        seconds = self._told - self._began
        done = min(self._restored + self._done, self._total)
        left = seconds / self._done * (self._total - done) if self._done else None
        self._on_progress(Progress(self._stage, done, self._total, self._tokens, seconds, left))


@contextmanager
def live_progress(stream: TextIO | None = None) -> Iterator[OnProgress]:
    """A callable for `on_progress` that draws a bar on a terminal, and elsewhere writes a line now and then."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield _plain_lines(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", style="dim"),
    )
    with Bar(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("starting", total=None, pace="")

        def show(progress: Progress) -> None:
            description, total = progress.stage, progress.total
            bar.update(task, description=description, completed=progress.done, total=total, pace=_pace(progress))

        yield show


def _plain_lines(stream: TextIO) -> OnProgress:
    told = 0.0
    stage = ""

    def show(progress: Progress) -> None:
        nonlocal told, stage
        now = time.monotonic()
        if progress.stage != stage or now - told >= _PLAIN_SECONDS:
            told, stage = now, progress.stage
            print(f"{stage}: {progress.done} of {progress.total} rollouts, {_pace(progress)}", file=stream, flush=True)

    return show


def _pace(progress: Progress) -> str:
    rate = progress.tokens / progress.seconds if progress.seconds else 0.0
    left = "" if progress.left is None else f", {duration(progress.left)} left"
    return f"{rate:,.0f} tokens/s{left}"


def duration(seconds: float) -> str:
    """Seconds as people say them: `48 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
