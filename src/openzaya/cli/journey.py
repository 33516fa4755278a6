"""How a model on its way from the hub is followed: a plan, one question, and bars on a terminal or lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import typer

from openzaya.cli.exits import Code, say
from openzaya.cli.figures import byte_size, duration

if TYPE_CHECKING:
    from openzaya.model.hub.journey import Progress
    from openzaya.model.hub.plan import Plan

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def follow_journey(*, yes: bool, quiet: bool = False) -> Iterator[CommandJourney]:
    """Who follows the preparation of one model, until the block ends; `quiet` says what is wrong alone."""
    with ExitStack() as stack:
        yield CommandJourney(stack, yes=yes, quiet=quiet)


class CommandJourney:
    """A `Journey` on standard error.

    On a terminal a person is asked before a large download, or before running a model that memory does not hold.
    Elsewhere nobody is: a download goes on, since the command has named the model, and too little memory ends it.
    """

    def __init__(self, stack: ExitStack, *, yes: bool, quiet: bool) -> None:
        self._stack, self._yes, self._quiet = stack, yes, quiet
        self._show: Bars | Lines | None = None

    def begin(self, plan: Plan) -> None:
        """Raises ValueError or typer.Exit where it ends here."""
        asks = plan.asks and not self._yes and sys.stdin.isatty() and sys.stderr.isatty()
        if asks or not self._quiet:
            for line in plan.lines():
                say(line)
        if asks:
            _ask(plan)
        elif not self._yes:
            plan.require_memory()
        if not self._quiet:
            self._show = self._stack.enter_context(_bars()) if sys.stderr.isatty() else Lines()

    def progress(self, progress: Progress) -> None:
        if self._show is not None:
            self._show(progress)

    def tell(self, sentence: str) -> None:
        say(f"openzaya: {sentence}")


def _ask(plan: Plan) -> None:
    try:
        agreed = typer.confirm("Go on?", default=not plan.short_of_memory, err=True)
    except typer.Abort:
        agreed = False
    if not agreed:
        say(f"openzaya: nothing was downloaded of {plan.name}")
        raise typer.Exit(Code.INTERRUPTED)


class Lines:
    """A line every ten seconds at most."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._first: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        self._first = self._first or progress
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        left = seconds_left(self._first, progress, now - self._began)
        said = f"{byte_size(progress.downloaded)} of {byte_size(progress.to_download)} downloaded"
        if progress.to_write:
            said += f", {byte_size(progress.written)} of {byte_size(progress.to_write)} quantised"
        say(said + ("" if left is None else f", about {duration(left)} left"))


def seconds_left(first: Progress, now: Progress, seconds: float) -> float | None:
    """By what came and was written in `seconds`: the longer of the two that go on side by side; None at the start."""
    found = []
    for began, done, total in (
        (first.downloaded, now.downloaded, now.to_download),
        (first.written, now.written, now.to_write),
    ):
        if total > done and done > began:
            found.append(seconds * (total - done) / (done - began))
    return max(found, default=None)


class Bars:
    """A bar of what came and one of what is quantised."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._tasks = [progress.add_task(title, total=None) for title in ("downloading", "quantising")]

    def __call__(self, progress: Progress) -> None:
        self._progress.update(self._tasks[0], completed=progress.downloaded, total=progress.to_download)
        shown = progress.to_write > 0
        self._progress.update(self._tasks[1], completed=progress.written, total=progress.to_write, visible=shown)


@contextmanager
def _bars() -> Iterator[Bars]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with RichProgress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        yield Bars(progress)
