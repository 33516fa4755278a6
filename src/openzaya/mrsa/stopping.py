"""When a run has to end before it is done: its tokens are counted as they stream, and its clock is watched."""

from __future__ import annotations

import asyncio
from typing import Literal

StopReason = Literal["budget", "deadline"]


class Stopping:
    """The budget of one run. `reason` is set once, by whichever limit is reached first, and `reached` then wakes."""

    def __init__(self, max_total_tokens: int | None, deadline: float | None) -> None:
        self.reason: StopReason | None = None
        self.reached = asyncio.Event()
        self.tokens = 0.0
        self._max_total_tokens = max_total_tokens
        self._deadline = deadline
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch the clock."""
        if self._deadline is not None:
            self._timer = asyncio.get_running_loop().call_later(self._deadline, self.stop, "deadline")

    def close(self) -> None:
        """Stop watching the clock."""
        if self._timer is not None:
            self._timer.cancel()

    def count(self, tokens: float) -> None:
        """Add generated tokens; a negative count corrects an estimate."""
        self.tokens += tokens
        if self._max_total_tokens is not None and self.tokens >= self._max_total_tokens:
            self.stop("budget")

    def stop(self, reason: StopReason) -> None:
        """End the run for this reason, unless it is ending already."""
        if self.reason is None:
            self.reason = reason
            self.reached.set()
