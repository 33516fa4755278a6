"""The arms of an evaluation: what is sampled or run for every problem, and which arms share rollouts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from openzaya.backends.protocol import ChatParams
from openzaya.evals.spec import EvalError, EvalSpec, MajorityArm, ModelSpec, MrsaArm, SingleArm
from openzaya.mrsa import MrsaConfig, automatic_preset, preset
from openzaya.mrsa.config import BUDGETS
from openzaya.mrsa.controls import TailSource

_FIRST_SAMPLES = 8
"""Rollouts that tell how long one is, where only a majority at equal tokens is asked for."""
_OURS = BUDGETS | {"seed", "task"}


@dataclass(frozen=True, slots=True)
class Pool:
    """Independent rollouts of one model under one sampling; all sampled arms that agree in these share them."""

    name: str
    model: str
    params: ChatParams


@dataclass(frozen=True, slots=True)
class SampledArm:
    """Single rollouts or a majority: the first so many of a pool."""

    name: str
    mode: str
    pool: Pool
    samples: int | None
    match: str | None = None

    @property
    def model(self) -> str:
        return self.pool.model


@dataclass(frozen=True, slots=True)
class RsaArm:
    """Markovian RSA, or one of its controls, which begins with the round 0 of the arm `control_of`."""

    name: str
    model: str
    preset: str
    config: MrsaConfig
    tails: TailSource = "own"
    control_of: str | None = None

    @property
    def mode(self) -> str:
        return "mrsa"

    @property
    def rollouts(self) -> int:
        """Rollouts for one problem, a final call aside."""
        return sum(self.config.width(round) for round in range(self.config.rounds + 1))


Arm = SampledArm | RsaArm


def arms_of(spec: EvalSpec) -> list[Arm]:
    """The arms of a specification, controls after their own. Raises EvalError, or ConfigError for a preset."""
    pools: list[Pool] = []
    arms: list[Arm] = []
    first = next(iter(spec.models))
    for given in spec.arms:
        model = given.model or first
        if model not in spec.models:
            raise EvalError(f"an arm names the model {model!r}; known are {', '.join(spec.models)}")
        name = given.name or _name(given, model, first)
        if isinstance(given, MrsaArm):
            own = RsaArm(name, model, *_configured(given, spec.models[model]))
            arms.append(own)
            arms += [
                RsaArm(f"{name}, {control} tails", model, own.preset, own.config, control, name)
                for control in dict.fromkeys(given.controls)
            ]
        else:
            params = _params(given)
            pool = next((pool for pool in pools if (pool.model, pool.params) == (model, params)), None)
            if pool is None:
                pool = Pool(name, model, params)
                pools.append(pool)
            match = given.match if isinstance(given, MajorityArm) else None
            arms.append(SampledArm(name, given.mode, pool, given.samples, match))
    _check_names(arms)
    return arms


def _name(given: SingleArm | MajorityArm | MrsaArm, model: str, first: str) -> str:
    greedy = isinstance(given, SingleArm) and given.temperature == 0
    name = "greedy" if greedy else given.mode
    return name if model == first else f"{model} {name}"


def _params(given: SingleArm | MajorityArm) -> ChatParams:
    return ChatParams(
        max_tokens=given.max_tokens,
        temperature=given.temperature,
        top_p=given.top_p,
        top_k=given.top_k,
        min_p=given.min_p,
        enable_thinking=given.enable_thinking,
        force_answer=given.force_answer,
    )


def _configured(given: MrsaArm, model: ModelSpec) -> tuple[str, MrsaConfig]:
    ours = sorted(_OURS & set(given.settings))
    if ours:
        raise EvalError(f"{ours[0]} is set by the evaluation itself; remove it from the settings of a mrsa arm")
    name = given.preset
    if name == "auto":
        name = automatic_preset(model.source, local=not model.backend, device=model.engine.device or "cpu")
    config = preset(name, **given.settings)
    if config.rounds == 0:
        raise EvalError(f"the preset {name} has no aggregation round; use mode = 'single' or 'majority' instead")
    return name, config


def _check_names(arms: Sequence[Arm]) -> None:
    names = [arm.name for arm in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EvalError(f"two arms are named {twice[0]!r}; give each a name of its own")
    targets = [arm.name for arm in arms if isinstance(arm, RsaArm)]
    for arm in arms:
        if isinstance(arm, SampledArm) and arm.match is not None and arm.match not in targets:
            known = ", ".join(targets) or "there is none"
            raise EvalError(f"{arm.name} is to match the tokens of {arm.match!r}, no mrsa arm here; known: {known}")


def first_samples(pool: Pool, arms: Sequence[Arm]) -> int:
    """Rollouts of a pool that are known to be needed before any tokens are compared."""
    users = [arm for arm in arms if isinstance(arm, SampledArm) and arm.pool == pool]
    fixed = [arm.samples for arm in users if arm.samples is not None]
    return max(fixed, default=_FIRST_SAMPLES)


def matched_samples(target_tokens: int, target_problems: int, rollout_tokens: int, rollouts: int) -> int:
    """M of majority@M at equal generated tokens: those of the target for a problem over those of a single rollout.

    Rounded up, so that the majority never gets fewer tokens than what it is held against; at least 1.
    """
    if rollout_tokens <= 0 or target_problems <= 0:
        return 1
    return max(1, -(-target_tokens * rollouts // (target_problems * rollout_tokens)))


def shares_round_zero(pool: Pool, config: MrsaConfig) -> bool:
    """Whether round 0 of a configuration is sampled exactly as a pool is, limit included."""
    first_round = ChatParams(
        max_tokens=config.limit(0),
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        enable_thinking=config.enable_thinking,
    )
    return pool.params == first_round


def arms_digest(arms: Sequence[Arm]) -> str:
    """SHA-256 of every setting of the arms that changes what is generated or what it is called."""
    rows: list[list[Any]] = []
    for arm in arms:
        if isinstance(arm, RsaArm):
            rows.append([arm.name, arm.model, arm.tails, arm.control_of, arm.config.digest])
        else:
            sampling = {key: value for key, value in asdict(arm.pool.params).items() if value is not None}
            rows.append([arm.name, arm.model, arm.mode, arm.samples, arm.match, arm.pool.name, sampling])
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()
