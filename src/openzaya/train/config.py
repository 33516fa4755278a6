"""The recipe of a training run, read from TOML; unknown keys are refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from openzaya.data.mixture import FamilyShare, check_mixture
from openzaya.data.rollouts import Undecided
from openzaya.model.config import NAMED_SHAPES, ZayaConfig

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenizerRecipe(_Section):
    """A tokenizer trained on problems of the mixture."""

    vocab_size: Positive = 768
    documents: Positive = 20_000
    """Problems that it is trained on."""


class ModelRecipe(_Section):
    """A named shape with fields changed."""

    shape: str = "tiny"
    changes: dict[str, Any] = Field(default_factory=dict)

    def build(self, **more: Any) -> ZayaConfig:
        if self.shape not in NAMED_SHAPES:
            raise ValueError(f"the shape {self.shape!r} is unknown; there are {', '.join(NAMED_SHAPES)}")
        return NAMED_SHAPES[self.shape].with_(**self.changes, **more)


class OptimizerRecipe(_Section):
    """Muon on matrices, AdamW on the rest, AdamW on the balancing biases. Rates are those of the plateau."""

    muon_rate: float = 0.006
    adamw_rate: float = 0.006
    router_share: Annotated[float, Field(gt=0)] = 1.0
    """Rates of the router's parameters as a share of the others'."""
    balancing_rate: float = 0.002
    momentum: Fraction = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    clip: float = 1.0
    """Largest gradient norm over all parameters."""


class AggregationRecipe(_Section):
    """Aggregation examples: question and tails, to a better solution.

    Tails come from the model's own rollouts, refreshed as it learns, or are worked solutions with random slips. Those
    cost nothing, so they can teach how to read tails from the first step, when the model cannot yet solve without.
    """

    share: Fraction = 0.5
    """Of the tokens of a step; the rest stay plain problems, and more than half of the learned tokens with them."""
    slipped: Fraction = 0.0
    """Share of the aggregation examples whose tails are worked solutions with slips; 1 needs no rollouts."""
    slip_rate: Fraction = 0.2
    """Largest probability that a computed value slips; each example draws its own rate below it."""
    undecided: Undecided = "chosen"
    """Of tails that do not agree on an answer the right one is "chosen" (examples without a right one are left out), or
    the problem is "solved" anew in full. Where tails agree on the right answer, it is given at once."""
    tails: Positive = 4
    """Most tails of an example."""
    fewest_tails: Positive | None = None
    """Fewest tails; each example draws its count. By default always `tails`."""
    tau: Positive = 128
    """Tokens of a tail."""
    beta: Positive = 256
    """Token limit of a rollout."""
    refreshes: Annotated[int, Field(ge=0)] = 4
    """How often in the phase new problems are drawn and rolled out with the weights of that moment."""
    problems: Positive = 800
    """Problems of one refresh."""
    rollouts: Positive = 6
    """Rollouts of each problem in round 0."""
    solved: Fraction = 1.0
    """Share that stays of the problems on which every candidate was right: tails add nothing to what is known."""
    unsolved: Fraction = 1.0
    """Share that stays of the problems on which every candidate was wrong: their tails teach distrust."""
    second_round: Fraction = 0.35
    """Share of the problems that also give tails of round 1, that is of aggregations."""

    @model_validator(mode="after")
    def _consistent(self) -> AggregationRecipe:
        if self.fewest_tails is not None and self.fewest_tails > self.tails:
            raise ValueError(f"fewest_tails {self.fewest_tails} is more than tails {self.tails}")
        if self.refreshes == 0 and self.slipped < 1:
            raise ValueError(
                f"slipped {self.slipped} wants rollouts and refreshes is 0; set slipped = 1 or refreshes above 0"
            )
        if self.refreshes and self.slipped == 1:
            raise ValueError(f"slipped 1 uses no rollouts and refreshes is {self.refreshes}; set refreshes = 0")
        return self

    def tail_range(self) -> range:
        """The counts of tails that an example may have."""
        return range(self.fewest_tails or self.tails, self.tails + 1)


class PhaseRecipe(_Section):
    """A stretch of training."""

    name: str
    start: str = "scratch"
    """The phase whose end this one continues from, or "scratch"."""
    tokens: Positive
    """Tokens read, prompts and padding included."""
    batch_tokens: Positive = 16_384
    row: Positive = 256
    """Length of a row of packed plain problems."""
    warmup: Fraction = 0.0
    """Share of the phase over which the rates rise from zero."""
    decay: Fraction = 0.0
    """Share of the phase, at its end, over which the rates fall linearly to `floor`."""
    floor: Fraction = 0.05
    peak: Fraction = 1.0
    """Rates of this phase as a share of the optimizer's."""
    mixture: dict[str, FamilyShare] | None = None
    """Its own mixture, in place of the recipe's."""
    aggregation: AggregationRecipe | None = None

    @model_validator(mode="after")
    def _of_known_families(self) -> PhaseRecipe:
        if self.mixture is not None:
            check_mixture(self.mixture)
        return self


class TrainConfig(_Section):
    """A whole run: every phase writes its checkpoint in the native layout to `<out>/<phase>`."""

    seed: int = 0
    threads: Annotated[int, Field(ge=1)] | None = None
    """Of torch (none: its own choice). Another number rounds sums differently, so weights repeat to the bit for one."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of forward and backward; the master weights are float32."""
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    model: ModelRecipe = ModelRecipe()
    mixture: dict[str, FamilyShare]
    optimizer: OptimizerRecipe = OptimizerRecipe()
    phases: Annotated[list[PhaseRecipe], Field(min_length=1)]
    save_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest work that a kill can lose."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        check_mixture(self.mixture)
        earlier: set[str] = set()
        for phase in self.phases:
            if phase.name in earlier or phase.name == "scratch":
                raise ValueError(f"the phase name {phase.name!r} is taken; give each phase a name of its own")
            if phase.start not in earlier | {"scratch"}:
                raise ValueError(f"the phase {phase.name!r} starts from {phase.start!r}, which no earlier phase is")
            earlier.add(phase.name)
        return self


def read_train_config(path: str | Path) -> TrainConfig:
    """Read a recipe; raises ValueError naming the file, the key and what is wrong with it."""
    try:
        fields = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML ({error})") from None
    try:
        return TrainConfig(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"{path}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
        ) from None
