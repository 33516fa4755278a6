"""Learning rates over a phase: warm-up, then a plateau with a decay at its end, a cosine, or a straight line.

ZAYA1's first phase fell by a cosine from 6e-4 to 2e-4; warm-ups and the later phases' schedules are not published.
"""

from __future__ import annotations

import math

from openzaya.train.config import PhaseRecipe


def total_steps(phase: PhaseRecipe) -> int:
    """Steps of a phase, at least one."""
    return max(1, round(phase.tokens / phase.batch_tokens))


def warmup_steps(phase: PhaseRecipe) -> float:
    """Steps over which rates rise, as a recipe says it: in tokens, or as a share of the phase."""
    if phase.warmup_tokens is not None:
        return phase.warmup_tokens / phase.batch_tokens
    return phase.warmup * total_steps(phase)


def rate_scale(phase: PhaseRecipe, step: int) -> float:
    """The rate of `step` (from 0) as a share of the optimizer's plateau rates."""
    total, warmup = total_steps(phase), warmup_steps(phase)
    rising = (step + 1) / warmup if warmup else 1.0
    if phase.schedule == "wsd":
        decay = phase.decay * total
        falling = phase.floor + (1 - phase.floor) * (total - step) / decay if decay else 1.0
    else:
        # The share of what follows the warm-up that is behind; a warm-up as long as the phase leaves nothing.
        done = max(0.0, step - warmup) / max(1.0, total - warmup)
        left = (1 + math.cos(math.pi * done)) / 2 if phase.schedule == "cosine" else 1 - done
        falling = phase.floor + (1 - phase.floor) * left
    return phase.peak * min(1.0, rising, falling)
