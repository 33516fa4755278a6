"""Tests of generated programs: standard input and output, function calls, and assertions."""

from __future__ import annotations

import ast
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from openzaya.grading.sandbox.code import SandboxResult, accepted_isolation, run_program
from openzaya.grading.sandbox.execution import Program
from openzaya.grading.sandbox.plain import alike, plain


@dataclass(frozen=True, slots=True)
class InputOutput:
    """The program reads `stdin` and must print `stdout`; space at line ends and empty lines at the end do not count."""

    stdin: str
    stdout: str
    tolerance: float | None = None
    """Where set, words that are numbers on both sides may differ by this much, relative or absolute."""


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """`function(*arguments)` must return `returns`; the expected value never enters the sandbox.

    `function` may be dotted (`Solution().solve` is written `Solution.solve`: a class on the way is instantiated).
    """

    function: str
    arguments: tuple[Any, ...]
    returns: Any
    tolerance: float = 1e-9


@dataclass(frozen=True, slots=True)
class Assertion:
    """Python source that runs after the program in its namespace and fails by raising.

    The program shares its interpreter with the test and could cheat by searching it; prefer the other two kinds where
    a model is trained on the outcome.
    """

    source: str


CodeTest = InputOutput | FunctionCall | Assertion
Verdict = Literal["passed", "failed", "error", "timeout", "memory"]


@dataclass(frozen=True, slots=True)
class CodeOutcome:
    """How one test went; `detail` says what was seen where it did not pass."""

    verdict: Verdict
    detail: str
    seconds: float


@dataclass(frozen=True, slots=True)
class CodeReport:
    """The outcomes of a program's tests in order; fewer than `total` where the first failure ended the run."""

    outcomes: tuple[CodeOutcome, ...]
    total: int
    isolation: str

    @property
    def passed(self) -> bool:
        """Whether there were tests and all of them passed."""
        return 0 < self.total == self.passed_count

    @property
    def passed_count(self) -> int:
        """How many tests passed."""
        return sum(outcome.verdict == "passed" for outcome in self.outcomes)


def run_tests(
    code: str,
    tests: Sequence[CodeTest],
    *,
    seconds: float = 5,
    memory_mb: int = 512,
    stop_at_first_failure: bool = True,
    allow_weak: bool = False,
) -> CodeReport:
    """Run each test in a fresh sandbox with a limit of its own; raises WeakSandboxError as `run_code` does."""
    isolation = accepted_isolation(allow_weak)
    outcomes: list[CodeOutcome] = []
    for test in tests:
        mark = secrets.token_hex(16)
        source, stdin = _source_and_input(code, test, mark)
        program = Program(source, stdin=stdin, seconds=seconds, memory_mb=memory_mb)
        result = run_program(program, isolation)
        verdict, detail = _judge(test, result, mark)
        outcomes.append(CodeOutcome(verdict, detail, result.seconds))
        if verdict != "passed" and stop_at_first_failure:
            break
    return CodeReport(tuple(outcomes), len(tests), isolation.level)


# --- into the sandbox -----------------------------------------------------------------------------------------------

# The result leaves by a copy of standard output; what the program prints goes to standard error. The mark shows that
# the end of the test was reached: a program that exits early, or prints a result of its own, does not know it.
_RUNNER = """
import sys

def run():
    import json, os
    request = json.loads(sys.stdin.readline())
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    dumps = json.dumps
    namespace = {"__name__": "solution", "__builtins__": __builtins__}
    exec(compile(request["code"], "solution.py", "exec"), namespace)
    if request["kind"] == "assertion":
        exec(compile(request["source"], "test.py", "exec"), namespace)
        value = None
    else:
        from_plain = {}
        exec(compile(request["plain"], "plain.py", "exec"), from_plain)
        target, *rest = request["function"].split(".")
        target = namespace[target]
        for name in rest:
            target = getattr(target() if isinstance(target, type) else target, name)
        arguments = eval(request["arguments"], {})
        value = from_plain["plain"](target(*arguments))
    channel.write(request["mark"] + dumps(value))
    channel.close()

run()
"""


@lru_cache(maxsize=1)
def _plain_source() -> str:
    return Path(__file__).with_name("plain.py").read_text(encoding="utf-8")


def _source_and_input(code: str, test: CodeTest, mark: str) -> tuple[str, str]:
    if isinstance(test, InputOutput):
        return code, test.stdin
    request = {"code": code, "mark": mark}
    if isinstance(test, Assertion):
        request |= {"kind": "assertion", "source": test.source}
    else:
        request |= {"kind": "call", "function": test.function, "arguments": _literal(test), "plain": _plain_source()}
    return _RUNNER, json.dumps(request) + "\n"


def _literal(call: FunctionCall) -> str:
    text = repr(tuple(call.arguments))
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"the arguments of {call.function} must be Python literals (numbers, strings, lists, tuples, sets, "
            f"dictionaries), not {text[:200]}"
        ) from error
    return text


# --- out of the sandbox ---------------------------------------------------------------------------------------------


def _judge(test: CodeTest, result: SandboxResult, mark: str) -> tuple[Verdict, str]:
    if result.timed_out:
        return "timeout", f"stopped after {result.seconds:.1f} s"
    if result.memory_exceeded:
        return "memory", "its processes together passed the memory limit"
    if isinstance(test, InputOutput):
        if result.exit_code != 0:
            return "error", _last_lines(result)
        if same_output(result.stdout, test.stdout, test.tolerance):
            return "passed", ""
        return "failed", f"printed {result.stdout[:500]!r}"
    if not result.stdout.startswith(mark):
        failed = isinstance(test, Assertion) and "AssertionError" in result.stderr
        return "failed" if failed else "error", _last_lines(result) or "the program ended before the test"
    if isinstance(test, Assertion):
        return "passed", ""
    try:
        value = json.loads(result.stdout[len(mark) :])
    except (ValueError, RecursionError):
        return "error", "the returned value is too large to read"
    if alike(value, plain(test.returns), test.tolerance):
        return "passed", ""
    return "failed", f"returned {json.dumps(value)[:500]}"


def _last_lines(result: SandboxResult) -> str:
    return result.stderr.strip()[-500:] or (f"exit code {result.exit_code}" if result.exit_code else "")


def same_output(printed: str, expected: str, tolerance: float | None = None) -> bool:
    """Whether a program printed what was expected, by lines without trailing space, else by numbers in tolerance."""
    ours, theirs = _lines(printed), _lines(expected)
    if ours == theirs:
        return True
    if tolerance is None or len(ours) != len(theirs):
        return False
    pairs = [(a.split(), b.split()) for a, b in zip(ours, theirs, strict=True)]
    return all(
        len(a) == len(b) and all(_same_word(x, y, tolerance) for x, y in zip(a, b, strict=True)) for a, b in pairs
    )


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _same_word(a: str, b: str, tolerance: float) -> bool:
    if a == b:
        return True
    try:
        return alike(float(a), float(b), tolerance)
    except ValueError:
        return False
