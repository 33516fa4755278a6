"""The configuration of a run, its presets, and whether it fits a model's context."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from openzaya.mrsa.prompts import Task

TailKind = Literal["reasoning", "hybrid", "whole"]
Cut = Literal["exact", "boundary"]
Select = Literal["auto", "final", "majority", "random"]

BUDGETS = frozenset({"max_total_tokens", "deadline", "concurrency"})
"""Settings that may differ when a run is resumed: they change how much is generated, never what."""


class ConfigError(ValueError):
    """A configuration that cannot be run, said in one sentence."""


class MrsaConfig(BaseModel):
    """Markovian RSA (ZAYA1 technical report, section VI-A), every setting of one run.

    The letters of the report: `candidates` is N, `tails` is C, `rounds` is T (aggregation rounds after round 0, so
    T + 1 generation rounds), `beta` and `tau` are β and τ. All lengths are in tokens. Build it with `make_config` or
    `preset` to have errors as one sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    candidates: int = Field(16, ge=1)
    """N: candidates in a round."""
    tails: int = Field(4, ge=1)
    """C: tails that each candidate after round 0 reads."""
    rounds: int = Field(2, ge=0)
    """T: aggregation rounds after round 0."""
    beta: int = Field(16384, ge=1)
    """β: token limit of a candidate in every round but the last."""
    tau: int = Field(4096, ge=1)
    """τ: tokens of a tail."""
    final_tokens: int | None = Field(None, ge=1)
    """Token limit of a candidate in the last round and of a final call; None is whatever the context leaves."""
    final_n: int | None = Field(None, ge=1)
    """Width of the last round; None is `candidates`. It has no effect on round 0."""

    tail: TailKind = "reasoning"
    cut: Cut = "exact"
    """`boundary` moves the beginning of a tail on to the next line, and so only ever shortens it."""
    select: Select = "auto"
    task: Literal["auto"] | Task = "auto"

    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    final_temperature: float = Field(0.6, ge=0)
    final_top_p: float = Field(0.95, gt=0, le=1)
    final_top_k: int = Field(40, ge=0)
    final_min_p: float = Field(0.0, ge=0, le=1)
    seed: int = 0
    enable_thinking: bool = True
    force_answer: int = Field(0, ge=0)
    """Tokens granted for the answer when a candidate of the last round, or a final call, reaches its limit while still
    reasoning. Earlier rounds need no answer: only their tails are read."""

    minimum: int = Field(1, ge=1)
    """Candidates of a round that must not fail (of a last round narrower than this, all). One is enough by default:
    aggregation works on however many tails there are, failures stay visible in every round's figures, and an answer
    still needs more than half of all N to win unaided."""
    quorum: int | float | None = None
    """Finished candidates (a count, or a fraction of the round) that start the next round; the rest are cut, and what
    they had written so far still gives their tails. None waits for all, and so does the last round."""
    stop_on_unanimity: bool = False
    """End as soon as every candidate of a round holds the same answer."""
    max_total_tokens: int | None = Field(None, ge=1)
    """Generated tokens of the whole run, failed and cut rollouts included."""
    deadline: float | None = Field(None, gt=0)
    """Seconds of this invocation."""
    concurrency: int | None = Field(None, ge=1)
    """Rollouts open at once; None sends a whole round and leaves the queue to the source."""

    @model_validator(mode="after")
    def _consistent(self) -> MrsaConfig:
        if self.rounds and self.tails > self.candidates:
            raise ValueError(
                f"C is {self.tails} and N is {self.candidates}: an aggregation cannot read more tails than a round has "
                "candidates; lower C or raise N"
            )
        if self.rounds and self.tau > self.beta:
            raise ValueError(
                f"τ is {self.tau} and β is {self.beta}: a tail cannot be longer than the candidate it is cut from; "
                "lower τ or raise β"
            )
        if self.minimum > self.candidates:
            raise ValueError(
                f"minimum is {self.minimum} and N is {self.candidates}: a round has no more good candidates than "
                "candidates; lower minimum or raise N"
            )
        if self.tails == 1 and self.last_width > self.candidates:
            raise ValueError(
                f"final_n is {self.final_n} and N is {self.candidates}: with C = 1 each candidate continues its own "
                "tail, so the last round cannot be wider; lower final_n or raise C"
            )
        if self.quorum is not None:
            fraction = isinstance(self.quorum, float)
            if not (0 < self.quorum <= 1 if fraction else 1 <= self.quorum <= self.candidates):
                raise ValueError(
                    f"quorum is {self.quorum}; it must be a fraction above 0 and at most 1.0, or a count from 1 to "
                    f"{self.candidates}"
                )
        return self

    @property
    def last_width(self) -> int:
        """Candidates of the last round."""
        return self.candidates if self.rounds == 0 or self.final_n is None else self.final_n

    def width(self, round: int) -> int:
        """Candidates of this round."""
        return self.last_width if round == self.rounds else self.candidates

    def limit(self, round: int) -> int | None:
        """Token limit of a candidate of this round (and of the final call, which counts as round T + 1)."""
        return self.beta if round < self.rounds else self.final_tokens

    def token_bound(self) -> int | None:
        """The most tokens that the rounds can generate, a final call aside; None where the last is unlimited."""
        if self.final_tokens is None:
            return None
        return self.rounds * self.candidates * self.beta + self.last_width * self.final_tokens

    def quorum_of(self, round: int) -> int:
        """Finished candidates that let this round end."""
        width = self.width(round)
        if self.quorum is None or round == self.rounds:
            return width
        if isinstance(self.quorum, float):
            return max(1, math.ceil(self.quorum * width))
        return min(self.quorum, width)

    @property
    def digest(self) -> str:
        """SHA-256 of every setting that changes what is generated; budgets and concurrency may differ on resuming."""
        kept = {key: value for key, value in self.model_dump().items() if key not in BUDGETS}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


@cache
def _presets() -> dict[str, dict[str, Any]]:
    text = resources.files("openzaya.mrsa").joinpath("presets.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def automatic_preset(model: str, *, local: bool, device: str = "cpu") -> str:
    """The preset `auto` stands for: `tiny` for the bundled model, `local` for others on a CPU here, else `default`."""
    if not local:
        return "default"
    if model == "tiny":
        return "tiny"
    return "local" if device.startswith("cpu") else "default"


def preset_names() -> tuple[str, ...]:
    """The presets in the order of the table."""
    return tuple(_presets())


def make_config(values: Mapping[str, Any]) -> MrsaConfig:
    """A configuration from plain values; raises ConfigError with one sentence that names the value."""
    try:
        return MrsaConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"] if part not in ("int", "float"))
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"{name} is no setting of Markovian RSA; known are {', '.join(MrsaConfig.model_fields)}"
            ) from None
        if first["type"] == "value_error":
            raise ConfigError(str(first["ctx"]["error"])) from None
        raise ConfigError(f"{name} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def preset(name: str, **overrides: Any) -> MrsaConfig:
    """A named configuration with some settings replaced; None leaves a setting as the preset has it.

    A preset whose C or τ no longer fits a smaller N or β is refused rather than adjusted. Raises ConfigError.
    """
    if name not in _presets():
        raise ConfigError(f"there is no preset {name!r}; choose one of {', '.join(preset_names())}")
    given = {key: value for key, value in overrides.items() if value is not None}
    return make_config({**_presets()[name], **given})


def check_context(config: MrsaConfig, question_tokens: int, context: int, overhead: int = 0) -> None:
    """Raise ConfigError where the longest prompt and β together exceed the context, naming every number.

    `overhead` is what the wording and the chat template add. The last round's own limit is not asked for in full:
    a rollout there simply gets what the context leaves.
    """
    if not config.rounds:
        if question_tokens + overhead >= context:
            raise ConfigError(
                f"the question of {question_tokens} tokens (and {overhead} of prompt wording) leaves no room in the "
                f"context of {context}; shorten it or use a model with a longer context"
            )
        return
    needed = question_tokens + overhead + config.tails * config.tau + config.beta
    if needed > context:
        raise ConfigError(
            f"the context of {context} tokens is too small: question {question_tokens} + C·τ "
            f"{config.tails}·{config.tau} + prompt wording {overhead} + β {config.beta} = {needed}; lower C, τ or β, "
            "or use a model with a longer context"
        )
