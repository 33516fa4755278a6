"""Sorting by repeated minimum, and counting with a running count."""

from __future__ import annotations

from random import Random
from typing import Any

from openzaya.problems.family import Family, Parameters, Steps, at, listed, templates
from openzaya.problems.stepper import Stepper

_LENGTHS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12)
_LARGEST_NUMBER = (20, 30, 50, 99, 99, 99, 99, 99, 199, 299)


def _sorting_instance(random: Random, difficulty: int) -> dict[str, Any]:
    largest = at(_LARGEST_NUMBER, difficulty)
    numbers = [random.randint(1, largest) for _ in range(at(_LENGTHS, difficulty))]
    return {"numbers": numbers, "descending": random.random() < 0.3}


def _sorting_fields(parameters: Parameters) -> dict[str, str]:
    down = parameters["descending"]
    return {
        "numbers": listed(parameters["numbers"]),
        "order": "descending" if down else "ascending",
        "from": "largest" if down else "smallest",
        "to": "smallest" if down else "largest",
        "growing": "decreasing" if down else "increasing",
    }


def _sorting_solve(parameters: Parameters) -> str:
    return listed(sorted(parameters["numbers"], reverse=parameters["descending"]))


def _sorting_work(parameters: Parameters, step: Stepper) -> Steps:
    name, extreme = ("max", max) if parameters["descending"] else ("min", min)
    lines, sorted_so_far, remaining = [], [], list(parameters["numbers"])
    while remaining:
        chosen = step.choose(extreme(remaining), remaining)
        lines.append(f"{name}({listed(remaining)}) = {chosen}")
        remaining.remove(chosen)
        sorted_so_far.append(chosen)
    return lines, listed(sorted_so_far)


SORTING = Family(
    name="sorting",
    task="math",
    difficulty_means="2 to 12 numbers, up to 20 at first and 299 at last",
    instance=_sorting_instance,
    phrasings=templates(
        _sorting_fields,
        "Sort in {order} order: {numbers}.",
        "Arrange {numbers} from {from} to {to}.",
        "Put these numbers in {growing} order: {numbers}.",
        "What is the list [{numbers}] after sorting it, {from} first?",
        "Here are some scores: {numbers}. List them again, beginning with the {from} and ending with the {to}.",
    ),
    solve=_sorting_solve,
    work=_sorting_work,
)

# (length of the list, how many digits are asked for)
_COUNTING = ((3, 1), (5, 1), (8, 1), (6, 2), (8, 2), (11, 2), (14, 2), (12, 3), (15, 3), (18, 3))


def _counting_instance(random: Random, difficulty: int) -> dict[str, Any]:
    length, asked = at(_COUNTING, difficulty)
    queries = random.sample(range(10), asked)
    digits = [random.choice(queries) if random.random() < 0.6 else random.randrange(10) for _ in range(length)]
    return {"digits": digits, "queries": queries}


def _counting_fields(parameters: Parameters) -> dict[str, str]:
    queries = [str(query) for query in parameters["queries"]]
    return {
        "digits": listed(parameters["digits"]),
        "queries": ", ".join(queries),
        "and": " and ".join(queries),
        "of": ", of ".join(queries),
        "equal": ", and how many equal ".join(queries),
    }


def _counting_solve(parameters: Parameters) -> str:
    return listed([parameters["digits"].count(query) for query in parameters["queries"]])


def _counting_work(parameters: Parameters, step: Stepper) -> Steps:
    queries = parameters["queries"]
    counts = dict.fromkeys(queries, 0)
    lines = []
    for digit in parameters["digits"]:
        # A slip books the digit under another query, or books one that was not asked for, or forgets it.
        booked = step.choose(digit if digit in counts else None, [*queries, None])
        if booked is not None:
            counts[booked] += 1
        lines.append(f"{digit} -> " + ", ".join(f"{query}: {counts[query]}" for query in queries))
    return lines, listed([counts[query] for query in queries])


COUNTING = Family(
    name="counting",
    task="math",
    difficulty_means="one digit counted among 3 at first, three digits counted among 18 at last",
    instance=_counting_instance,
    phrasings=templates(
        _counting_fields,
        "Count {and} in this list: {digits}.",
        "How often does each of these digits occur: {queries}? The list is {digits}.",
        "In the list [{digits}], how many entries equal {equal}?",
        "Read {digits}. Give the number of occurrences of {of}.",
        "A die with ten faces rolled {digits}. How many times did each of these come up: {queries}?",
    ),
    solve=_counting_solve,
    work=_counting_work,
)
