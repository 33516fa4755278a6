"""A weighted mixture of problem families, drawn as a pure function of (seed, index)."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from openzaya.problems import Problem, families, generate


class FamilyShare(BaseModel):
    """How much of one family a mixture holds, and how hard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: Annotated[float, Field(gt=0)] = 1.0
    difficulty: tuple[int, int] = (1, 10)

    @model_validator(mode="after")
    def _ordered(self) -> FamilyShare:
        if self.difficulty[0] > self.difficulty[1]:
            raise ValueError(f"difficulty {list(self.difficulty)} is not a range from low to high")
        return self


Mixture = Mapping[str, FamilyShare]


def check_mixture(mixture: Mixture) -> None:
    """Raises ValueError for a family that does not exist or a difficulty outside its range."""
    known = families()
    if not mixture:
        raise ValueError("the mixture is empty; give at least one family")
    for name, share in mixture.items():
        if name not in known:
            raise ValueError(f"the family {name!r} does not exist; there are {', '.join(known)}")
        low, high = share.difficulty
        if low < known[name].min_difficulty or high > known[name].max_difficulty:
            raise ValueError(
                f"difficulty {low} to {high} of {name} is out of range; it goes from "
                f"{known[name].min_difficulty} to {known[name].max_difficulty}"
            )


def draw_problem(mixture: Mixture, seed: int, index: int) -> Problem:
    """Training problem number `index` of a mixture; never a held-out one."""
    random = Random(f"mixture/{seed}/{index}")
    name = random.choices(list(mixture), [share.weight for share in mixture.values()])[0]
    low, high = mixture[name].difficulty
    return generate(name, random.getrandbits(48), random.randint(low, high), split="train")
