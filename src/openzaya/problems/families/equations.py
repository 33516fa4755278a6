"""Linear equations in one unknown with integer solutions.

A side is a list of terms: ["x", a] is a * x, ["n", b] is b, and ["p", a, b] is a * (x + b).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from openzaya.problems.family import Family, Parameters, Steps, at, templates
from openzaya.problems.stepper import Stepper

Term = list[Any]

# The terms of the two sides; the last constant on the right is the one that makes the solution come out.
_SHAPES = (
    ("xn", "n"),
    ("xn", "n"),
    ("xn", "n"),
    ("xn", "xn"),
    ("p", "n"),
    ("p", "xn"),
    ("pn", "xn"),
    ("pp", "n"),
    ("pp", "xn"),
    ("pp", "pn"),
)
_LARGEST_COEFFICIENT = (1, 3, 5, 6, 6, 7, 8, 8, 9, 9)
_LARGEST_CONSTANT = (15, 15, 20, 20, 9, 9, 12, 9, 9, 12)
_LARGEST_SOLUTION = (15, 10, 12, 12, 15, 15, 15, 15, 20, 20)


def _linear_instance(random: Random, difficulty: int) -> dict[str, Any]:
    shape = at(_SHAPES, difficulty)
    while True:
        left = [_term(random, kind, difficulty) for kind in shape[0]]
        right = [_term(random, kind, difficulty) for kind in shape[1]]
        solution = random.randint(1, at(_LARGEST_SOLUTION, difficulty))
        if difficulty > 3 and random.random() < 0.2:
            solution = -solution
        net = _slope(left) - _slope(right)
        constant = _at_point(left, solution) - _at_point(right[:-1], solution)
        if net > 0 and constant != 0 and abs(constant) < 200:
            return {"left": left, "right": [*right[:-1], ["n", constant]]}


def _term(random: Random, kind: str, difficulty: int) -> Term:
    largest = at(_LARGEST_COEFFICIENT, difficulty)
    constant = random.randint(1, at(_LARGEST_CONSTANT, difficulty)) * random.choice((1, 1, -1))
    if kind == "n":
        return ["n", constant]
    if kind == "x":
        return ["x", random.randint(1, largest)]
    return ["p", random.randint(2, largest), constant]


def _slope(terms: Sequence[Term]) -> int:
    return sum(term[1] for term in terms if term[0] != "n")


def _at_point(terms: Sequence[Term], x: int) -> int:
    total = 0
    for kind, *numbers in terms:
        total += numbers[0] if kind == "n" else numbers[0] * (x + sum(numbers[1:]))
    return total


def _side(terms: Sequence[Term]) -> str:
    """A side as it is written: `3(x - 4) + 7`."""
    text = ""
    for kind, *numbers in terms:
        lead = abs(numbers[0])
        body = str(lead) if kind == "n" else f"{'' if lead == 1 else lead}x"
        if kind == "p":
            body = f"{lead}(x {_signed(numbers[1])})"
        if text:
            text += f" {'-' if numbers[0] < 0 else '+'} {body}"
        else:
            text = f"-{body}" if numbers[0] < 0 else body
    return text


def _signed(number: int) -> str:
    return f"- {-number}" if number < 0 else f"+ {number}"


def _linear_fields(parameters: Parameters) -> dict[str, str]:
    left, right = _side(parameters["left"]), _side(parameters["right"])
    return {"equation": f"{left} = {right}", "left": left, "right": right}


def _linear_solve(parameters: Parameters) -> str:
    left, right = parameters["left"], parameters["right"]
    gap = _at_point(right, 0) - _at_point(left, 0)
    return str(gap // (_slope(left) - _slope(right)))


def _linear_work(parameters: Parameters, step: Stepper) -> Steps:
    lines: list[str] = []
    left_slope, left_constant = _collect(parameters["left"], lines, step)
    right_slope, right_constant = _collect(parameters["right"], lines, step)
    slope = left_slope
    if right_slope:
        # Earlier slips can make the slopes equal; a zero would leave nothing to divide by.
        slope = step.value((left_slope - right_slope) or 1, low=1)
        lines.append(f"{left_slope}x - {right_slope}x = {slope}x")
    constant = right_constant
    if left_constant:
        constant = step.value(right_constant - left_constant)
        lines.append(f"{right_constant} {_signed(-left_constant)} = {constant}")
    # After a slip the division may leave a remainder; the reasoning then goes on from the whole part.
    solution = step.value(constant // slope) if slope != 1 else constant
    lines.append(f"{slope}x = {constant}, x = {solution}")
    return lines, str(solution)


def _collect(terms: Sequence[Term], lines: list[str], step: Stepper) -> tuple[int, int]:
    """The coefficient of x and the constant of a side, after a line for each bracket and one for like terms."""
    slopes, constants = [], []
    for kind, *numbers in terms:
        if kind == "x":
            slopes.append(numbers[0])
        elif kind == "n":
            constants.append(numbers[0])
        else:
            factor, inner = numbers
            product = step.value(factor * inner)
            lines.append(f"{factor}(x {_signed(inner)}) = {factor}x {_signed(product)}")
            slopes.append(factor)
            constants.append(product)
    sums = []
    if len(slopes) == 2:
        slope = step.value(slopes[0] + slopes[1], low=1)
        sums.append(f"{slopes[0]}x + {slopes[1]}x = {slope}x")
        slopes = [slope]
    if len(constants) == 2:
        constant = step.value(constants[0] + constants[1])
        sums.append(f"{constants[0]} {_signed(constants[1])} = {constant}")
        constants = [constant]
    if sums:
        lines.append(", ".join(sums))
    return sum(slopes), sum(constants)


LINEAR_EQUATION = Family(
    name="linear_equation",
    task="math",
    difficulty_means="from x + b = c over ax + b = cx + d to brackets on both sides",
    instance=_linear_instance,
    phrasings=templates(
        _linear_fields,
        "Solve {equation} for x.",
        "Solve the equation {equation}.",
        "Find x if {equation}.",
        "For which integer x does {left} equal {right}?",
        "Given that {equation}, what is the value of x?",
    ),
    solve=_linear_solve,
    work=_linear_work,
)
