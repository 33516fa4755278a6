"""Run generated code once: the public face of the sandbox."""

from __future__ import annotations

import os
from dataclasses import dataclass

from openzaya.grading.sandbox.execution import Program, SandboxError, execute
from openzaya.grading.sandbox.isolation import WEAK_VARIABLE, Isolation, describe_isolation


class WeakSandboxError(SandboxError):
    """This machine cannot confine generated code, and nobody has said that this is acceptable."""


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """What a program did in the sandbox."""

    stdout: str
    """At most 1 MiB, with a note at its end if there was more; bytes that are not UTF-8 appear as U+FFFD."""
    stderr: str
    exit_code: int
    """Negative for the signal that ended it: -9 after the deadline or the memory limit."""
    timed_out: bool
    seconds: float
    """Wall-clock time of the program, its interpreter's start included."""
    isolation: str
    """The level it ran at: `bubblewrap`, `namespaces` or `rlimits`."""
    memory_exceeded: bool = False
    """Its processes together passed the limit; one alone gets a MemoryError instead."""
    truncated: bool = False


def run_code(
    code: str,
    *,
    stdin: str = "",
    seconds: float = 5,
    memory_mb: int = 512,
    language: str = "python",
    processes: int = 32,
    allow_weak: bool = False,
) -> SandboxResult:
    """Run a Python program that nobody has read, confined as well as this machine can.

    It sees its standard library and one empty writable folder; no network, no other files, no environment. Everything
    it started is dead when this returns. Raises WeakSandboxError where the machine cannot hold it and neither
    `allow_weak` nor OPENZAYA_WEAK_SANDBOX=1 accepts that, and ValueError for a language other than Python.
    """
    if language != "python":
        raise ValueError(f"the sandbox runs language 'python' only, not {language!r}")
    isolation = accepted_isolation(allow_weak)
    program = Program(code, stdin=stdin, seconds=seconds, memory_mb=memory_mb, processes=processes)
    return run_program(program, isolation)


def run_program(program: Program, isolation: Isolation) -> SandboxResult:
    """Run a program at a level that was accepted before."""
    execution = execute(program, isolation.level)
    return SandboxResult(
        stdout=execution.stdout,
        stderr=execution.stderr,
        exit_code=execution.exit_code,
        timed_out=execution.timed_out,
        seconds=execution.seconds,
        isolation=isolation.level,
        memory_exceeded=execution.memory_exceeded,
        truncated=execution.truncated,
    )


def accepted_isolation(allow_weak: bool = False) -> Isolation:
    """This machine's isolation, once it is strong or its weakness is accepted; raises WeakSandboxError otherwise."""
    isolation = describe_isolation()
    if isolation.strong or allow_weak or os.environ.get(WEAK_VARIABLE) == "1":
        return isolation
    missing = "; ".join(f"{name}: {guard.mechanism}" for name, guard in isolation.guards.items() if not guard.holds)
    raise WeakSandboxError(
        f"this machine cannot confine generated code ({missing}); install bubblewrap, allow namespaces, or accept it "
        f"with allow_weak=True or {WEAK_VARIABLE}=1"
    )
