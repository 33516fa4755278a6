"""What a phase of a recipe is, wherever it runs: steps, learning rates, operations."""

from __future__ import annotations

from dataclasses import dataclass

from openzaya.model.config import ZayaConfig
from openzaya.train.config import PhaseRecipe, TrainConfig
from openzaya.train.plan.flops import TokenFlops, forward_flops, training_flops
from openzaya.train.plan.parameters import Parameters, optimizer_flops
from openzaya.train.schedule import rate_scale, total_steps


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates of one step."""

    step: int
    muon: float
    adamw: float


@dataclass(frozen=True, slots=True)
class Outline:
    """What a phase is, wherever it runs."""

    name: str
    start: str
    tokens: int
    steps: int
    batch_tokens: int
    row: int
    rope_base: float
    rates: list[Rates]
    """At the start, when the warm-up ends, half-way and at the end."""
    forward: TokenFlops
    token_flops: float
    """Forward and backward of one token as computed, checkpointing counted."""
    optimizer_flops: float
    """Of one step, on one rank that does all of it."""


def outline(config: TrainConfig, phase: PhaseRecipe, shape: ZayaConfig, counts: Parameters) -> Outline:
    """What `phase` does with the recipe's model, of `shape` and its `counts`."""
    shape, steps = phase.shape(shape), total_steps(phase)
    warm = phase.warmup * steps if phase.warmup_tokens is None else phase.warmup_tokens / phase.batch_tokens
    forward = forward_flops(shape, phase.row)
    recipe = config.optimizer
    muon = recipe.muon_rate if recipe.matrices == "muon" else recipe.adamw_rate
    rates = []
    for step in sorted({0, min(steps - 1, round(warm)), steps // 2, steps - 1}):
        scale = rate_scale(phase, step)
        rates.append(Rates(step, muon * scale, recipe.adamw_rate * scale))
    return Outline(
        name=phase.name,
        start=config.start_of(phase),
        tokens=phase.tokens,
        steps=steps,
        batch_tokens=phase.batch_tokens,
        row=phase.row,
        rope_base=shape.rope_parameters["hybrid"].rope_theta,
        rates=rates,
        forward=forward,
        token_flops=training_flops(forward, checkpointing=phase.activation_checkpointing),
        optimizer_flops=optimizer_flops(counts.matrices, steps=recipe.newton_schulz_steps)
        if recipe.matrices == "muon"
        else 0.0,
    )
