"""How a verb that moves bytes is followed on standard error: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from openzaya.cli.exits import say
from openzaya.cli.figures import byte_size, duration

_SECONDS_BETWEEN_LINES = 10.0

OnBytes = Callable[[int, int], None]
"""Takes bytes done and bytes in all."""


@contextmanager
def follow_bytes(title: str) -> Iterator[OnBytes]:
    """The callable that takes the progress of one job and shows it until the block ends."""
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _lines(title: str, clock: Callable[[], float] = time.monotonic) -> OnBytes:
    began = last = clock()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            left = duration((now - began) * (total - done) / max(1, done))
            say(f"{title}: {byte_size(done)} of {byte_size(total)}, about {left} left")

    return show
