"""The process behind `Verifier`: reads pairs of answers as JSON lines and says whether math-verify holds them equal.

Started as `python -m openzaya.grading.verifier_worker`. It has no time limit of its own: math-verify's are signals that
work in a main thread only, so its owner kills the whole process instead.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import IO, Any

MEMORY_BYTES = 2 << 30


def main() -> None:
    """Serve until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever sympy prints must not be taken for a reply
    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(5000)
    from math_verify import parse, verify

    _limit_memory()
    _compare(parse, verify, "x^2+1", "1+x^2")  # loads what math-verify imports late, before any clock runs
    _say(replies, "ready")
    for line in sys.stdin:
        answer, reference = json.loads(line)
        _say(replies, _compare(parse, verify, answer, reference))


def _compare(parse: Any, verify: Any, answer: str, reference: str) -> bool | None:
    try:
        gold = parse(f"${reference}$", parsing_timeout=None)
        found = parse(f"${answer}$", parsing_timeout=None)
        if not gold or not found:
            return None
        return bool(verify(gold, found, timeout_seconds=None, raise_on_error=True))
    except Exception:
        return None


def _limit_memory() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _say(replies: IO[str], value: object) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
