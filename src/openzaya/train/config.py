"""The recipe of a training run, read from TOML; unknown keys are refused.

A run has one model, one tokenizer and one set of corpora; its phases differ in context, data and rates.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from openzaya.data.corpora import CorpusRecipe, check_weights
from openzaya.data.mixture import FamilyShare, check_mixture
from openzaya.data.rollouts import Undecided
from openzaya.data.trimming import Overlong
from openzaya.model.config import NAMED_SHAPES, RopeParameters, ZayaConfig
from openzaya.train.ablation_recipe import AblationRecipe

Positive = Annotated[int, Field(gt=0)]
Above0 = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Part = Literal["attention", "experts"]
Recipe = TypeVar("Recipe", bound=BaseModel)

SCRATCH, CHECKPOINT = "scratch", "checkpoint"
"""What a phase may start from besides an earlier phase: random weights, or `model.checkpoint`."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenizerRecipe(_Section):
    """A tokenizer that exists, or one trained on problems of the mixture and on texts."""

    folder: str | None = None
    """Of `tokenizer.json` and the chat template; the other keys then mean nothing."""
    vocab_size: Positive = 768
    documents: Positive = 20_000
    """Problems that it is trained on, where the recipe has a mixture."""
    corpora: dict[str, Positive] = Field(default_factory=dict)
    """Documents of each corpus of texts that it is trained on, the first ones."""


class ModelRecipe(_Section):
    """A named shape with fields changed, or a checkpoint to go on from."""

    shape: str = "tiny"
    changes: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None
    """A folder of either layout, a hub id or "tiny": weights, shape and (unless another is given) tokenizer."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelRecipe:
        if self.checkpoint is not None and {"shape", "changes"} & self.model_fields_set:
            raise ValueError(f"the checkpoint {self.checkpoint!r} has its own shape; leave out shape and changes")
        return self

    def build(self, **more: Any) -> ZayaConfig:
        """The configuration of a model made of random weights; raises ValueError for an unknown shape."""
        if self.shape not in NAMED_SHAPES:
            raise ValueError(f"the shape {self.shape!r} is unknown; there are {', '.join(NAMED_SHAPES)}")
        return NAMED_SHAPES[self.shape].with_(**self.changes, **more)


class LoraRecipe(_Section):
    """Low-rank adapters in place of full fine-tuning; the checkpoint of a phase has them merged.

    The product B A of an adapter is scaled by alpha / rank (Hu et al. 2021). Only adapters and balancing biases move.
    """

    rank: Positive = 16
    alpha: Above0 = 32.0
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = ("attention", "experts")
    """Attention's projections; the experts' stacks, each expert with a pair of its own."""


class OptimizerRecipe(_Section):
    """Muon on matrices, AdamW on the rest, AdamW on the balancing biases. Rates are those of the plateau."""

    matrices: Literal["muon", "adamw"] = "muon"
    """What trains matrices and expert stacks."""
    muon_rate: float = 0.006
    adamw_rate: float = 0.006
    router_share: Above0 = 1.0
    """Rates of the router's parameters as a share of the others'."""
    balancing_rate: float = 0.002
    """Of the balancing biases, under `[balancing]` methods "adamw" and "sign"."""
    momentum: Fraction = 0.95
    newton_schulz_steps: Positive = 5
    matched_size: Above0 = 0.2
    """Root mean square of Muon's update at a rate of 1, which is about AdamW's (Liu et al. 2025)."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    clip: float = 1.0
    """Largest gradient norm over all parameters."""


class BalancingRecipe(_Section):
    """How experts are kept equally busy."""

    method: Literal["adamw", "sign", "pid", "auxiliary", "none"] = "adamw"
    """What moves the biases, from the error p - 1/E of the step: AdamW (ZAYA1), its sign alone (DeepSeek-V3), or a
    proportional-integral-derivative controller. "auxiliary" leaves them and adds a loss (Switch Transformer)."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Of AdamW on the biases; not published."""
    gains: tuple[float, float, float] = (0.05, 0.01, 0.0)
    """Proportional, integral and derivative gain of "pid": bias = -(P e + I sum(e) + D (e - e before)), e = E p - 1."""
    auxiliary_weight: Above0 = 0.01


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


class ShardingRecipe(_Section):
    """How a phase is spread over the ranks of `torchrun`; all that is left divides the batch."""

    expert: Positive = 1
    """Ranks that share the experts of a layer."""
    context: Positive = 1
    """Ranks that share a row."""

    @property
    def ranks(self) -> int:
        """The fewest that it divides a phase over; their number must be a multiple of it."""
        return self.expert * self.context

    @property
    def undivided(self) -> str | None:
        """What one process says of it, which takes a phase whole; None where there is nothing to divide."""
        if self.ranks == 1:
            return None
        return (
            f"the recipe divides experts over {self.expert} and rows over {self.context} ranks; this one process takes "
            f"them whole (torchrun --nproc-per-node {self.ranks} -m openzaya train starts as many as it wants)"
        )


class PhaseRecipe(_Section):
    """A stretch of training."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    start: str | None = None
    """The phase whose end this one continues from, "checkpoint" (where the model is one), or "scratch"."""
    tokens: Positive
    """Tokens read, prompts and padding included."""
    batch_tokens: Positive = 16_384
    microbatch_tokens: Positive = 16_640
    """Most tokens of one forward and backward on a rank; small ones spend their time on the cost of each operation."""
    row: Positive = 256
    """Context: the length of a row of packed documents, or of a piece of a longer one."""
    rope_base: Above0 | None = None
    """Of layers that see the whole row; the model's own where not given."""
    schedule: Literal["wsd", "cosine", "linear"] = "wsd"
    """After the warm-up: a plateau and then a decay over the last `decay`; a cosine; a straight line."""
    warmup: Fraction = 0.0
    """Share of the phase over which the rates rise from zero."""
    warmup_tokens: Positive | None = None
    """The same in tokens."""
    decay: Fraction = 0.0
    """Share of the phase, at its end, over which "wsd" falls linearly to `floor`."""
    floor: Fraction = 0.05
    """Where rates end, as a share of the phase's highest."""
    peak: Annotated[float, Field(ge=0)] = 1.0
    """Rates of this phase as a share of the optimizer's."""
    mixture: dict[str, FamilyShare] | None = None
    """Its own mixture of problems, in place of the recipe's."""
    aggregation: AggregationRecipe | None = None
    corpora: dict[str, Above0] = Field(default_factory=dict)
    """Share of each corpus in the tokens that come from corpora; they need not add up to one."""
    problems: Fraction | None = None
    """Share of the tokens that are problems of the mixture; all of them where there are no corpora, else none."""
    overlong: Overlong = "trim"
    """What becomes of conversations longer than `row`; texts are cut into pieces whatever this says."""
    activation_checkpointing: bool = False
    """Keep only the input of each block and compute the block again in the backward."""
    sharding: ShardingRecipe = ShardingRecipe()

    @model_validator(mode="after")
    def _consistent(self) -> PhaseRecipe:
        if self.mixture is not None:
            check_mixture(self.mixture)
        if self.warmup and self.warmup_tokens:
            raise ValueError(f"warmup {self.warmup} and warmup_tokens {self.warmup_tokens} say the same; give one")
        if self.warmup_tokens is not None and self.warmup_tokens > self.tokens:
            raise ValueError(f"warmup_tokens {self.warmup_tokens} is more than the phase's tokens, {self.tokens}")
        if self.decay and self.schedule != "wsd":
            raise ValueError(f"decay {self.decay} belongs to the schedule 'wsd'; {self.schedule!r} falls all the way")
        if self.row % self.sharding.context:
            raise ValueError(f"a row of {self.row} cannot be shared by sharding.context {self.sharding.context} ranks")
        if not self.corpora and self.problems not in (None, 1.0):
            raise ValueError(f"problems is {self.problems} and there are no corpora to read the rest of")
        if self.aggregation is not None and not self.problem_share:
            raise ValueError("aggregation examples are made of problems, and this phase reads none; set problems")
        return self

    @property
    def problem_share(self) -> float:
        """Share of the tokens of a step that are problems."""
        return (0.0 if self.corpora else 1.0) if self.problems is None else self.problems

    def shape(self, model: ZayaConfig) -> ZayaConfig:
        """`model` as this phase trains it: with its RoPE base, and room for its rows."""
        longest = max(model.max_position_embeddings, self.row)
        rope = dict(model.rope_parameters)
        if self.rope_base is not None:
            rope["hybrid"] = RopeParameters(
                rope_theta=self.rope_base, partial_rotary_factor=rope["hybrid"].partial_rotary_factor
            )
        return model.with_(max_position_embeddings=longest, rope_parameters=rope)


class HeldOutRecipe(_Section):
    """Loss on what is never trained on, by corpus and for the problems."""

    every_steps: Positive | None = None
    """Steps between two evaluations; at the end of each phase there always is one."""
    tokens: Positive = 65_536
    """Read of each."""


class LoggingRecipe(_Section):
    """Where curves go besides `log.jsonl` and the report of the run."""

    every_seconds: Above0 = 10.0
    tensorboard: bool = True
    """To `<out>/tensorboard`, where the package is installed."""
    wandb_project: str | None = None
    """Weights & Biases, which must be installed."""


class TrainConfig(_Section):
    """A whole run: every phase writes its checkpoint in the native layout to `<out>/<phase>`."""

    seed: int = 0
    threads: Positive | None = None
    """Of torch (none: its own choice). Another number rounds sums differently, so weights repeat to the bit for one."""
    device: str | None = None
    """As torch names it; an accelerator where there is one, else the processor."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of forward and backward; the master weights are float32."""
    numerics: Literal["hf", "report"] = "hf"
    """Which operations are in float32 beyond that: see `openzaya.model.numerics`."""
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    model: ModelRecipe = ModelRecipe()
    ablation: AblationRecipe = AblationRecipe()
    lora: LoraRecipe | None = None
    mixture: dict[str, FamilyShare] = Field(default_factory=dict)
    """Families of problems; may be empty where no phase reads problems."""
    corpora: dict[str, CorpusRecipe] = Field(default_factory=dict)
    """Texts and conversations by name."""
    shards: str | None = None
    """Folder of the tokens made of them, for several runs to share; `<out>/corpora` where not given."""
    optimizer: OptimizerRecipe = OptimizerRecipe()
    balancing: BalancingRecipe = BalancingRecipe()
    phases: Annotated[list[PhaseRecipe], Field(min_length=1)]
    save_seconds: Above0 = 60.0
    """Longest work that a kill can lose."""
    save_steps: Positive | None = None
    """Steps between two states, besides `save_seconds`."""
    keep_last: Positive = 2
    """States of a running phase that are kept, the newest: one to go on from, others to fall back to."""
    keep_every: Positive | None = None
    """Steps of which each multiple's state is kept for good."""
    bad_steps: Positive = 3
    """Steps in a row whose loss or gradient is not finite before the run goes back to an earlier state."""
    held_out: HeldOutRecipe = HeldOutRecipe()
    logging: LoggingRecipe = LoggingRecipe()

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        earlier: set[str] = set()
        for phase in self.phases:
            if phase.name in earlier or phase.name in (SCRATCH, CHECKPOINT):
                raise ValueError(f"the phase name {phase.name!r} is taken; give each phase a name of its own")
            if phase.start not in earlier | {None, SCRATCH, CHECKPOINT}:
                raise ValueError(f"the phase {phase.name!r} starts from {phase.start!r}, which no earlier phase is")
            if phase.start == CHECKPOINT and self.model.checkpoint is None:
                raise ValueError(
                    f"the phase {phase.name!r} starts from the checkpoint, and model.checkpoint is not set"
                )
            if phase.corpora:
                check_weights(phase.corpora, self.corpora)
            earlier.add(phase.name)
        if self.mixture or any(phase.problem_share and phase.mixture is None for phase in self.phases):
            check_mixture(self.mixture)
        if unread := [name for name in self.tokenizer.corpora if name not in self.corpora]:
            raise ValueError(f"tokenizer.corpora names {unread[0]!r}; there are {', '.join(self.corpora) or 'none'}")
        if not (self.mixture or self.tokenizer.corpora or self.tokenizer.folder or self.model.checkpoint):
            raise ValueError("nothing says where the tokenizer comes from; set tokenizer.folder or tokenizer.corpora")
        if self.ablation != AblationRecipe() and self.model.checkpoint is not None:
            raise ValueError("ablation trains from random weights; model.checkpoint was trained with all of its parts")
        if self.lora is not None and any(self.start_of(phase) == SCRATCH for phase in self.phases):
            raise ValueError("lora adapts a checkpoint; set model.checkpoint, and start no phase from scratch")
        return self

    def start_of(self, phase: PhaseRecipe) -> str:
        """What a phase starts from: a phase's name, "checkpoint" or "scratch"."""
        return phase.start or (SCRATCH if self.model.checkpoint is None else CHECKPOINT)


def read_train_config(path: str | Path) -> TrainConfig:
    """Read a recipe; raises ValueError naming the file, the key and what is wrong with it."""
    return checked(TrainConfig, read_toml(path), path)


def read_toml(path: str | Path) -> dict[str, Any]:
    """What a file says, before anything of it is checked; raises ValueError where it is no TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML ({error})") from None


def checked(recipe: type[Recipe], fields: dict[str, Any], path: str | Path) -> Recipe:
    """A recipe made of the fields of a file; raises ValueError naming the file, the key and what is wrong with it."""
    try:
        return recipe(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"{path}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
        ) from None
