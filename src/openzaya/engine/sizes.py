"""Amounts of memory as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(size: int | str) -> int:
    """Bytes from a number or from text such as "4GiB" or "500 MB". Raises ValueError for anything else."""
    if isinstance(size, int):
        return size
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", size)
    if not found or found[2].lower() not in _UNITS:
        raise ValueError(f"memory is {size!r}; give bytes or a size such as '4GiB' or '500MB'")
    return int(float(found[1]) * _UNITS[found[2].lower()])
