"""Countdown: reach a target with every given number, trying expressions in a fixed order until one fits.

A pattern is an order of the numbers with the operators between them, applied from left to right. All candidates for
a problem share the patterns, so line i of two worked solutions tries the same expression.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from itertools import combinations, pairwise, product
from random import Random
from typing import Any

from openzaya.problems.family import Family, Parameters, Steps, at, listed, templates
from openzaya.problems.stepper import Stepper

Pattern = tuple[tuple[int, ...], str]

# (how many numbers, the largest of them, the operators, how many patterns are tried before one fits, at most)
_LEVELS = (
    (2, 9, "+-", 2),
    (2, 12, "+-*", 3),
    (3, 9, "+-", 4),
    (3, 40, "+-", 4),
    (3, 9, "+-*", 10),
    (4, 20, "+-", 8),
    (3, 9, "+-*", 16),
    (4, 60, "+-", 8),
    (4, 12, "+-*", 12),
    (4, 12, "+-*", 14),
)
NO_SOLUTION = "none"
_MOST_TRIED = 16
_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}


def patterns(numbers: Sequence[int], operators: str) -> list[Pattern]:
    """The patterns over the given numbers in the order in which they are tried: signs, products, then brackets."""
    places = tuple(range(len(numbers)))
    found: list[Pattern] = [(places, "".join(signs)) for signs in product("+-", repeat=len(places) - 1)]
    if "*" not in operators:
        return found
    orders = [
        (*pair, *(place for place in places if place not in pair))
        for pair in (combinations(places, 2) if len(places) < 4 else pairwise(places))
    ]
    found += [(order, "*" + "".join(signs)) for order in orders for signs in product("+-", repeat=len(places) - 2)]
    if len(places) == 3:
        # The numbers come largest first, so that the difference in brackets is not negative.
        found += [(order, signs) for order in orders for signs in ("+*", "-*")]
    return found[:_MOST_TRIED]


def _apply(operator: str, left: int, right: int) -> int:
    return left + right if operator == "+" else left - right if operator == "-" else left * right


def _value(numbers: Sequence[int], pattern: Pattern) -> int:
    order, operators = pattern
    value = numbers[order[0]]
    for operator, place in zip(operators, order[1:], strict=True):
        value = _apply(operator, value, numbers[place])
    return value


def _expression(numbers: Sequence[int], pattern: Pattern) -> str:
    order, operators = pattern
    text = str(numbers[order[0]])
    for index, (operator, place) in enumerate(zip(operators, order[1:], strict=True)):
        if operator == "*" and index > 0:
            text = f"({text})"
        text += f" {operator} {numbers[place]}"
    return text


def _countdown_instance(random: Random, difficulty: int) -> dict[str, Any]:
    count, largest, operators, most_tried = at(_LEVELS, difficulty)
    while True:
        # Largest first, so that few values on the way are negative.
        numbers = sorted((random.randint(1, largest) for _ in range(count)), reverse=True)
        values = [_value(numbers, pattern) for pattern in patterns(numbers, operators)[:most_tried]]
        target = random.choice(values)
        if 0 < target < 200:
            return {"numbers": numbers, "target": target, "operators": operators}


def _countdown_fields(parameters: Parameters) -> dict[str, str]:
    numbers = parameters["numbers"]
    return {
        "numbers": listed(numbers),
        "and": f"{listed(numbers[:-1])} and {numbers[-1]}",
        "target": str(parameters["target"]),
        "operators": "+ and -" if parameters["operators"] == "+-" else "+, - and *",
    }


def _countdown_solve(parameters: Parameters) -> str:
    numbers = parameters["numbers"]
    tried = patterns(numbers, parameters["operators"])
    return _expression(numbers, next(p for p in tried if _value(numbers, p) == parameters["target"]))


def _countdown_work(parameters: Parameters, step: Stepper) -> Steps:
    numbers, target = parameters["numbers"], parameters["target"]
    lines = []
    for pattern in patterns(numbers, parameters["operators"]):
        order, operators = pattern
        value, parts = numbers[order[0]], []
        for operator, place in zip(operators, order[1:], strict=True):
            result = step.value(_apply(operator, value, numbers[place]))
            parts.append(f"{value} {operator} {numbers[place]} = {result}")
            value = result
        lines.append(f"{', '.join(parts)}, {'yes' if value == target else 'not'} {target}")
        if value == target:
            return lines, _expression(numbers, pattern)
    return lines, NO_SOLUTION


def _countdown_accepts(parameters: Parameters, answer: str) -> bool:
    text = answer.split("=")[0].replace("\u00d7", "*").replace("\u2212", "-").strip()
    used: list[int] = []
    try:
        # A length limit keeps the parser's recursion and the size of the integers in bounds.
        value = (
            _evaluate(ast.parse(text, mode="eval").body, parameters["operators"], used) if len(text) <= 200 else None
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return value == parameters["target"] and sorted(used) == sorted(parameters["numbers"])


def _evaluate(node: ast.expr, operators: str, used: list[int]) -> int:
    """The value of an expression over integers, which are noted in `used`; ValueError for anything not allowed."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return node.value
    if isinstance(node, ast.BinOp) and _SIGNS.get(type(node.op), "no") in operators:
        left, right = _evaluate(node.left, operators, used), _evaluate(node.right, operators, used)
        return _apply(_SIGNS[type(node.op)], left, right)
    raise ValueError(f"the expression contains {type(node).__name__}: use integers with {operators} and parentheses")


COUNTDOWN = Family(
    name="countdown",
    task="math",
    difficulty_means="2 to 4 numbers; signs only at first, products and brackets later; up to 16 expressions tried",
    instance=_countdown_instance,
    phrasings=templates(
        _countdown_fields,
        "Use {numbers}, each exactly once, with {operators} to make {target}.",
        "Make {target} from the numbers {numbers} and the operators {operators}; every number must be used once.",
        "Which expression over {and} gives {target}? Allowed: {operators}, each number one time.",
        "Countdown: the target is {target}, the numbers are {numbers}. Combine all of them with {operators}.",
        "Write {target} as an expression that contains each of {and} once. You may use {operators}.",
    ),
    solve=_countdown_solve,
    work=_countdown_work,
    accepts=_countdown_accepts,
)
