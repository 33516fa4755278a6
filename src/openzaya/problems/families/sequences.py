"""Sequences by a stated recurrence: t(n) = p * t(n-1) + q * t(n-2) + c."""

from __future__ import annotations

from random import Random
from typing import Any

from openzaya.problems.family import Family, Parameters, Steps, at, listed, templates
from openzaya.problems.stepper import Stepper

# (p, q): progression, doubling, sum of the two before, second difference.
_PROGRESSION, _DOUBLING, _SUM, _DIFFERENCE = (1, 0), (2, 0), (1, 1), (2, -1)
_RULES = (
    (_PROGRESSION,),
    (_PROGRESSION,),
    (_PROGRESSION, _DOUBLING),
    (_PROGRESSION, _DOUBLING),
    (_DOUBLING, _SUM),
    (_SUM, _DIFFERENCE),
    (_SUM, _DIFFERENCE),
    (_SUM, _DIFFERENCE),
    (_SUM, _DIFFERENCE, _PROGRESSION),
    (_SUM, _DIFFERENCE, _PROGRESSION),
)
_COUNTS = (1, 2, 2, 3, 3, 4, 5, 6, 8, 10)
_LARGEST_START = (9, 20, 20, 20, 12, 15, 15, 12, 10, 9)
_LARGEST_DOUBLED, _LARGEST_ADDED = 99, 499


def _sequence_instance(random: Random, difficulty: int) -> dict[str, Any]:
    while True:
        p, q = random.choice(at(_RULES, difficulty))
        largest = at(_LARGEST_START, difficulty)
        start = [random.randint(1, largest) for _ in range(2 if q else 1)]
        # A long progression takes large strides, so that it is as hard as the other rules of its difficulty.
        stride = max(9, 2 * difficulty) if difficulty < 9 or q else 49
        c = random.randint(1 if p == 1 and not q else 0, stride) * random.choice((1, 1, 1, -1))
        if p == 2 and q and c < 0:
            c = -c
        parameters = {"start": start, "p": p, "q": q, "c": c, "count": at(_COUNTS, difficulty)}
        terms = [*start, *_next_terms(parameters)]
        largest_read = _LARGEST_DOUBLED if p == 2 else _LARGEST_ADDED
        if min(terms) >= (0 if q or p == 2 else -40) and max(terms[:-1]) <= largest_read:
            return parameters


def _next_terms(parameters: Parameters) -> list[int]:
    terms = list(parameters["start"])
    for _ in range(parameters["count"]):
        second = parameters["q"] * terms[-2] if parameters["q"] else 0
        terms.append(parameters["p"] * terms[-1] + second + parameters["c"])
    return terms[len(parameters["start"]) :]


def _sequence_fields(parameters: Parameters) -> dict[str, str]:
    p, q, c = parameters["p"], parameters["q"], parameters["c"]
    words = {
        _PROGRESSION: "the previous term",
        _DOUBLING: "twice the previous term",
        _SUM: "the sum of the two terms before it",
        _DIFFERENCE: "twice the previous term minus the term before that",
    }[p, q]
    formula = ("2 * " if p == 2 else "") + "t(n-1)" + {0: "", 1: " + t(n-2)", -1: " - t(n-2)"}[q]
    count = parameters["count"]
    return {
        "start": listed(parameters["start"]),
        "words": words + (f" {'minus' if c < 0 else 'plus'} {abs(c)}" if c else ""),
        "formula": formula + (f" {_signed(c)}" if c else ""),
        "terms": "term" if count == 1 else f"{count} terms",
        "numbers": "number" if count == 1 else f"{count} numbers",
    }


def _signed(number: int) -> str:
    return f"- {-number}" if number < 0 else f"+ {number}"


def _sequence_solve(parameters: Parameters) -> str:
    return listed(_next_terms(parameters))


def _sequence_work(parameters: Parameters, step: Stepper) -> Steps:
    p, q, c = parameters["p"], parameters["q"], parameters["c"]
    lines, terms = [], list(parameters["start"])
    for _ in range(parameters["count"]):
        value, parts = terms[-1], []
        if p == 2:
            value = step.value(2 * terms[-1])
            parts.append(f"2 * {terms[-1]} = {value}")
        for addend in ([q * terms[-2]] if q else []) + ([c] if c else []):
            result = step.value(value + addend)
            parts.append(f"{value} {_signed(addend)} = {result}")
            value = result
        lines.append(", ".join(parts))
        terms.append(value)
    return lines, listed(terms[len(parameters["start"]) :])


SEQUENCE = Family(
    name="sequence",
    task="math",
    difficulty_means="from one term of a progression to ten terms of second-order recurrences",
    instance=_sequence_instance,
    phrasings=templates(
        _sequence_fields,
        "A sequence starts {start}, and each further term is {words}. Give the next {terms}.",
        "Continue {start} by {numbers}; the rule is t(n) = {formula}.",
        "After {start}, every term is {words}. What {terms} come next?",
        "Write down the {numbers} that follow {start}, where t(n) = {formula}.",
        "Start from {start}. To get a new number, take {words}. Do so and list the next {numbers}.",
    ),
    solve=_sequence_solve,
    work=_sequence_work,
)
