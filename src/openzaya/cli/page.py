"""A run as one HTML file, drawn from its journal."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from openzaya.cli.exits import InputError

if TYPE_CHECKING:
    from openzaya.mrsa.solution import Solution


def check_place(page: Path) -> None:
    """Raise InputError where no file can be written there, before anything has run for it."""
    if page.is_dir():
        raise InputError(f"--html {page} is a folder; name a file")
    if not page.parent.is_dir():
        raise InputError(f"the folder of --html {page} does not exist; make it, or name another")


@contextmanager
def journal_for_page(page: Path | None, journal: Path | None) -> Iterator[Path | None]:
    """The journal of a run: as given, else one for the time of the run where a page is drawn from it."""
    if page is None or journal is not None:
        yield journal
        return
    with tempfile.TemporaryDirectory(prefix="openzaya-") as folder:
        yield Path(folder) / "run.jsonl"


@contextmanager
def drawing(page: Path | None, journal: Path | None) -> Iterator[None]:
    """Draw the run that ends within, whether it ends well or not."""
    try:
        yield
    finally:
        if page is not None and journal is not None and journal.is_file():
            draw_journal(journal, page)


def draw_journal(journal: Path, page: Path) -> Solution | None:
    """Draw the run of a journal in a file, as far as it got, and return its solution; None where it had not ended.

    Raises InputError where there is no journal, JournalError where it cannot be read, OSError where the page cannot be
    written.
    """
    return asyncio.run(_draw(journal, page))


async def _draw(path: Path, page: Path) -> Solution | None:
    from openzaya.mrsa.course import MrsaError, retell
    from openzaya.mrsa.journal import JsonLinesSink
    from openzaya.serve.run_page import page_of

    sink = JsonLinesSink(path)
    journal = await sink.read()
    if journal is None:
        raise InputError(f"there is no run in {path}; give the journal of one")
    _write(page, await page_of(journal))
    if journal.end is None:
        return None
    try:
        return await retell(journal, sink, None)
    except MrsaError:
        return None


def _write(page: Path, text: str) -> None:
    """All of it or nothing: whoever has the old page open never finds half a new one."""
    beside = page.with_name(f".{page.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, page)
    finally:
        beside.unlink(missing_ok=True)
