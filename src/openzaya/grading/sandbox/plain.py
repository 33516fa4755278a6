"""Values as JSON that two interpreters read alike; the sandbox runs this file's text before a function call."""

from __future__ import annotations

import math
from typing import Any


def plain(value: Any) -> Any:
    """Lists, numbers, strings and tagged objects that stand for a value; tuples count as lists, as in most tests."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return {"set": sorted((plain(item) for item in value), key=repr)}
    if isinstance(value, dict):
        return {"dict": [[plain(key), plain(item)] for key, item in value.items()]}
    return {"other": [type(value).__name__, repr(value)]}


def alike(a: Any, b: Any, tolerance: float = 1e-9) -> bool:
    """Whether two plain values are equal, floats within a relative or absolute tolerance, dictionaries in any order."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        if isinstance(a, int) and isinstance(b, int):
            return a == b
        try:
            return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:
            return False
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(alike(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        if "dict" in a:
            return _alike_pairs(a["dict"], b["dict"], tolerance)
        return all(alike(a[key], b[key], tolerance) for key in a)
    return bool(a == b)


def _alike_pairs(a: list[Any], b: list[Any], tolerance: float) -> bool:
    rest = {repr(key): item for key, item in b}
    return len(a) == len(b) and all(repr(key) in rest and alike(item, rest[repr(key)], tolerance) for key, item in a)
