"""Long addition and long multiplication, digit by digit with a carry.

A line restates what is left of the numbers, so that its digits are the last ones of what it shows, and the result so
far, so that the answer is copied and never reversed.
"""

from __future__ import annotations

from random import Random
from typing import Any

from openzaya.problems.family import Family, Parameters, Steps, at, templates
from openzaya.problems.stepper import Stepper


def _addition_instance(random: Random, difficulty: int) -> dict[str, Any]:
    left = _with_digits(random, difficulty)
    right = _with_digits(random, difficulty if random.random() < 0.8 else random.randint(1, difficulty))
    return {"left": left, "right": right}


def _with_digits(random: Random, count: int) -> int:
    return random.randint(10 ** (count - 1), 10**count - 1)


def add_by_columns(left: int, right: int, lines: list[str], step: Stepper) -> int:
    """The sum of two numbers, with a line a column from the right and one for the last carry."""
    a, b, carry, result = str(left), str(right), 0, ""
    while a or b:
        x, y = int(a[-1:] or 0), int(b[-1:] or 0)
        total = step.value(x + y + carry, low=0, high=19)
        result = f"{total % 10}{result}"
        lines.append(f"{a or 0} + {b or 0}: {x} + {y} + {carry} = {total}, carry {total // 10} -> {result}")
        a, b, carry = a[:-1], b[:-1], total // 10
    result = f"{carry or ''}{result}"
    lines.append(f"carry {carry} -> {result}")
    return int(result)


def multiply_by_digit(number: int, digit: int, zeros: int, lines: list[str], step: Stepper) -> int:
    """`number` times `digit` times ten to the `zeros`, with a line a digit from the right and one for the carry."""
    rest, carry, result = str(number), 0, "0" * zeros
    while rest:
        x = int(rest[-1])
        total = step.value(x * digit + carry, low=0, high=89)
        result = f"{total % 10}{result}"
        lines.append(f"{rest} * {digit}: {x} * {digit} + {carry} = {total}, carry {total // 10} -> {result}")
        rest, carry = rest[:-1], total // 10
    result = f"{carry or ''}{result}"
    lines.append(f"carry {carry} -> {result}")
    return int(result)


def _addition_fields(parameters: Parameters) -> dict[str, str]:
    return {"left": str(parameters["left"]), "right": str(parameters["right"])}


def _addition_solve(parameters: Parameters) -> str:
    return str(parameters["left"] + parameters["right"])


def _addition_work(parameters: Parameters, step: Stepper) -> Steps:
    lines: list[str] = []
    total = add_by_columns(parameters["left"], parameters["right"], lines, step)
    return lines, str(total)


COLUMN_ADDITION = Family(
    name="column_addition",
    task="math",
    difficulty_means="the number of digits of the longer number",
    instance=_addition_instance,
    phrasings=templates(
        _addition_fields,
        "Add {left} and {right}.",
        "Compute {left} + {right} column by column.",
        "What is the sum of {left} and {right}?",
        "{left} plus {right} makes how much?",
        "One town has {left} people and another has {right}. How many do they have together?",
    ),
    solve=_addition_solve,
    work=_addition_work,
)

# (lowest and highest left factor, lowest and highest digit of the right factor, its number of digits)
_FACTORS = (
    (11, 49, 2, 4, 1),
    (11, 99, 2, 6, 1),
    (11, 99, 4, 9, 1),
    (101, 499, 2, 6, 1),
    (101, 999, 3, 9, 1),
    (1001, 9999, 3, 9, 1),
    (11, 49, 1, 5, 2),
    (11, 99, 1, 9, 2),
    (101, 999, 1, 9, 2),
    (1001, 9999, 2, 9, 2),
)


def _multiplication_instance(random: Random, difficulty: int) -> dict[str, Any]:
    low, high, low_digit, high_digit, digits = at(_FACTORS, difficulty)
    right = "".join(str(random.randint(low_digit, high_digit)) for _ in range(digits))
    return {"left": random.randint(low, high), "right": int(right)}


def _multiplication_solve(parameters: Parameters) -> str:
    return str(parameters["left"] * parameters["right"])


def _multiplication_work(parameters: Parameters, step: Stepper) -> Steps:
    lines: list[str] = []
    digits = reversed(str(parameters["right"]))
    partial = [
        multiply_by_digit(parameters["left"], int(digit), place, lines, step) for place, digit in enumerate(digits)
    ]
    product = partial[0]
    for other in partial[1:]:
        product = add_by_columns(product, other, lines, step)
    return lines, str(product)


LONG_MULTIPLICATION = Family(
    name="long_multiplication",
    task="math",
    difficulty_means="from 2 digits by 1 over 4 by 1 and 2 by 2 to 4 by 2",
    instance=_multiplication_instance,
    phrasings=templates(
        _addition_fields,
        "Multiply {left} by {right}.",
        "Compute {left} * {right}.",
        "What is {left} times {right}?",
        "Find the product of {left} and {right}.",
        "A factory fills {right} crates with {left} bottles each. How many bottles is that?",
    ),
    solve=_multiplication_solve,
    work=_multiplication_work,
)
