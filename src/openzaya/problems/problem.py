"""Problems by seed: generation, the train / held-out split, worked solutions and verification."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from openzaya.problems.answers import same_answer
from openzaya.problems.families import FAMILIES
from openzaya.problems.family import Family, Parameters
from openzaya.problems.stepper import Stepper

Split = Literal["train", "held_out"]

HELD_OUT_ONE_IN = 8
_DRAWS = 512
_BY_NAME = {family.name: family for family in FAMILIES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """A worked solution, perhaps with slips.

    `reasoning` goes between think tags: one step a line, each starting with its index, the last one restating
    the answer. `slips` is the number of computed values that were altered.
    """

    reasoning: str
    answer: str
    slips: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A problem as a user would type it, with its canonical answer and the instance behind the wording."""

    family: str
    seed: int
    difficulty: int
    phrasing: int
    task: str
    question: str
    answer: str
    parameters: Parameters = field(hash=False)

    @property
    def instance_hash(self) -> str:
        """SHA-256 (hex) of the family and its parameters, the same in every phrasing and process."""
        canonical = json.dumps([self.family, self.parameters], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def worked(self) -> Worked:
        """The worked solution without slips."""
        return work(self)

    def reply(self, answer: str | Worked | None = None) -> str:
        """What follows the reasoning: a sentence that boxes `answer`, by default the right one."""
        if isinstance(answer, Worked):
            answer = answer.answer
        return f"The answer is \\boxed{{{self.answer if answer is None else answer}}}."


def families() -> dict[str, Family]:
    """Every family by name, in a fixed order."""
    return dict(_BY_NAME)


def generate(
    family: str,
    seed: int,
    difficulty: int | None = None,
    *,
    phrasing: int | None = None,
    split: Split | None = None,
) -> Problem:
    """The problem of a family, seed and difficulty; difficulty and phrasing are drawn from the seed if not given.

    With a split, successive instances are drawn from the seed until one falls in it. The instance never depends on
    the phrasing. Raises ValueError for an unknown family, a difficulty, phrasing or split out of range, and when no
    instance of that difficulty falls in the split.
    """
    spec = _family(family)
    if difficulty is None:
        difficulty = Random(f"{family}/{seed}/difficulty").randint(spec.min_difficulty, spec.max_difficulty)
    if not spec.min_difficulty <= difficulty <= spec.max_difficulty:
        bounds = f"{spec.min_difficulty} to {spec.max_difficulty}"
        raise ValueError(f"difficulty {difficulty} is out of range for {family}: give {bounds}")
    if phrasing is None:
        phrasing = Random(f"{family}/{difficulty}/{seed}/phrasing").randrange(len(spec.phrasings))
    if not 0 <= phrasing < len(spec.phrasings):
        raise ValueError(f"phrasing {phrasing} is out of range for {family}: give 0 to {len(spec.phrasings) - 1}")
    if split not in (None, "train", "held_out"):
        raise ValueError(f"split {split!r} is unknown: give 'train', 'held_out' or None")

    random = Random(f"{family}/{difficulty}/{seed}/instance")
    for _ in range(_DRAWS):
        parameters = spec.instance(random, difficulty)
        problem = Problem(
            family=family,
            seed=seed,
            difficulty=difficulty,
            phrasing=phrasing,
            task=spec.task,
            question=spec.phrasings[phrasing](parameters),
            answer=spec.solve(parameters),
            parameters=parameters,
        )
        if split is None or split_of(problem) == split:
            return problem
    raise ValueError(f"{family} at difficulty {difficulty} has too few instances for {split!r}: raise the difficulty")


def split_of(problem: Problem) -> Split:
    """The split of a problem's instance: one in eight by hash is held out, whatever the wording."""
    return "held_out" if int(problem.instance_hash[:8], 16) % HELD_OUT_ONE_IN == 0 else "train"


def work(problem: Problem, *, slip_rate: float = 0.0, seed: int = 0) -> Worked:
    """The worked solution of a problem in which each computed value slips with probability `slip_rate`.

    Slips are drawn from `seed` and the instance; the reasoning goes on from a slipped value. Raises ValueError for a
    rate outside 0 to 1.
    """
    random = Random(f"{problem.instance_hash}/{seed}") if slip_rate else None
    step = Stepper(slip_rate, random)
    lines, answer = _family(problem.family).work(problem.parameters, step)
    numbered = [f"{index}: {line}" for index, line in enumerate(lines, start=1)]
    return Worked(reasoning="\n".join([*numbered, f"answer: {answer}"]), answer=answer, slips=step.slips)


def verify(problem: Problem, answer: str) -> bool:
    """Whether `answer` is right: by the family's own verifier, else equal to the canonical answer."""
    if same_answer(answer, problem.answer):
        return True
    accepts = _family(problem.family).accepts
    return accepts is not None and accepts(problem.parameters, answer)


def _family(name: str) -> Family:
    if name not in _BY_NAME:
        raise ValueError(f"problem family {name!r} is unknown: choose from {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
