"""Prime factorisation by trial division."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from openzaya.problems.family import Family, Parameters, Steps, at, templates
from openzaya.problems.stepper import Stepper

_RANGES = ((4, 40), (10, 60), (20, 80), (30, 99), (40, 130), (60, 180), (80, 250), (100, 320), (150, 400), (200, 500))
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23)


def prime_factors(number: int) -> list[int]:
    """The prime factors of a number from 2, smallest first, with repetition."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors


def _factorisation_instance(random: Random, difficulty: int) -> dict[str, Any]:
    number = random.randint(*at(_RANGES, difficulty))
    while len(prime_factors(number)) == 1 and random.random() < 0.5:
        number = random.randint(*at(_RANGES, difficulty))
    return {"number": number}


def _factorisation_fields(parameters: Parameters) -> dict[str, str]:
    return {"number": str(parameters["number"])}


def _product(factors: list[int]) -> str:
    return " * ".join(str(factor) for factor in factors)


def _factorisation_solve(parameters: Parameters) -> str:
    return _product(prime_factors(parameters["number"]))


def _factorisation_work(parameters: Parameters, step: Stepper) -> Steps:
    lines: list[str] = []
    factors: list[int] = []
    rest = parameters["number"]
    for prime in _PRIMES:
        while prime * prime <= rest:
            quotient, remainder = step.divide(rest, prime)
            taken = remainder == 0
            lines.append(f"{rest} = {quotient} * {prime} + {remainder}, {'yes' if taken else 'no'} {prime}")
            if not taken:
                break
            factors.append(prime)
            rest = quotient
        if prime * prime > rest:
            lines.append(f"{prime} * {prime} = {prime * prime} > {rest}, yes {rest}")
            factors.append(rest)
            break
    return lines, _product(factors)


def _factorisation_accepts(parameters: Parameters, answer: str) -> bool:
    text = answer.split("=")[-1].strip().replace("\\times", "*").replace("\\cdot", "*").replace("\u00d7", "*")
    text = text.replace("**", "^").replace("{", "").replace("}", "")
    if not re.fullmatch(r"\d{1,4}(?:\s*\^\s*\d{1,2})?(?:\s*[*x,]\s*\d{1,4}(?:\s*\^\s*\d{1,2})?)*", text):
        return False
    factors: list[int] = []
    for base, exponent in re.findall(r"(\d+)(?:\s*\^\s*(\d+))?", text):
        factors += [int(base)] * int(exponent or 1)
    return sorted(factors) == prime_factors(parameters["number"])


FACTORISATION = Family(
    name="factorisation",
    task="math",
    difficulty_means="numbers up to 40 at first and 500 at last",
    instance=_factorisation_instance,
    phrasings=templates(
        _factorisation_fields,
        "Factor {number} into primes.",
        "Write {number} as a product of prime numbers.",
        "What is the prime factorisation of {number}?",
        "Decompose {number}: give its prime factors with repetition, smallest first, joined by *.",
        "Which primes multiply to {number}?",
    ),
    solve=_factorisation_solve,
    work=_factorisation_work,
    accepts=_factorisation_accepts,
)
