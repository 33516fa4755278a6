"""Keeping processes that share a folder or a file out of each other's way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes out for the same file or folder, which must exist, having waited until none is inside.

    The system gives the lock up when its process ends, however it ends. Systems without such locks keep nobody out.
    Raises OSError where `path` cannot be opened.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
