"""Multiple choice about an order that is known from pairs: look up who is above, then who is below.

A fact is [first, second, turned]: `first` comes before `second`, and a turned fact is worded from the second's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from random import Random
from typing import Any

from openzaya.problems.family import Family, Parameters, Steps, at, listed, templates
from openzaya.problems.stepper import Stepper

_NAMES = (
    "Ann", "Ben", "Cara", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ida", "Jack", "Kim", "Leo",
    "Mia", "Nick", "Olga", "Paul", "Rosa", "Sam", "Tina", "Uma", "Vera", "Will", "Yara", "Zoe",
)  # fmt: skip
# (comparison, its opposite, the superlative of the first, the superlative of the last)
_RELATIONS = (
    ("taller", "shorter", "tallest", "shortest"),
    ("older", "younger", "oldest", "youngest"),
    ("faster", "slower", "fastest", "slowest"),
    ("richer", "poorer", "richest", "poorest"),
)
_RANKS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_PEOPLE = (3, 3, 3, 4, 4, 5, 6, 7, 8, 9)
_LETTERS = "ABCD"
_NOBODY = "none"


def _order_instance(random: Random, difficulty: int) -> dict[str, Any]:
    order = random.sample(_NAMES, at(_PEOPLE, difficulty))
    facts: list[list[Any]] = [
        [first, second, difficulty >= 3 and random.random() < 0.4] for first, second in pairwise(order)
    ]
    if difficulty >= 2:
        random.shuffle(facts)
    rank = random.choice((0, len(order) - 1)) if difficulty <= 4 else random.randrange(len(order))
    others = [name for place, name in enumerate(order) if place != rank]
    options = [order[rank], *random.sample(others, min(3, len(others)))]
    random.shuffle(options)
    return {"facts": facts, "relation": list(random.choice(_RELATIONS)), "rank": rank, "options": options}


def _order_fields(parameters: Parameters) -> dict[str, str]:
    more, less, most, least = parameters["relation"]
    facts = [
        f"{second} is {less} than {first}" if turned else f"{first} is {more} than {second}"
        for first, second, turned in parameters["facts"]
    ]
    rank, last = parameters["rank"], len(facts)
    wanted = most if rank == 0 else least if rank == last else f"{_RANKS[rank]} {most}"
    options = list(zip(_LETTERS, parameters["options"]))
    return {
        "facts": ". ".join(facts) + ".",
        "clauses": ", and ".join(facts),
        "lines": "\n".join(facts),
        "wanted": wanted,
        "brackets": " ".join(f"({letter}) {name}" for letter, name in options),
        "lines_of_options": "\n".join(f"{letter}. {name}" for letter, name in options),
        "colons": ", ".join(f"{letter}: {name}" for letter, name in options),
    }


def _order_solve(parameters: Parameters) -> str:
    below = {first: second for first, second, _ in parameters["facts"]}
    name = next(first for first in below if first not in below.values())
    for _ in range(parameters["rank"]):
        name = below[name]
    return _LETTERS[parameters["options"].index(name)]


def _order_work(parameters: Parameters, step: Stepper) -> Steps:
    facts = parameters["facts"]
    above = {second: first for first, second, _ in facts}
    below = {first: second for first, second, _ in facts}
    lines: list[str] = []
    top = _follow(facts[0][0], "above", above, lines, step)[-1]
    order = _follow(top, "below", below, lines, step)
    lines.append(f"order {listed(order)}")
    # A slip can shorten the order or lead to somebody who is not offered; then the nearest one before is taken.
    places = [place for place, name in enumerate(order) if name in parameters["options"]]
    place = max([p for p in places if p <= parameters["rank"]] or places[:1] or [0])
    name = order[place] if places else parameters["options"][0]
    letter = _LETTERS[parameters["options"].index(name)]
    lines.append(f"place {parameters['rank'] + 1} is {name}, option {letter}")
    return lines, letter


def _follow(start: str, word: str, links: Mapping[str, str], lines: list[str], step: Stepper) -> list[str]:
    """The names met on the way from `start` along the links; a slip may lead astray but never in a circle."""
    met = [start]
    unmet = sorted({*links, *links.values(), _NOBODY} - {start})
    while met[-1] != _NOBODY:
        linked = links.get(met[-1], _NOBODY)
        following = step.choose(linked if linked in unmet else _NOBODY, unmet)
        unmet.remove(following)
        lines.append(f"{word} {met[-1]}: {following}")
        met.append(following)
    return met[:-1]


LOGIC_ORDER = Family(
    name="logic_order",
    task="choice",
    difficulty_means="3 to 9 people; facts shuffled from 2, reworded from 3, any rank asked from 5",
    instance=_order_instance,
    phrasings=templates(
        _order_fields,
        "{facts} Who is the {wanted}? {brackets}",
        "Given that {clauses}, who is the {wanted}?\n{lines_of_options}",
        "Known facts:\n{lines}\nChoose the {wanted} person. {colons}",
        "Pick the letter of the {wanted} one. {facts} Options: {brackets}",
        "{facts} Among all of them, the {wanted} is which of these? {colons}",
    ),
    solve=_order_solve,
    work=_order_work,
)
