"""What a family of problems declares: how an instance is drawn, worded, solved and worked through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from openzaya.problems.stepper import Stepper

Parameters = Mapping[str, Any]
Phrasing = Callable[[Parameters], str]
Steps = tuple[list[str], str]
"""The lines of a worked solution, without their indices, and the answer that they conclude."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of problems.

    `solve` is written independently of `work`, so that each checks the other. `accepts` is the family's own verifier
    where more than one answer is right; without it an answer is right when it equals the canonical one.
    """

    name: str
    task: str
    difficulty_means: str
    instance: Callable[[Random, int], dict[str, Any]]
    phrasings: tuple[Phrasing, ...]
    solve: Callable[[Parameters], str]
    work: Callable[[Parameters, Stepper], Steps]
    accepts: Callable[[Parameters, str], bool] | None = None
    min_difficulty: int = 1
    max_difficulty: int = 10


def templates(fields: Callable[[Parameters], Mapping[str, str]], *texts: str) -> tuple[Phrasing, ...]:
    """Phrasings from format strings over the fields that `fields` reads off an instance."""

    def phrasing(text: str) -> Phrasing:
        return lambda parameters: text.format_map(fields(parameters))

    return tuple(phrasing(text) for text in texts)


def by_kind(phrasings: Mapping[str, Sequence[Phrasing]]) -> tuple[Phrasing, ...]:
    """Phrasings of a family whose instances are of several kinds, each with as many phrasings as the others."""

    def phrasing(index: int) -> Phrasing:
        return lambda parameters: phrasings[parameters["kind"]][index](parameters)

    counts = {len(each) for each in phrasings.values()}
    if len(counts) != 1:
        raise ValueError(f"the kinds {sorted(phrasings)} have {sorted(counts)} phrasings: give each as many")
    return tuple(phrasing(index) for index in range(counts.pop()))


def at(table: Sequence[Any], difficulty: int) -> Any:
    """The entry of a ten-row table for a difficulty from 1 to 10."""
    return table[difficulty - 1]


def listed(values: Sequence[object]) -> str:
    """Values as they are written in questions, reasoning and answers: `3, 5, 8`."""
    return ", ".join(str(value) for value in values)
