from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.grading import (
    Assertion,
    CodeTest,
    FunctionCall,
    InputOutput,
    describe_isolation,
    grade,
    run_tests,
)
from openzaya.grading.sandbox.code_tests import same_output
from openzaya.grading.sandbox.plain import alike, plain

confined = pytest.mark.skipif(not describe_isolation().strong, reason=f"no strong sandbox here: {describe_isolation()}")

DOUBLE = "def double(x):\n    print('noise')\n    return x * 2\n"


def verdicts(code: str, *tests: CodeTest) -> list[str]:
    return [outcome.verdict for outcome in run_tests(code, tests, seconds=10, stop_at_first_failure=False).outcomes]


def test_a_reply_without_an_answer_is_wrong_and_says_why() -> None:
    result = grade("I do not know.", "5")
    assert (result.correct, result.answer, result.method) == (False, None, "none")


def test_any_of_several_references_will_do() -> None:
    assert grade("The answer is 5.", ["4", "5"]).correct
    assert not grade("The answer is 6.", ["4", "5"]).correct


def test_an_option_is_graded_by_its_letter() -> None:
    assert grade("The answer is (b) because 2 > 1.", "B", task="choice").correct
    assert not grade("The answer is (b).", "C", task="choice").correct


def test_an_empty_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="reference"):
        grade("The answer is 5.", "")


@confined
def test_code_is_graded_by_its_tests() -> None:
    text = f"Here it is:\n```python\n{DOUBLE}```\n"
    right = grade(text, [FunctionCall("double", (4,), 8)])
    assert (right.correct, right.answer, right.method) == (True, DOUBLE, "tests")
    assert not grade(text, [FunctionCall("double", (4,), 9)]).correct
    assert grade("no code", [FunctionCall("double", (4,), 8)]).method == "none"


@confined
def test_a_program_is_judged_by_what_it_prints() -> None:
    code = "print(int(input()) * 2, end='  \\n\\n')"
    assert verdicts(code, InputOutput("4\n", "8"), InputOutput("4\n", "9"), InputOutput("four", "8")) == [
        "passed", "failed", "error",
    ]  # fmt: skip


@confined
def test_a_function_is_judged_by_what_it_returns() -> None:
    solution = "class Solution:\n    def pairs(self, xs):\n        return {x: (x, {x}) for x in xs}\n"
    assert verdicts(solution, FunctionCall("Solution.pairs", ([2, 1],), {1: [1, {1}], 2: [2, {2}]})) == ["passed"]
    assert verdicts(DOUBLE, FunctionCall("double", (0.1,), 0.2), FunctionCall("missing", (), 1)) == ["passed", "error"]


@confined
def test_assertions_run_after_the_program_in_its_namespace() -> None:
    tests = [Assertion("assert double(2) == 4"), Assertion("assert double(2) == 5"), Assertion("1/0")]
    assert verdicts(DOUBLE, *tests) == ["passed", "failed", "error"]


@confined
@pytest.mark.parametrize(
    "cheat",
    [
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "print('passed'); exit()",
        "import sys; sys.stdout.close(); exit(0)",
        "class Yes:\n    def __eq__(self, other): return True\ndef double(x): return Yes()",
        "class Yes(int):\n    def __eq__(self, other): return True\ndef double(x): return Yes()",
    ],
)
def test_ending_early_or_lying_about_equality_does_not_pass(cheat: str) -> None:
    assert verdicts(cheat, FunctionCall("double", (4,), 8))[0] in ("error", "failed")


@confined
def test_hanging_and_greed_are_told_apart_from_wrong_answers() -> None:
    report = run_tests("while True: pass", [InputOutput("", "")], seconds=0.3)
    assert [outcome.verdict for outcome in report.outcomes] == ["timeout"]
    assert not report.passed


@confined
def test_the_first_failure_ends_the_run_unless_all_are_wanted() -> None:
    tests = [InputOutput("", "1"), InputOutput("", "2"), InputOutput("", "1")]
    short = run_tests("print(1)", tests)
    assert (len(short.outcomes), short.passed_count, short.total, short.passed) == (2, 1, 3, False)
    assert run_tests("print(1)", tests, stop_at_first_failure=False).passed_count == 2


@confined
def test_no_tests_at_all_are_not_a_pass() -> None:
    assert not run_tests("print(1)", []).passed


def test_arguments_that_cannot_travel_are_refused() -> None:
    with pytest.raises(ValueError, match="literals"):
        run_tests("", [FunctionCall("f", (object(),), 1)], allow_weak=True)


@pytest.mark.parametrize(
    ("printed", "expected", "tolerance", "same"),
    [
        ("1 2\n3", "1 2  \n3\n\n", None, True),
        ("1  2", "1 2", None, False),
        ("1\n2", "1 2", None, False),
        ("0.3333333", "0.33333334", 1e-6, True),
        ("0.3333333", "0.33333334", None, False),
        ("0.4", "0.3", 1e-6, False),
        ("yes 1.0", "no 1", 1e-6, False),
        ("yes 1.0", "yes 1", 1e-6, True),
        ("", "", None, True),
    ],
)
def test_output_is_compared_by_lines_then_by_numbers(
    printed: str, expected: str, tolerance: float | None, same: bool
) -> None:
    assert same_output(printed, expected, tolerance) is same


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_every_plain_value_is_like_itself_after_a_journey_as_json(value: object) -> None:
    assert alike(json.loads(json.dumps(plain(value))), plain(value))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [((1, 2), [1, 2], True), ({1, 2}, {2, 1}, True), ({1}, [1], False), (True, 1, False), (1, 1.0, True),
     ("1", 1, False),
     ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True), ({1: 2}, {"1": 2}, False), (float("inf"), float("inf"), True),
     (0.1 + 0.2, 0.3, True), (10**400, 1.0, False), (None, 0, False)],
)  # fmt: skip
def test_values_are_alike_as_a_test_author_means_it(a: object, b: object, same: bool) -> None:
    assert alike(plain(a), plain(b)) is same
