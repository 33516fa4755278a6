"""The thorough path: math-verify in processes that are killed when they take too long."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import math
import queue
import selectors
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self

_START_SECONDS = 120.0
_LONGEST = 2000


class Verifier:
    """Compares answers symbolically in `workers` processes, each killed and replaced after `seconds` on one pair.

    Workers start when first needed (sympy takes a second or two, which no comparison is charged for). Safe to use from
    several threads. Raises ModuleNotFoundError where math-verify is missing, ValueError for a limit that is not
    positive.
    """

    def __init__(self, workers: int = 1, seconds: float = 5) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers!r}")
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"seconds must be a positive number, not {seconds!r}")
        if importlib.util.find_spec("math_verify") is None:
            raise ModuleNotFoundError(
                "thorough grading needs math-verify; install it with `pip install openzaya[eval]`"
            )
        self.seconds = seconds
        self._closed = False
        self._idle: queue.Queue[_Worker] = queue.Queue()
        self._workers = [_Worker() for _ in range(workers)]
        for worker in self._workers:
            self._idle.put(worker)

    def equivalent(self, a: str, b: str) -> bool | None:
        """Whether answer `a` equals the reference `b`; None where that took too long or could not be decided.

        The order matters in rare cases: the reference is the side whose form sets what is compared (a set, an
        interval, an equation). Raises RuntimeError once closed.
        """
        if len(a) > _LONGEST or len(b) > _LONGEST:
            return None
        worker = self._idle.get()
        try:
            if self._closed:
                raise RuntimeError("this Verifier is closed; make a new one")
            return worker.compare(a, b, self.seconds)
        except BaseException:
            worker.kill()
            raise
        finally:
            self._idle.put(worker)

    async def aequivalent(self, a: str, b: str) -> bool | None:
        """`equivalent` without blocking the event loop."""
        return await asyncio.to_thread(self.equivalent, a, b)

    def close(self) -> None:
        """End the workers; comparisons under way end as undecided."""
        self._closed = True
        for worker in self._workers:
            worker.interrupt()
        owned = [self._idle.get() for _ in self._workers]  # a pipe may be closed only when nobody reads from it
        for worker in owned:
            worker.kill()
            self._idle.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        for worker in getattr(self, "_workers", ()):
            worker.kill()


class _Worker:
    """One process, started at its first comparison and again after it was killed or died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def compare(self, answer: str, reference: str, seconds: float) -> bool | None:
        process = self._running()
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps([answer, reference]).encode() + b"\n")
            verdict = _read_reply(process, seconds)
        except (OSError, EOFError, TimeoutError, ValueError):
            self.kill()
            return None
        return verdict if isinstance(verdict, bool) else None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.kill()
        command = [sys.executable, "-m", "openzaya.grading.verifier_worker"]
        self._process = process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        try:
            _read_reply(process, _START_SECONDS)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self.kill()
            raise RuntimeError(f"a grading worker did not start; run `{' '.join(command)}` to see why") from error
        return process

    def interrupt(self) -> None:
        """End the process under whoever reads from it, who then sees the end of the pipe."""
        if (process := self._process) is not None:
            process.kill()

    def kill(self) -> None:
        """End the process and give its pipes back."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _read_reply(process: subprocess.Popen[bytes], seconds: float) -> Any:
    """The next JSON line; raises TimeoutError after `seconds` and EOFError if the process ended."""
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    received = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not received.endswith(b"\n"):
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not selector.select(remaining):
                raise TimeoutError
            piece = process.stdout.read(1 << 16)
            if not piece:
                raise EOFError
            received += piece
    return json.loads(received)
