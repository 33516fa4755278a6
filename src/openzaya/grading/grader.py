"""Grade one reply against its reference: extraction first, then the exact path, then the thorough one or the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from openzaya.grading.equivalence import equivalent
from openzaya.grading.extraction import extract_answer
from openzaya.grading.sandbox import CodeTest, run_tests
from openzaya.grading.verifier import Verifier

Method = Literal["exact", "thorough", "tests", "none"]


@dataclass(frozen=True, slots=True)
class Grade:
    """Whether a reply is right, the answer it gave, and what decided: `none` where it gave no answer."""

    correct: bool
    answer: str | None
    method: Method


def grade(
    text: str,
    reference: str | Sequence[str] | Sequence[CodeTest],
    task: str = "auto",
    verifier: Verifier | None = None,
    *,
    seconds: float = 5,
    memory_mb: int = 512,
) -> Grade:
    """Grade a reply; it is right if it equals the reference, or one of several, or passes all tests.

    With tests as the reference the last fenced block is run on them in the sandbox, with these limits a test. An
    answer that the exact path does not accept goes to the verifier, if there is one and the task has formulas; what
    that cannot decide counts as wrong. Raises ValueError for an empty reference, and WeakSandboxError as `run_code`.
    """
    if not reference:
        raise ValueError(f"the reference must hold an answer or tests, not {reference!r}")
    references = [reference] if isinstance(reference, str) else list(reference)
    tests = [item for item in references if isinstance(item, get_args(CodeTest))]
    if tests:
        return _grade_code(text, tests, seconds, memory_mb)
    answer = extract_answer(text, task)
    if answer is None:
        return Grade(False, None, "none")
    wanted = [str(item) for item in references]
    if any(equivalent(answer, item) for item in wanted):
        return Grade(True, answer, "exact")
    if verifier is None or task in ("choice", "code"):
        return Grade(False, answer, "exact")
    verdicts = [verifier.equivalent(answer, item) for item in wanted]
    decided = any(verdict is not None for verdict in verdicts)
    return Grade(any(verdicts), answer, "thorough" if decided else "exact")


def _grade_code(text: str, tests: Sequence[CodeTest], seconds: float, memory_mb: int) -> Grade:
    code = extract_answer(text, "code")
    if code is None:
        return Grade(False, None, "none")
    report = run_tests(code, tests, seconds=seconds, memory_mb=memory_mb)
    return Grade(report.passed, code, "tests")
