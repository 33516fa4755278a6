"""Rollouts of the weights of the moment, for the aggregation examples of a phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openzaya.data.mixture import Mixture
from openzaya.data.rollouts import PoolEntry, Speaker, roll_out, thinned
from openzaya.engine.engine import Engine
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.train.config import AggregationRecipe

POOL_INDICES = 1 << 40
"""Problem numbers from here on are for rollouts, so that no pool shares a problem with a plain step."""


def refreshed_pool(
    model: ZayaForCausalLM,
    recipe: AggregationRecipe,
    mixture: Mixture,
    speaker: Speaker,
    refresh: int,
    seed: int,
    report: Callable[[str], None],
) -> list[PoolEntry]:
    """The pool of refresh number `refresh` (from 1), rolled out by `model`: a function of weights, recipe and seed."""
    first = POOL_INDICES + refresh * recipe.problems
    report(f"rollouts of {recipe.problems} problems, refresh {refresh}")
    with Engine(model, tokenizer=speaker.tokenizer, max_batch=512, prefill_chunk=4096) as engine:

        def sample(
            prompts: Sequence[Sequence[int]], *, rollouts: int, max_tokens: int, seed: int
        ) -> list[list[tuple[int, ...]]]:
            replies = engine.generate(prompts, max_tokens=max_tokens, n=rollouts, seed=seed)
            return [[reply.token_ids for reply in group] for group in replies]

        pool = roll_out(
            sample,
            mixture,
            speaker,
            range(first, first + recipe.problems),
            rollouts=recipe.rollouts,
            tails=recipe.tails,
            tau=recipe.tau,
            beta=recipe.beta,
            second_round=round(recipe.second_round * recipe.problems),
            seed=seed,
            report=report,
        )
    kept = thinned(pool, solved=recipe.solved, unsolved=recipe.unsolved, seed=seed + refresh)
    report(f"{len(kept)} of {len(pool)} sets of tails are kept")
    return kept
