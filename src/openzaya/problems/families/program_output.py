"""The output of small Python programs, by a line for each executed statement with the state after it.

A statement is one of ["set", name, expression], ["if", condition, body, otherwise], ["for", name, count, body] and
["print", names]. An expression is an operand or [operator, operand, operand]; an operand is an integer or a name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from openzaya.problems.family import Family, Parameters, Steps, at, templates
from openzaya.problems.stepper import Stepper

Statement = list[Any]

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "%": operator.mod,
}
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {"<": operator.lt, ">": operator.gt, "==": operator.eq}
_NAME_SETS = (("a", "b", "i"), ("x", "y", "k"), ("n", "m", "j"), ("p", "q", "i"), ("s", "t", "k"))

# (updates before, an if, turns of a loop, updates in it, an if in it, names printed)
_LEVELS = (
    (1, False, 0, 0, False, 1),
    (2, False, 0, 0, False, 1),
    (3, False, 0, 0, False, 2),
    (2, True, 0, 0, False, 1),
    (4, True, 0, 0, False, 2),
    (1, False, 2, 1, False, 1),
    (1, False, 3, 1, False, 2),
    (1, False, 2, 1, True, 2),
    (1, False, 3, 2, False, 2),
    (1, False, 3, 1, True, 2),
)
_LARGEST_VALUE = 199


def _program_instance(random: Random, difficulty: int) -> dict[str, Any]:
    updates, branch, turns, inner, inner_branch, printed = at(_LEVELS, difficulty)
    while True:
        first, second, counter = random.choice(_NAME_SETS)
        names = [first] if difficulty == 1 else [first, second]
        program: list[Statement] = [["set", name, random.randint(1, 9 + difficulty)] for name in names]
        program += [_update(random, names, names, difficulty) for _ in range(updates)]
        if branch:
            program.append(_branch(random, names, names, difficulty))
        if turns:
            readable = [*names, counter]
            body = [_update(random, names, readable, difficulty, onto_itself=1.0) for _ in range(inner)]
            if inner_branch:
                body.append(_branch(random, names, readable, difficulty))
            program.append(["for", counter, turns, body])
        last = _last_set(program)
        program.append(["print", [last, *(name for name in names if name != last)][:printed]])
        run = _Run(Stepper())
        run.block(program)
        if run.smallest >= 0 and run.largest <= _LARGEST_VALUE and run.unchanged == 0:
            return {"program": program}


def _last_set(program: Sequence[Statement]) -> str:
    """The name that the last assignment in the text sets, so that what is printed is seldom settled early."""
    kind, *rest = program[-1]
    return rest[0] if kind == "set" else _last_set(rest[1] if kind == "if" else rest[2])


def _update(
    random: Random, names: Sequence[str], readable: Sequence[str], difficulty: int, onto_itself: float = 0.6
) -> Statement:
    target, sign = random.choice(names), random.choice("++-*%" if difficulty > 3 else "++-")
    left = target if random.random() < onto_itself else random.choice(names)
    if sign == "*":
        return ["set", target, ["*", left, random.choice((2, 2, 3))]]
    if sign == "%":
        return ["set", target, ["%", left, random.choice((3, 4, 5, 7, 10))]]
    others = [name for name in readable if name != left]
    right = random.choice(others) if others and random.random() < 0.5 else random.randint(1, 9 + difficulty)
    return ["set", target, [sign, left, right]]


def _branch(random: Random, names: Sequence[str], readable: Sequence[str], difficulty: int) -> Statement:
    left = random.choice(readable)
    others = [name for name in names if name != left]
    right = random.choice(others) if random.random() < 0.5 else random.randint(1, 9 + 2 * difficulty)
    body, otherwise = ([_update(random, names, names, difficulty)] for _ in range(2))
    return ["if", [random.choice("<>"), left, right], body, otherwise if random.random() < 0.6 else []]


def source(program: Sequence[Statement], indent: str = "") -> str:
    """The program as Python source."""
    lines = []
    for kind, *rest in program:
        if kind == "set":
            lines.append(f"{indent}{rest[0]} = {_expression(rest[1])}")
        elif kind == "print":
            lines.append(f"{indent}print({', '.join(rest[0])})")
        elif kind == "for":
            lines += [f"{indent}for {rest[0]} in range({rest[1]}):", source(rest[2], indent + "    ")]
        else:
            lines += [f"{indent}if {_expression(rest[0])}:", source(rest[1], indent + "    ")]
            if rest[2]:
                lines += [f"{indent}else:", source(rest[2], indent + "    ")]
    return "\n".join(lines)


def _expression(expression: Any) -> str:
    if isinstance(expression, list):
        sign, left, right = expression
        return f"{left} {sign} {right}"
    return str(expression)


class _Run:
    """One execution: the state, the traced lines, what was printed, and how the values went."""

    def __init__(self, step: Stepper) -> None:
        self.step = step
        self.state: dict[str, int] = {}
        self.lines: list[str] = []
        self.printed = ""
        self.smallest = self.largest = self.unchanged = 0

    def block(self, program: Sequence[Statement]) -> None:
        for statement in program:
            getattr(self, f"_{statement[0]}")(*statement[1:])

    def _read(self, operand: int | str) -> int:
        return self.state[operand] if isinstance(operand, str) else operand

    def _trace(self, text: str) -> None:
        self.lines.append(f"{text} -> " + ", ".join(f"{name} {value}" for name, value in self.state.items()))

    def _set(self, name: str, expression: Any) -> None:
        if isinstance(expression, list):
            sign, left, right = expression
            a, b = self._read(left), self._read(right)
            value = self.step.value(_OPERATORS[sign](a, b))
            text = f"{name} = {_expression(expression)} = {a} {sign} {b} = {value}"
        else:
            value = expression
            text = f"{name} = {value}"
        self.unchanged += self.state.get(name) == value
        self.state[name] = value
        self.smallest, self.largest = min(self.smallest, value), max(self.largest, value)
        self._trace(text)

    def _if(self, condition: Any, body: Sequence[Statement], otherwise: Sequence[Statement]) -> None:
        sign, left, right = condition
        a, b = self._read(left), self._read(right)
        holds = self.step.flag(_COMPARISONS[sign](a, b))
        self._trace(f"if {_expression(condition)}: {a} {sign} {b} {'yes' if holds else 'no'}")
        self.block(body if holds else otherwise)

    def _for(self, name: str, count: int, body: Sequence[Statement]) -> None:
        for turn in range(count):
            self.state[name] = turn
            self._trace(f"for {name} = {turn}")
            self.block(body)

    def _print(self, names: Sequence[str]) -> None:
        self.printed = " ".join(str(self.state[name]) for name in names)
        self.lines.append(f"print({', '.join(names)}) -> {self.printed}")


def _program_work(parameters: Parameters, step: Stepper) -> Steps:
    run = _Run(step)
    run.block(parameters["program"])
    return run.lines, run.printed


def _program_solve(parameters: Parameters) -> str:
    return _program_work(parameters, Stepper())[1]


def _program_fields(parameters: Parameters) -> dict[str, str]:
    text = source(parameters["program"])
    return {"source": text, "fenced": f"```python\n{text}\n```"}


PROGRAM_OUTPUT = Family(
    name="program_output",
    task="math",
    difficulty_means="from three statements over branches to a loop of three turns with a branch in it",
    instance=_program_instance,
    phrasings=templates(
        _program_fields,
        "What does this program print?\n{source}",
        "Give the output of the following Python code.\n{fenced}",
        "{source}\nWhat is printed when this runs?",
        "Run these lines in your head and report what appears on the screen:\n{source}",
        "Trace the program and state its output.\n{fenced}",
    ),
    solve=_program_solve,
    work=_program_work,
)
