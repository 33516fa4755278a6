"""Subset sum: for each number, or pair, subtract it from the target and look for the rest in the list."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from random import Random
from typing import Any

from openzaya.problems.family import Family, Parameters, Steps, at, listed, templates
from openzaya.problems.stepper import Stepper

# (how many numbers, the largest of them, how many make the target)
_LEVELS = (
    (3, 12, 2),
    (4, 20, 2),
    (5, 40, 2),
    (7, 60, 2),
    (9, 99, 2),
    (4, 30, 3),
    (4, 60, 3),
    (5, 60, 3),
    (6, 60, 3),
    (6, 99, 3),
)
NO_SOLUTION = "none"


def _subset_instance(random: Random, difficulty: int) -> dict[str, Any]:
    count, largest, size = at(_LEVELS, difficulty)
    while True:
        numbers = random.sample(range(1, largest + 1), count)
        target = sum(random.sample(numbers, size))
        smaller = (sum(subset) for fewer in range(1, size) for subset in combinations(numbers, fewer))
        if target not in smaller:
            return {"numbers": numbers, "target": target, "size": size}


def _subset_fields(parameters: Parameters) -> dict[str, str]:
    return {
        "numbers": listed(parameters["numbers"]),
        "target": str(parameters["target"]),
        "size": {2: "two", 3: "three"}[parameters["size"]],
    }


def _subset_solve(parameters: Parameters) -> str:
    subsets = combinations(parameters["numbers"], parameters["size"])
    return listed(next(subset for subset in subsets if sum(subset) == parameters["target"]))


def _subset_work(parameters: Parameters, step: Stepper) -> Steps:
    numbers, target, size = parameters["numbers"], parameters["target"], parameters["size"]
    lines = []
    for first in combinations(range(len(numbers)), size - 1):
        # What is left must come later in the list: an earlier one would have been found from there.
        rest, parts = target, []
        for place in first:
            left = step.value(rest - numbers[place])
            parts.append(f"{rest} - {numbers[place]} = {left}")
            rest = left
        later = numbers[first[-1] + 1 :]
        if not later:
            continue
        found = step.flag(rest in later)
        lines.append(f"{', '.join(parts)}, {'yes' if found else 'no'}")
        if found:
            return lines, listed([*(numbers[place] for place in first), rest])
    return lines, NO_SOLUTION


def _subset_accepts(parameters: Parameters, answer: str) -> bool:
    text = answer.split("=")[0].strip().strip("[](){}.")
    if not re.fullmatch(r"\d+(?:(?:\s*[,;+]\s*|\s+(?:and\s+)?)\d+)*", text):
        return False
    chosen = Counter(int(number) for number in re.findall(r"\d+", text))
    return (
        chosen.total() == parameters["size"]
        and chosen <= Counter(parameters["numbers"])
        and sum(chosen.elements()) == parameters["target"]
    )


SUBSET_SUM = Family(
    name="subset_sum",
    task="math",
    difficulty_means="two numbers found among 3 to 9, then three among 4 to 6",
    instance=_subset_instance,
    phrasings=templates(
        _subset_fields,
        "Which {size} of the numbers {numbers} add up to {target}?",
        "Choose {size} numbers from [{numbers}] so that their sum is {target}.",
        "Find a subset of {numbers} with sum {target}. It has {size} members.",
        "You have coins of {numbers}. Pay exactly {target} with {size} of them; which do you take?",
        "Target {target}, list {numbers}. Name {size} entries of the list that together make the target.",
    ),
    solve=_subset_solve,
    work=_subset_work,
    accepts=_subset_accepts,
)
