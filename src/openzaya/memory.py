"""How much memory this machine has, and how much of it a new program can have now."""

from __future__ import annotations

import os
from pathlib import Path


def memory_bytes() -> tuple[int | None, int | None]:
    """Bytes in all and bytes available, the smaller of what the kernel says and what the container may use.

    None stands for what this system does not tell.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        table = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        total, available = table["MemTotal"], table["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return _memory_of_posix(), None
    limit = _number_in("/sys/fs/cgroup/memory.max")
    used = _number_in("/sys/fs/cgroup/memory.current")
    if limit is not None and limit < total:
        return limit, min(available, max(0, limit - (used or 0)))
    return total, available


def _memory_of_posix() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _number_in(path: str) -> int | None:
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
