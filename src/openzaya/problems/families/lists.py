"""Composite lists: independent items, each worked on its own line and collected in order."""

from __future__ import annotations

from random import Random
from typing import Any

from openzaya.problems.family import Family, Parameters, Steps, at, listed, templates
from openzaya.problems.stepper import Stepper

_ITEMS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15)
_DIVISORS = ((2, 5), (2, 5), (3, 6), (3, 7), (3, 8), (3, 9), (4, 9), (4, 9), (6, 11), (7, 13))
_LARGEST_DIVIDEND = (30, 40, 50, 60, 70, 80, 90, 99, 99, 99)


def _remainders_instance(random: Random, difficulty: int) -> dict[str, Any]:
    divisor = random.randint(*at(_DIVISORS, difficulty))
    largest = at(_LARGEST_DIVIDEND, difficulty)
    return {"divisor": divisor, "numbers": [random.randint(1, largest) for _ in range(at(_ITEMS, difficulty))]}


def _remainders_fields(parameters: Parameters) -> dict[str, str]:
    return {"divisor": str(parameters["divisor"]), "numbers": listed(parameters["numbers"])}


def _remainders_solve(parameters: Parameters) -> str:
    return listed([number % parameters["divisor"] for number in parameters["numbers"]])


def _remainders_work(parameters: Parameters, step: Stepper) -> Steps:
    lines, remainders, divisor = [], [], parameters["divisor"]
    for number in parameters["numbers"]:
        quotient, remainder = step.divide(number, divisor)
        lines.append(f"{number} = {quotient} * {divisor} + {remainder}")
        remainders.append(remainder)
    return lines, listed(remainders)


REMAINDERS_LIST = Family(
    name="remainders_list",
    task="math",
    difficulty_means="1 to 15 numbers below 100, divisors from 2 to 13",
    instance=_remainders_instance,
    phrasings=templates(
        _remainders_fields,
        "Find the remainder of each number when divided by {divisor}: {numbers}.",
        "Compute {numbers} modulo {divisor}, in order.",
        "Divide each of {numbers} by {divisor}. What remainders are left? Answer with a list.",
        "What are the remainders modulo {divisor} of the list [{numbers}]?",
        "Packing {divisor} eggs to a box, how many eggs are left over from each of these baskets: {numbers}?",
        "Replace every number n by n mod {divisor}: {numbers}.",
    ),
    solve=_remainders_solve,
    work=_remainders_work,
)

_LARGEST_OPERAND = (9, 15, 25, 40, 50, 60, 75, 99, 99, 99)


def _sums_instance(random: Random, difficulty: int) -> dict[str, Any]:
    largest = at(_LARGEST_OPERAND, difficulty)
    items: list[list[Any]] = []
    for _ in range(at(_ITEMS, difficulty)):
        left, right = random.randint(1, largest), random.randint(1, largest)
        operator = random.choice("+-")
        if operator == "-" and left < right and random.random() < 0.9:
            left, right = right, left
        items.append([left, operator, right])
    return {"items": items}


def _sums_fields(parameters: Parameters) -> dict[str, str]:
    items = [f"{left} {operator} {right}" for left, operator, right in parameters["items"]]
    return {
        "comma": ", ".join(items),
        "semicolon": "; ".join(items),
        "and": " and ".join(items),
        "lines": "\n".join(items),
        "numbered": ", ".join(f"({index}) {item}" for index, item in enumerate(items, start=1)),
    }


def _sums_solve(parameters: Parameters) -> str:
    return listed([left + right if sign == "+" else left - right for left, sign, right in parameters["items"]])


def _sums_work(parameters: Parameters, step: Stepper) -> Steps:
    lines, results = [], []
    for left, operator, right in parameters["items"]:
        result = step.value(left + right if operator == "+" else left - right)
        lines.append(f"{left} {operator} {right} = {result}")
        results.append(result)
    return lines, listed(results)


SUMS_LIST = Family(
    name="sums_list",
    task="math",
    difficulty_means="1 to 15 sums or differences, operands up to 9 at first and 99 at last",
    instance=_sums_instance,
    phrasings=templates(
        _sums_fields,
        "Compute each of these: {comma}.",
        "What are {and}? Give the results as a list, in order.",
        "Fill in the results, separated by commas: {semicolon}.",
        "Work these out one after another: {numbered}.",
        "Here are some sums.\n{lines}\nList what they come to.",
    ),
    solve=_sums_solve,
    work=_sums_work,
)

_PRODUCTS = (2, 3, 4, 4, 5, 5, 6, 7, 8, 10)
_LARGEST_LEFT = (9, 19, 49, 99, 99, 199, 499, 999, 999, 99)
_LARGEST_RIGHT = (9, 9, 9, 9, 9, 9, 9, 9, 19, 99)


def _products_instance(random: Random, difficulty: int) -> dict[str, Any]:
    left, right = at(_LARGEST_LEFT, difficulty), at(_LARGEST_RIGHT, difficulty)
    return {
        "items": [[random.randint(2, left), random.randint(2, right)] for _ in range(at(_PRODUCTS, difficulty))],
    }


def _products_fields(parameters: Parameters) -> dict[str, str]:
    items = [f"{left} * {right}" for left, right in parameters["items"]]
    return {"comma": ", ".join(items), "semicolon": "; ".join(items), "lines": "\n".join(items)}


def _products_solve(parameters: Parameters) -> str:
    return listed([left * right for left, right in parameters["items"]])


def _products_work(parameters: Parameters, step: Stepper) -> Steps:
    lines, results = [], []
    for left, right in parameters["items"]:
        result = step.value(left * right)
        lines.append(f"{left} * {right} = {result}")
        results.append(result)
    return lines, listed(results)


PRODUCTS_LIST = Family(
    name="products_list",
    task="math",
    difficulty_means="2 to 10 products, of one digit by one at first, three by one at 8, two by two at last",
    instance=_products_instance,
    phrasings=templates(
        _products_fields,
        "Multiply: {comma}.",
        "What are these products, in order? {semicolon}",
        "Work out each product and answer with a list: {comma}.",
        "Here are some products.\n{lines}\nList what they come to.",
        "Fill in the products, separated by commas: {semicolon}.",
    ),
    solve=_products_solve,
    work=_products_work,
)
