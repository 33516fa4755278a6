"""Chains: each step goes on from the result of the one before."""

from __future__ import annotations

from random import Random
from typing import Any

from openzaya.problems.family import Family, Parameters, Steps, at, templates
from openzaya.problems.stepper import Stepper

_OPERATIONS = (1, 2, 3, 4, 6, 8, 10, 12, 15, 18)
_LARGEST_OPERAND = (9, 15, 25, 40, 50, 60, 70, 80, 99, 99)
_LARGEST_TOTAL = 499
_CHANCE_OF_NEGATIVE = 0.06


def _arithmetic_instance(random: Random, difficulty: int) -> dict[str, Any]:
    largest = at(_LARGEST_OPERAND, difficulty)
    start = total = random.randint(1, largest)
    steps: list[list[Any]] = []
    for _ in range(at(_OPERATIONS, difficulty)):
        operator, operand = random.choice("+-"), random.randint(1, largest)
        if operator == "-" and total < operand and (total < 0 or random.random() >= _CHANCE_OF_NEGATIVE):
            operator = "+"
        if operator == "+" and total + operand > _LARGEST_TOTAL:
            operator = "-"
        total += operand if operator == "+" else -operand
        steps.append([operator, operand])
    return {"start": start, "steps": steps}


def _arithmetic_fields(parameters: Parameters) -> dict[str, str]:
    verbs = {"+": "add", "-": "subtract"}
    return {
        "expression": " ".join([str(parameters["start"]), *(f"{sign} {n}" for sign, n in parameters["steps"])]),
        "start": str(parameters["start"]),
        "story": ", then ".join(f"{verbs[sign]} {n}" for sign, n in parameters["steps"]),
    }


def _arithmetic_solve(parameters: Parameters) -> str:
    return str(parameters["start"] + sum(n if sign == "+" else -n for sign, n in parameters["steps"]))


def _arithmetic_work(parameters: Parameters, step: Stepper) -> Steps:
    lines, total = [], parameters["start"]
    for sign, operand in parameters["steps"]:
        result = step.value(total + operand if sign == "+" else total - operand)
        lines.append(f"{total} {sign} {operand} = {result}")
        total = result
    return lines, str(total)


ARITHMETIC_CHAIN = Family(
    name="arithmetic_chain",
    task="math",
    difficulty_means="1 to 18 additions and subtractions, operands up to 9 at first and 99 at last",
    instance=_arithmetic_instance,
    phrasings=templates(
        _arithmetic_fields,
        "Compute {expression}.",
        "What is {expression}?",
        "{expression} = ?",
        "Find the value of the expression {expression}",
        "Start with {start}, then {story}. Which number do you get?",
        "Please calculate {expression} for me.",
    ),
    solve=_arithmetic_solve,
    work=_arithmetic_work,
)

_MODULAR_STEPS = (1, 2, 3, 4, 5, 6, 7, 9, 11, 13)
_MODULI = ((5, 7), (5, 7), (5, 7), (7, 11), (7, 11), (7, 11, 13), (11, 13), (11, 13), (13, 17), (13, 17, 19))
_LARGEST_FACTOR = (3, 4, 5, 5, 6, 7, 8, 9, 9, 9)


def _modular_instance(random: Random, difficulty: int) -> dict[str, Any]:
    # The modulus is prime and no factor is a multiple of it, so that every slip reaches the answer.
    modulus = random.choice(at(_MODULI, difficulty))
    largest = min(at(_LARGEST_FACTOR, difficulty), modulus - 1)
    steps = [[random.randint(2, largest), random.randint(1, 9)] for _ in range(at(_MODULAR_STEPS, difficulty))]
    return {"modulus": modulus, "start": random.randrange(modulus), "steps": steps}


def _modular_fields(parameters: Parameters) -> dict[str, str]:
    steps = parameters["steps"]
    return {
        "start": str(parameters["start"]),
        "modulus": str(parameters["modulus"]),
        "formulas": "; ".join(f"x = {a} * x + {b}" for a, b in steps),
        "maps": ", ".join(f"{a}x + {b}" for a, b in steps),
        "verbs": "; ".join(f"multiply by {a} and add {b}" for a, b in steps),
        "pairs": ", ".join(f"({a}, {b})" for a, b in steps),
        "arrows": ", ".join(f"times {a} plus {b}" for a, b in steps),
    }


def _modular_solve(parameters: Parameters) -> str:
    value = parameters["start"]
    for factor, addend in parameters["steps"]:
        value = factor * value + addend
    return str(value % parameters["modulus"])


def _modular_work(parameters: Parameters, step: Stepper) -> Steps:
    lines, value, modulus = [], parameters["start"], parameters["modulus"]
    for factor, addend in parameters["steps"]:
        product = step.value(value * factor, low=0)
        total = step.value(product + addend, low=0)
        quotient, remainder = step.divide(total, modulus)
        lines.append(
            f"{value} * {factor} = {product}, {product} + {addend} = {total}, "
            f"{total} = {quotient} * {modulus} + {remainder}"
        )
        value = remainder
    return lines, str(value)


MODULAR_CHAIN = Family(
    name="modular_chain",
    task="math",
    difficulty_means="1 to 13 steps x -> a * x + b, modulo a prime from 5 to 19",
    instance=_modular_instance,
    phrasings=templates(
        _modular_fields,
        "Start with x = {start}. Working modulo {modulus}, do in turn: {formulas}. What is x?",
        "Take {start} and apply these steps modulo {modulus}: {verbs}. What is the result?",
        "Modulo {modulus}, x starts at {start} and is mapped by {maps} in this order. Find the last x.",
        "Let x = {start}. For each pair (a, b) replace x by a * x + b modulo {modulus}: {pairs}. Give the final x.",
        "A counter that wraps at {modulus} shows {start}. It then goes {arrows}. What does it show?",
    ),
    solve=_modular_solve,
    work=_modular_work,
)
