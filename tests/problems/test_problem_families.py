"""Every family, at every difficulty: wording, solution, trace and slips."""

from __future__ import annotations

import contextlib
import io
import json
import re

import pytest

from openzaya.problems import Problem, families, generate, verify, work
from openzaya.problems.families.program_output import source

FAMILIES = tuple(families())
LONGEST_REASONING = {1: 160, 5: 420, 10: 800}


def problems(family: str, seeds: int) -> list[Problem]:
    spec = families()[family]
    difficulties = range(spec.min_difficulty, spec.max_difficulty + 1)
    return [generate(family, seed, difficulty) for difficulty in difficulties for seed in range(seeds)]


def test_there_are_seventeen_families_in_a_fixed_order() -> None:
    assert FAMILIES == (
        "arithmetic_chain",
        "modular_chain",
        "linear_equation",
        "remainders_list",
        "sums_list",
        "products_list",
        "sequence",
        "sorting",
        "counting",
        "column_addition",
        "long_multiplication",
        "countdown",
        "factorisation",
        "subset_sum",
        "dates_units",
        "program_output",
        "logic_order",
    )
    assert {spec.task for spec in families().values()} == {"math", "choice"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_worked_solution_concludes_the_answer(family: str) -> None:
    for problem in problems(family, seeds=25):
        worked = problem.worked
        assert worked.answer == problem.answer
        assert worked.slips == 0
        assert verify(problem, worked.answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_is_indexed_plain_and_ends_in_its_answer(family: str) -> None:
    for problem in problems(family, seeds=6):
        for rate in (0.0, 0.2, 1.0):
            worked = work(problem, slip_rate=rate, seed=problem.seed)
            *lines, last = worked.reasoning.split("\n")
            assert last == f"answer: {worked.answer}"
            assert [line.split(": ")[0] for line in lines] == [str(index) for index in range(1, len(lines) + 1)]
            assert lines
            assert worked.reasoning.isascii()
            assert "<" not in worked.reasoning or problem.family == "program_output"
            assert worked.reasoning == worked.reasoning.strip()
            assert not re.search(r"  |,\S|\d[+*/=>]|[+*/=>]\d", worked.reasoning)


@pytest.mark.parametrize("family", FAMILIES)
def test_reasoning_grows_with_difficulty_and_stays_bounded(family: str) -> None:
    means = {}
    for difficulty, longest in LONGEST_REASONING.items():
        lengths = [len(generate(family, seed, difficulty).worked.reasoning) for seed in range(40)]
        assert max(lengths) <= longest
        means[difficulty] = sum(lengths) / len(lengths)
    assert means[1] < means[5] < means[10]


@pytest.mark.parametrize("family", FAMILIES)
def test_slips_change_the_reasoning_and_usually_the_answer(family: str) -> None:
    wrong = slipped = 0
    for problem in problems(family, seeds=20):
        worked = work(problem, slip_rate=0.3, seed=1)
        if worked.slips:
            slipped += 1
            wrong += not verify(problem, worked.answer)
            assert worked.reasoning != problem.worked.reasoning
        else:
            assert worked == problem.worked
    assert slipped > 80
    assert wrong > slipped / 2


def test_reasoning_goes_on_from_a_slipped_value() -> None:
    problem = generate("arithmetic_chain", 3, 8)
    worked = work(problem, slip_rate=0.3, seed=2)
    steps = [line.split(": ")[1] for line in worked.reasoning.split("\n")[:-1]]
    results = [step.split(" = ")[1] for step in steps]
    assert [step.split(" ")[0] for step in steps[1:]] == results[:-1]
    assert results[-1] == worked.answer
    # The operands are read from the question, so they stay as they are.
    assert [step.split(" ")[2] for step in steps] == [str(operand) for _, operand in problem.parameters["steps"]]


@pytest.mark.parametrize("family", ["arithmetic_chain", "modular_chain", "remainders_list", "sums_list", "counting"])
def test_two_slipped_traces_align_line_by_line(family: str) -> None:
    problem = generate(family, 5, 9)
    first, second = (work(problem, slip_rate=0.3, seed=seed).reasoning.split("\n") for seed in (1, 2))
    assert first != second
    assert len(first) == len(second) == len(problem.worked.reasoning.split("\n"))


@pytest.mark.parametrize("family", FAMILIES)
def test_phrasings_differ_and_each_says_the_whole_instance(family: str) -> None:
    count = len(families()[family].phrasings)
    assert count >= 5
    for difficulty in (1, 4, 7, 10):
        for seed in range(8):
            worded = [generate(family, seed, difficulty, phrasing=index) for index in range(count)]
            assert len({problem.question for problem in worded}) == count
            assert len({problem.instance_hash for problem in worded}) == 1
            assert len({problem.answer for problem in worded}) == 1
            for problem in worded:
                assert "{" not in problem.question
                assert problem.question.isascii()
                said = _numbers(problem.question)
                assert _given(problem) <= said


def _numbers(text: str) -> set[int]:
    return {int(number) for number in re.findall(r"\d+", text)}


def _given(problem: Problem) -> set[int]:
    """The integers of the instance that a reader needs, without those that words express."""
    spoken = {"rank", "count", "factor", "size", "p", "q"}
    written = json.dumps({name: value for name, value in problem.parameters.items() if name not in spoken})
    numbers = _numbers(written)
    # A coefficient of 1 is not written in an equation, nor the zero that adds nothing.
    return numbers - {0, 1} if problem.family in {"linear_equation", "sequence"} else numbers


def test_a_plain_sum_is_asked_plainly() -> None:
    problem = generate("arithmetic_chain", 11, 2, phrasing=0)
    assert re.fullmatch(r"Compute \d+ [+-] \d+ [+-] \d+\.", problem.question)


@pytest.mark.parametrize("difficulty", range(1, 11))
def test_python_prints_what_the_program_family_says(difficulty: int) -> None:
    for seed in range(15):
        problem = generate("program_output", seed, difficulty)
        program = source(problem.parameters["program"])
        assert program in problem.question
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(program, {})
        assert printed.getvalue().strip() == problem.answer


@pytest.mark.parametrize("family", ["arithmetic_chain", "modular_chain", "sequence", "sums_list"])
def test_values_in_chains_stay_below_a_thousand_and_mostly_positive(family: str) -> None:
    negative = total = 0
    for problem in problems(family, seeds=20):
        for number in re.findall(r"(?<= = )-?\d+", problem.worked.reasoning):
            assert abs(int(number)) < 1000
            total += 1
            negative += int(number) < 0
    assert negative < total / 10
