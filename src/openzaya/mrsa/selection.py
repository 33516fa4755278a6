"""Which of the last candidates answers: votes, and the four policies.

The report scores the mean over the last round and picks nothing; a person needs one reply. `auto` takes an answer that
more than half of the whole round holds, failures counted against it, and otherwise asks for one final aggregation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openzaya.grading import extract_answer, group_votes
from openzaya.grading.extraction import boxes
from openzaya.mrsa.candidate import Candidate
from openzaya.mrsa.config import Select
from openzaya.mrsa.draws import draw_one
from openzaya.mrsa.prompts import Task

_ENDED_BY_ITSELF = ("stop", "tool_calls")


@dataclass(frozen=True, slots=True)
class Group:
    """Candidates that hold the same answer."""

    answer: str
    members: tuple[Candidate, ...]

    @property
    def spokesman(self) -> Candidate:
        """The member with the shortest text, the earliest of several; one that was cut only where all were."""
        return min(
            self.members,
            key=lambda candidate: (
                candidate.finish_reason not in _ENDED_BY_ITSELF,
                len(candidate.content),
                candidate.index,
            ),
        )


def read_answer(content: str, finish_reason: str, task: Task) -> str | None:
    """The answer in a reply, or None.

    A reply that did not end by itself has an answer only where it boxed one: whatever number an unfinished sentence
    happens to break off at is not an answer.
    """
    if finish_reason in _ENDED_BY_ITSELF:
        return extract_answer(content, task)
    boxed = boxes(content)
    return boxed[-1] if boxed else None


def group_by_answer(candidates: Sequence[Candidate]) -> list[Group]:
    """Candidates by answer, the largest group first, ties to the earliest; those without an answer are in no group."""
    groups = group_votes([candidate.answer for candidate in candidates])
    return [Group(group.answer, tuple(candidates[place] for place in group.members)) for group in groups]


def count_votes(candidates: Sequence[Candidate]) -> dict[str, int]:
    """Candidates by answer, the most first."""
    return {group.answer: len(group.members) for group in group_by_answer(candidates)}


def unanimous(candidates: Sequence[Candidate]) -> bool:
    """Whether every candidate, failed ones included, holds one and the same answer."""
    groups = group_by_answer(candidates)
    return len(groups) == 1 and len(groups[0].members) == len(candidates)


def choose(candidates: Sequence[Candidate], select: Select, seed: int) -> Candidate | None:
    """The candidate that answers under this policy, or None where a final aggregation has to."""
    if select == "final":
        return None
    if select == "random":
        written = [place for place, candidate in enumerate(candidates) if candidate.written and not candidate.failed]
        return candidates[draw_one(written, seed)] if written else _first_good(candidates)
    groups = group_by_answer(candidates)
    if select == "majority":
        return groups[0].spokesman if groups else _first_good(candidates)
    if groups and 2 * len(groups[0].members) > len(candidates):
        return groups[0].spokesman
    return None


def best_so_far(rounds: Sequence[Sequence[Candidate]]) -> tuple[Sequence[Candidate], Candidate | None]:
    """The latest round in which any candidate holds an answer, and who speaks for its largest group.

    Without any answer at all it is the latest candidate that wrote some text; None where there is none either.
    """
    for candidates in reversed(rounds):
        groups = group_by_answer(candidates)
        if groups:
            return candidates, groups[0].spokesman
    for candidates in reversed(rounds):
        written = _first_good([candidate for candidate in candidates if candidate.written])
        if written is not None:
            return candidates, written
    return (rounds[-1] if rounds else ()), None


def _first_good(candidates: Sequence[Candidate]) -> Candidate | None:
    good = [candidate for candidate in candidates if not candidate.failed]
    return next((candidate for candidate in good if candidate.written), good[0] if good else None)
