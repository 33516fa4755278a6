"""Keeping processes that share a folder or a file out of each other's way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Keep other processes out for the same file or folder, which must exist, having waited until none is inside.

    Gives whether `path` is still the same, which whoever was inside before may have removed. `on_wait` is called
    before a wait. The system gives the lock up when its process ends, however it ends. Systems
    without such locks keep nobody out. Raises OSError where `path` cannot be opened.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
    finally:
        os.close(descriptor)
