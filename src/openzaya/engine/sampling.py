"""One token for each row of scores, each row by its own parameters and its own source of chance.

Chance comes from a hash of (seed, number of the token), so a row draws the same tokens whatever else is in the batch,
however often it was preempted. One number in (0, 1) is turned into a token by the inverse of the cumulative
distribution: over the vocabulary in order where nothing is filtered, over tokens from likely to unlikely where top-k,
top-p or min-p cut the unlikely ones.

The order is temperature, top-k, top-p of what top-k left, min-p. All three keep a beginning of the sorted tokens.

B rows, V vocabulary, N sorted candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openzaya.engine.params import SamplingParams

_BLOCK = 512
FIRST_CANDIDATES = 1024
"""Tokens that are sorted first where a filter has no limit of its own; few distributions need more."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities at one place, before temperature and filters."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens, most likely first."""


def is_plain(params: SamplingParams) -> bool:
    """Whether `params` sample the model's own distribution: temperature 1 and no filter."""
    return params.temperature == 1.0 and not is_filtered(params)


def is_filtered(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


# ---- chance ----

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), which turns counters into even 64-bit noise."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def derived_seed(seed: int, *path: int) -> int:
    """A seed for one of many samples under `seed`, such as (prompt, sample); different paths give unrelated seeds."""
    state = np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    for step in path:
        state = mix(mix(state) + _GOLDEN * np.array([step + 1], dtype=np.uint64))
    return int(state[0])


def uniforms(seeds_B: np.ndarray, places_B: np.ndarray) -> np.ndarray:
    """A number in (0, 1) for the token number `places_B` of the sequence with `seeds_B` (unsigned 64-bit)."""
    hashed = mix(mix(seeds_B) + _GOLDEN * (places_B.astype(np.uint64) + np.uint64(1)))
    return ((hashed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


# ---- tokens ----


def sample(
    logits_BV: Tensor, params_B: Sequence[SamplingParams], seeds_B: np.ndarray, places_B: np.ndarray
) -> np.ndarray:
    """A token id for each row of float32 scores, as int64.

    `seeds_B` are unsigned 64-bit integers; `places_B` counts the tokens that each sequence generated before this one.
    """
    chance_B = torch.from_numpy(uniforms(seeds_B, places_B)).to(logits_BV.device)
    if all(map(is_plain, {id(row): row for row in params_B}.values())):
        return by_inverse(logits_BV, chance_B).cpu().numpy()
    tokens_B = np.empty(len(params_B), dtype=np.int64)
    kinds = np.array([0 if row.temperature == 0 else 2 if is_filtered(row) else 1 for row in params_B])
    temperatures_B = torch.tensor([row.temperature or 1.0 for row in params_B], device=logits_BV.device)
    for kind in np.unique(kinds):
        chosen = np.nonzero(kinds == kind)[0].tolist()
        rows = torch.tensor(chosen, device=logits_BV.device)
        scores = logits_BV[rows]
        # The highest score becomes 0 first, so that no temperature, however small, overflows it.
        scores = (scores - scores.amax(dim=-1, keepdim=True)) / temperatures_B[rows, None]
        if kind == 0:
            drawn = scores.argmax(dim=-1)
        elif kind == 1:
            drawn = by_inverse(scores, chance_B[rows])
        else:
            drawn = _filtered([params_B[row] for row in chosen], scores, chance_B[rows])
        tokens_B[chosen] = drawn.cpu().numpy()
    return tokens_B


def by_inverse(logits_BV: Tensor, chance_B: Tensor) -> Tensor:
    """The first token at which the cumulative probability passes `chance`.

    Probabilities are float32 and their sums float64. Sums of blocks come first and only the block that holds the token
    is summed place by place, which matters for a vocabulary of 262,272.
    """
    rows, vocabulary = logits_BV.shape
    weights = torch.exp(logits_BV - logits_BV.amax(dim=-1, keepdim=True))
    blocks = -(-vocabulary // _BLOCK)
    weights = torch.nn.functional.pad(weights, (0, blocks * _BLOCK - vocabulary)).view(rows, blocks, _BLOCK)
    ends = weights.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target_B1 = chance_B[:, None] * ends[:, -1:]
    block_B1 = _first_above(ends, target_B1)
    # Not `torch.where` with a number, which goes to a GPU by a copy that waits.
    before_B1 = ends.gather(1, (block_B1 - 1).clamp_min(0)).masked_fill(block_B1 == 0, 0)
    inside = weights[torch.arange(rows, device=weights.device), block_B1[:, 0]].double().cumsum(dim=-1)
    return (block_B1 * _BLOCK + _first_above(inside, target_B1 - before_B1))[:, 0]


def _first_above(cumulative: Tensor, target_B1: Tensor) -> Tensor:
    """(B, 1): the first place where `cumulative` exceeds the target, else the last place at which it rises.

    A place of no weight never rises, so no token of probability 0 is drawn, even where rounding leaves the target
    above the whole sum.
    """
    found = torch.searchsorted(cumulative, target_B1, right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(found, last)


@dataclass(frozen=True, slots=True)
class Filters:
    """What cuts the unlikely tokens of each row, on the device of the scores."""

    top_k: Tensor
    """(B) integers, the size of the vocabulary where nothing is cut."""
    top_p: Tensor
    min_p: Tensor
    """(B) float64, both."""


def _filtered(params_B: Sequence[SamplingParams], scores_BV: Tensor, chance_B: Tensor) -> Tensor:
    vocabulary, device = scores_BV.shape[1], scores_BV.device
    filters = Filters(
        torch.tensor([row.top_k or vocabulary for row in params_B], device=device).clamp_max(vocabulary),
        torch.tensor([row.top_p for row in params_B], dtype=torch.float64, device=device),
        torch.tensor([row.min_p for row in params_B], dtype=torch.float64, device=device),
    )
    limits = [row.top_k for row in params_B if 0 < row.top_k < vocabulary]
    unlimited = len(limits) < len(params_B)
    candidates = min(max([*limits, FIRST_CANDIDATES * unlimited]), vocabulary)
    tokens_B, certain_B = draw_filtered(scores_BV, chance_B, filters, candidates)
    if not bool(certain_B.all()):
        # A row's tokens do not depend on how many candidates its neighbours need: more only follow its own.
        tokens_B, _ = draw_filtered(scores_BV, chance_B, filters, vocabulary)
    return tokens_B


def draw_filtered(scores_BV: Tensor, chance_B: Tensor, filters: Filters, candidates: int) -> tuple[Tensor, Tensor]:
    """Tokens (B) by the `candidates` highest scores of each row, and whether more candidates could give others.

    No shape depends on the scores, and nothing waits for the device.
    """
    vocabulary = scores_BV.shape[1]
    sorted_BN, ids_BN = _sorted_candidates(scores_BV, candidates)
    weights_BN = torch.exp(sorted_BN.double() - sorted_BN[:, :1].double())
    sums_BN = weights_BN.cumsum(dim=-1)
    place_N = torch.arange(candidates, device=scores_BV.device)
    total_B = torch.exp(scores_BV - scores_BV.amax(dim=-1, keepdim=True)).sum(dim=-1, dtype=torch.float64)
    within_k_B = torch.where(
        filters.top_k <= candidates,
        sums_BN.gather(1, filters.top_k.clamp_max(candidates)[:, None] - 1)[:, 0],
        total_B,
    )
    kept_BN = (place_N < filters.top_k[:, None]) & (weights_BN >= filters.min_p[:, None])
    # At top_p 1 the filter is off; comparing sums there would leave the decision to rounding.
    mass_B1 = (filters.top_p * within_k_B).masked_fill(filters.top_p >= 1, torch.inf)[:, None]
    kept_BN &= sums_BN - weights_BN < mass_B1
    counts_B1 = kept_BN.sum(dim=-1, keepdim=True)
    ends_B1 = sums_BN.gather(1, counts_B1 - 1)
    place_B1 = torch.searchsorted(sums_BN, chance_B[:, None] * ends_B1, right=True).minimum(counts_B1 - 1)
    tokens_B = ids_BN.gather(1, place_B1)[:, 0]
    if candidates == vocabulary:
        return tokens_B, torch.ones_like(tokens_B, dtype=torch.bool)
    # Of several equal last candidates, some may be missing here, and which are is the affair of `topk`.
    strictly_B = (sorted_BN > sorted_BN[:, -1:]).sum(dim=-1)
    whole_B = (scores_BV >= sorted_BN[:, -1:]).sum(dim=-1) == candidates
    ended_B = (counts_B1[:, 0] < candidates) | (filters.top_k <= candidates)
    return tokens_B, ended_B & (whole_B | (counts_B1[:, 0] <= strictly_B))


def _sorted_candidates(scores_BV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest scores, high to low, and their ids; among equals the smaller id comes first.

    Which of several equal last ones there are is left open, where not all of them fit.
    """
    if count == scores_BV.shape[1]:
        return torch.sort(scores_BV, dim=-1, descending=True, stable=True)
    values, ids = torch.topk(scores_BV, count, dim=-1)
    ids, order = torch.sort(ids, dim=-1)
    values, again = torch.sort(values.gather(1, order), dim=-1, descending=True, stable=True)
    return values, ids.gather(1, again)


def _highest(scores_BV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same, with the smaller ids of equal last ones."""
    values, ids = _sorted_candidates(scores_BV, count)
    if count < scores_BV.shape[1] and bool(((scores_BV >= values[:, -1:]).sum(dim=-1) > count).any()):
        values, ids = _sorted_candidates(scores_BV, scores_BV.shape[1])
    return values[:, :count], ids[:, :count]


# ---- log probabilities ----


def logprobs(logits_BV: Tensor, tokens_B: np.ndarray, counts_B: Sequence[int]) -> list[TokenLogprobs]:
    """Log probabilities of the drawn tokens and of the `counts_B` likeliest ones, by the unfiltered scores."""
    normalised = torch.log_softmax(logits_BV.float(), dim=-1)
    drawn = normalised.gather(1, torch.from_numpy(tokens_B).to(normalised.device)[:, None])[:, 0].tolist()
    most = min(max(counts_B), normalised.shape[1])
    values, ids = _highest(normalised, most) if most else (normalised[:, :0],) * 2
    return [
        TokenLogprobs(int(token), logprob, tuple(zip(top_ids[:count], top_values[:count])))
        for token, logprob, top_ids, top_values, count in zip(tokens_B, drawn, ids.tolist(), values.tolist(), counts_B)
    ]
