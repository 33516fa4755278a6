"""What an evaluation is asked to do: problems, models and arms, read from TOML or built in Python."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Control = Literal["shuffled", "empty"]
AnswerTask = Literal["auto", "math", "choice", "general"]


class EvalError(ValueError):
    """An evaluation that cannot be run as asked, or not resumed, said in one sentence."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FamilySpec(_Settings):
    """Held-out problems of one family of `openzaya.problems`."""

    family: str
    count: int = Field(200, ge=1)
    fewer: bool = False
    """Take what there is where the family has not so many held-out problems, instead of refusing."""
    difficulty: tuple[int, int] | None = None
    """Lowest and highest; each level in between gives as many problems. None is the family's whole range."""
    task: AnswerTask = "auto"
    """Decides how answers are read and which wording aggregates; `auto` is what `solve` detects from the question."""

    @field_validator("difficulty", mode="before")
    @classmethod
    def _one_level_is_a_range(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value


class FileSpec(_Settings):
    """A benchmark in a JSON-lines file: `question`, `answer`, and where wanted `task` and `id`, on each line."""

    path: Path
    limit: int | None = Field(None, ge=1)
    """Only the first so many."""
    task: AnswerTask = "auto"
    """For lines that name none."""


class EngineSpec(_Settings):
    """How the embedded engine runs a model; the defaults are the engine's own."""

    memory: int | str | None = None
    threads: int | None = Field(default=None, ge=1)
    max_batch: int | None = Field(default=None, ge=1)
    prefill_chunk: int | None = Field(default=None, ge=1)
    dtype: str | None = None
    device: str | None = None
    numerics: str | None = None


class ModelSpec(_Settings):
    """Where a model's tokens come from: `source` in this process, or servers at the base URLs `backend`."""

    source: str = "tiny"
    """`tiny`, a folder or a hub id."""
    backend: tuple[str, ...] = ()
    backend_model: str | None = None
    api_key_env: str | None = None
    engine: EngineSpec = EngineSpec()


class _Arm(_Settings):
    name: str | None = Field(None, min_length=1)
    """None is the mode, with the model before it where that is not the first."""
    model: str | None = None
    """None is the first model."""


class _SampledArm(_Arm):
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    """None is whatever the context leaves: a baseline is never cut at β."""
    enable_thinking: bool = True
    force_answer: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _greedy_samples_once(self) -> _SampledArm:
        samples = getattr(self, "samples", None)
        if self.temperature == 0 and samples != 1:
            raise ValueError(f"samples is {samples} at temperature 0, where every sample is the same; give samples = 1")
        return self


class SingleArm(_SampledArm):
    """Independent rollouts, scored by their mean; `temperature` 0 is greedy."""

    mode: Literal["single"] = "single"
    samples: int = Field(1, ge=1)


class MajorityArm(_SampledArm):
    """Majority over M rollouts: `samples` of them, or as many as cost the generated tokens of the arm `match`."""

    mode: Literal["majority"] = "majority"
    samples: int | None = Field(None, ge=1)
    match: str | None = None

    @model_validator(mode="after")
    def _one_size(self) -> MajorityArm:
        if (self.samples is None) == (self.match is None):
            raise ValueError("a majority arm needs samples, or match with the name of a Markovian RSA arm; give one")
        return self


class MrsaArm(_Arm):
    """Markovian RSA with a preset, some of its settings replaced, and its controls as arms of their own."""

    mode: Literal["mrsa"] = "mrsa"
    preset: str = "auto"
    settings: Mapping[str, Any] = Field(default_factory=dict)
    controls: tuple[Control, ...] = ("shuffled", "empty")


ArmSpec = Annotated[SingleArm | MajorityArm | MrsaArm, Field(discriminator="mode")]


class EvalSpec(_Settings):
    """One evaluation: every arm on the same problems. `make_spec` and `load_spec` give one-sentence errors."""

    problems: tuple[FamilySpec, ...] = ()
    files: tuple[FileSpec, ...] = ()
    models: Mapping[str, ModelSpec] = Field(default_factory=lambda: {"tiny": ModelSpec()}, min_length=1)
    arms: tuple[ArmSpec, ...] = Field(min_length=1)
    seed: int = 0
    """Decides the problems, and with them the seed of every rollout."""
    prompts: Path | None = None
    """A file of wordings, as `solve --prompts` takes it."""
    out: Path | None = None
    """Folder of the results; without one nothing is kept and nothing can be resumed."""
    concurrency: int = Field(128, ge=1)
    """Rollouts in flight at once."""
    keep_text: bool = False
    """Keep reasoning and content of every rollout in the results."""
    thorough: bool = False
    """Grade answers of files that are not literally equal with math-verify (the `eval` extra)."""
    resamples: int = Field(10_000, ge=100)
    """Bootstrap resamples, and sign flips of the paired test."""

    @model_validator(mode="after")
    def _has_problems(self) -> EvalSpec:
        if not self.problems and not self.files:
            raise ValueError("there is nothing to evaluate on; give problems or files")
        return self


def make_spec(values: Mapping[str, Any]) -> EvalSpec:
    """A specification from plain values; raises EvalError with one sentence that names the value."""
    try:
        return EvalSpec(**values)
    except ValidationError as error:
        raise EvalError(_sentence(error)) from None


def load_spec(path: str | Path) -> EvalSpec:
    """Read a TOML file with the fields of `EvalSpec`; raises EvalError where it cannot be read or is wrong."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EvalError(f"cannot read the evaluation {path}: {error}") from error
    try:
        return make_spec(values)
    except EvalError as error:
        raise EvalError(f"{path}: {error}") from None


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":
        reason = str(first["ctx"]["error"])
        return f"{where}: {reason}" if where else reason
    if first["type"] == "extra_forbidden":
        return f"{where} is no setting of an evaluation; remove it or correct its name"
    if first["type"] == "missing":
        return f"{where} is missing; give it a value"
    return f"{where} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
