"""What `verify` accepts and rejects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.problems import Problem, families, generate, verify
from openzaya.problems.answers import normalised, same_answer


def problem_with(family: str, answer: str, **parameters: Any) -> Problem:
    return replace(generate(family, 0), parameters=parameters, answer=answer)


@pytest.mark.parametrize("family", tuple(families()))
def test_the_canonical_answer_is_right_and_another_instances_is_not(family: str) -> None:
    for seed in range(20):
        problem, other = generate(family, seed, 10), generate(family, seed + 1, 10)
        assert verify(problem, problem.answer)
        assert verify(problem, f"  {problem.answer.lower()}. ")
        assert not verify(problem, "")
        assert not verify(problem, problem.answer + "1")
        if other.answer != problem.answer:
            assert not verify(problem, other.answer)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("3, 5, 8", "3,5,8"),
        ("3, 5, 8", "[3, 5, 8]"),
        ("3, 5, 8", "3 5 8"),
        ("12345", "12,345"),
        ("33", "033"),
        ("33", "+33"),
        ("-4", "\u22124"),
        ("09:05", "9:05"),
        ("Friday", "friday"),
        ("C", "(c)"),
        ("7", "$7$"),
    ],
)
def test_equal_answers_in_other_spellings(left: str, right: str) -> None:
    assert same_answer(left, right)


@pytest.mark.parametrize(
    ("left", "right"), [("13 6", "136"), ("3, 5", "5, 3"), ("33", "-33"), ("10", "1"), ("", ""), ("1, 234", "1234")]
)
def test_different_answers_stay_different(left: str, right: str) -> None:
    assert not same_answer(left, right)


@given(st.text(max_size=40))
def test_normalising_takes_any_text_and_leaves_words(text: str) -> None:
    assert all(word and not set(word) & set(", ;\n\t") for word in normalised(text))


@given(st.lists(st.integers(), min_size=2, max_size=8), st.sampled_from([", ", ",", " ", " ; ", "\n"]))
def test_a_list_is_the_same_with_any_separator_and_no_other_list(numbers: list[int], separator: str) -> None:
    text = ", ".join(str(number) for number in numbers)
    assert same_answer(separator.join(f"{number:+05d}" for number in numbers), f"[{text}]")
    assert not same_answer(text, ", ".join(str(number) for number in [*numbers[:-1], numbers[-1] + 1]))


COUNTDOWN = {"numbers": [5, 3, 2], "target": 13, "operators": "+-*"}


@pytest.mark.parametrize("answer", ["5 * 3 - 2", "3*5-2", "(5 * 3) - 2 = 13", "5 \u00d7 3 \u2212 2"])
def test_countdown_accepts_any_expression_that_reaches_the_target(answer: str) -> None:
    assert verify(problem_with("countdown", "5 * 3 - 2", **COUNTDOWN), answer)


@pytest.mark.parametrize(
    "answer",
    ["5 * 3 - 3", "5 + 3 + 2", "13", "5 + 3 + 5", "5 * 3 - 2 * 1", "__import__('os')", "9**9**9", "5 *", "(" * 300],
)
def test_countdown_rejects_other_numbers_other_targets_and_other_syntax(answer: str) -> None:
    assert not verify(problem_with("countdown", "5 * 3 - 2", **COUNTDOWN), answer)


def test_countdown_rejects_an_operator_that_the_question_does_not_allow() -> None:
    problem = problem_with("countdown", "4 + 2 + 2", numbers=[4, 2, 2], target=8, operators="+-")
    assert verify(problem, "2 + 4 + 2")
    assert not verify(problem, "4 * 2 * 2 / 2")
    assert not verify(problem_with("countdown", "2 + 2", numbers=[2, 2], target=4, operators="+-"), "2 * 2")


def test_subset_sum_accepts_any_subset_of_the_asked_size() -> None:
    problem = problem_with("subset_sum", "4, 6", numbers=[4, 6, 3, 7, 1], target=10, size=2)
    for right in ("4, 6", "6, 4", "3, 7", "7 and 3", "3 + 7 = 10", "{3, 7}"):
        assert verify(problem, right), right
    for wrong in ("5, 5", "3, 6, 1", "4, 7", "10", "3, 3, 4", "none", "3 - 7"):
        assert not verify(problem, wrong), wrong


def test_factorisation_accepts_any_order_and_powers_but_no_composite_factor() -> None:
    problem = problem_with("factorisation", "2 * 2 * 3 * 7", number=84)
    for right in ("2 * 2 * 3 * 7", "7*3*2*2", "2^2 * 3 * 7", "2**2*3*7", "2, 2, 3, 7", "84 = 2^{2} \\times 3 \\cdot 7"):
        assert verify(problem, right), right
    for wrong in ("4 * 21", "2 * 3 * 7", "84", "1 * 2 * 2 * 3 * 7", "2 + 2 + 3 + 7"):
        assert not verify(problem, wrong), wrong


def test_a_date_may_be_written_in_either_order() -> None:
    problem = problem_with("dates_units", "May 4", kind="date", start=["April", 30], added=[4])
    for right in ("May 4", "may 04", "4 May", "May 4th", "4th of May"):
        assert verify(problem, right), right
    for wrong in ("May 5", "April 4", "May", "4", "4 May 4"):
        assert not verify(problem, wrong), wrong
