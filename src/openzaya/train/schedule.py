"""Learning rates over a phase: warm-up, plateau, linear decay."""

from __future__ import annotations

from openzaya.train.config import PhaseRecipe


def total_steps(phase: PhaseRecipe) -> int:
    """Steps of a phase, at least one."""
    return max(1, round(phase.tokens / phase.batch_tokens))


def rate_scale(phase: PhaseRecipe, step: int) -> float:
    """The rate of `step` (from 0) as a share of the optimizer's plateau rates."""
    total = total_steps(phase)
    warmup, decay = phase.warmup * total, phase.decay * total
    rising = (step + 1) / warmup if warmup else 1.0
    falling = phase.floor + (1 - phase.floor) * (total - step) / decay if decay else 1.0
    return phase.peak * min(1.0, rising, falling)
