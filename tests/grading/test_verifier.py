from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from openzaya.grading import Verifier, grade

thorough = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed")
ENDLESS = "9^{9^{9^{9}}}"


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(seconds=30) as shared:
        yield shared


@thorough
@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("1+x", "x+1", True),
        ("2\\sqrt{2}", "\\sqrt{8}", True),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("x+2", "x+1", False),
        ("3", "4", False),
        ("", "4", None),
    ],
)
def test_algebra_is_compared_by_value(verifier: Verifier, answer: str, reference: str, same: bool | None) -> None:
    assert verifier.equivalent(answer, reference) is same


@thorough
def test_a_comparison_that_never_ends_is_undecided_and_the_next_one_works(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier.equivalent("1", "1")
    with monkeypatch.context() as patch:
        patch.setattr(verifier, "seconds", 0.5)
        started = time.monotonic()
        assert verifier.equivalent(ENDLESS, "5") is None
        assert time.monotonic() - started < 10
    assert verifier.equivalent("1+x", "x+1") is True


@thorough
def test_a_worker_that_dies_is_replaced(verifier: Verifier) -> None:
    verifier.equivalent("1", "1")
    process = verifier._workers[0]._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    while process.poll() is None:
        time.sleep(0.01)
    assert verifier.equivalent("1+x", "x+1") is True


@thorough
def test_a_worker_that_dies_at_work_leaves_its_pair_undecided(verifier: Verifier) -> None:
    verifier.equivalent("1", "1")
    process = verifier._workers[0]._process
    assert process is not None
    timer = threading.Timer(0.2, process.kill)
    timer.start()
    assert verifier.equivalent(ENDLESS, "5") is None
    assert verifier.equivalent("1+x", "x+1") is True


@thorough
def test_the_event_loop_runs_on_while_a_comparison_does(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    async def compare() -> tuple[bool | None, int]:
        comparison = asyncio.create_task(verifier.aequivalent(ENDLESS, "5"))
        turns = 0
        while not comparison.done():
            await asyncio.sleep(0.01)
            turns += 1
        return comparison.result(), turns

    assert asyncio.run(verifier.aequivalent("1+x", "x+1")) is True
    monkeypatch.setattr(verifier, "seconds", 0.5)
    undecided, turns = asyncio.run(compare())
    assert undecided is None
    assert turns > 3


@thorough
def test_a_closed_verifier_leaves_no_process_and_says_so() -> None:
    with Verifier(workers=2) as verifier:
        verifier.equivalent("1+x", "x+1")
        process = verifier._workers[0]._process
    assert process is not None
    assert process.poll() is not None
    with pytest.raises(RuntimeError, match="closed"):
        verifier.equivalent("1", "1")
    verifier.close()


@thorough
def test_answers_beyond_reason_are_not_even_tried() -> None:
    with Verifier() as verifier:
        assert verifier.equivalent("x+" * 5000, "1") is None
        assert verifier._workers[0]._process is None


@thorough
def test_bad_limits_are_refused_by_value() -> None:
    with pytest.raises(ValueError, match="workers"):
        Verifier(workers=0)
    with pytest.raises(ValueError, match="seconds"):
        Verifier(seconds=0)


def test_without_math_verify_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"openzaya\[eval\]"):
        Verifier()


@thorough
def test_a_grade_says_what_decided_it(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = grade("so \\boxed{0.5}", "\\frac{1}{2}", verifier=verifier)
    assert (exact.correct, exact.answer, exact.method) == (True, "0.5", "exact")
    algebra = grade("so \\boxed{1+x}", "x+1", verifier=verifier)
    assert (algebra.correct, algebra.method) == (True, "thorough")
    wrong = grade("so \\boxed{2+x}", "x+1", verifier=verifier)
    assert (wrong.correct, wrong.method) == (False, "thorough")
    monkeypatch.setattr(verifier, "seconds", 0.5)
    undecided = grade(f"so \\boxed{{{ENDLESS}}}", "5", verifier=verifier)
    assert (undecided.correct, undecided.method) == (False, "exact")
