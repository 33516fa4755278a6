"""Tokens for rows of scores, drawn in the core where they are sure to be those of `engine.sampling`.

The core adds up the same numbers with another exponential. Where that cannot move a boundary past the row's chance, its
token is the one that `sample` gives; the few other rows are left to `sample` itself, without the rows beside them.

A step of the core notes the highest score of every block while it is in the cache (`tops`). Drawing then passes over
most of a row where filters cut, or where the likeliest token is wanted; without tops it finds them first.

B rows, V vocabulary, N likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from openzaya.engine import sampling
from openzaya.engine.core.products import Core, address
from openzaya.engine.params import SamplingParams
from openzaya.engine.sampling import TokenLogprobs

_DRAW = np.dtype(
    [("chance", "f8"), ("top_p", "f8"), ("min_p", "f8"), ("top_k", "i8"), ("temperature", "f4")], align=True
)
_COLDEST = 1e-30
"""Below this, scores divided by a temperature leave the range of float32."""


def sample(
    core: Core, logits_BV: Tensor, params_B: Sequence[SamplingParams], seeds_B: np.ndarray, places_B: np.ndarray,
    tops: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """The tokens of `engine.sampling.sample` for the same arguments, int64. Raises ValueError for other scores than
    float32 on the CPU."""
    tokens_B = certain(core, logits_BV, params_B, sampling.uniforms(seeds_B, places_B), tops)
    unsure = np.nonzero(tokens_B < 0)[0]
    if len(unsure):
        left = [params_B[row] for row in unsure.tolist()]
        tokens_B[unsure] = sampling.sample(logits_BV[torch.from_numpy(unsure)], left, seeds_B[unsure], places_B[unsure])
    return tokens_B


def certain(
    core: Core, logits_BV: Tensor, params_B: Sequence[SamplingParams], chance_B: np.ndarray,
    tops: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Tokens by chance in (0, 1), int64; -1 where the core is not certain. Raises ValueError as `sample` does."""
    scores_BV = _scores(logits_BV)
    rows, vocabulary = scores_BV.shape
    if not len(params_B) == len(chance_B) == rows:
        raise ValueError(f"{rows} rows of scores with {len(params_B)} parameters and {len(chance_B)} chances")
    draws_B = np.zeros(rows, dtype=_DRAW)
    draws_B["chance"] = chance_B
    for draw, params in zip(draws_B, params_B):
        cold = 0 < params.temperature < _COLDEST
        draw["top_p"], draw["min_p"], draw["top_k"] = params.top_p, params.min_p, min(params.top_k, vocabulary)
        draw["temperature"] = -1 if cold else params.temperature
    tokens_B = np.empty(rows, dtype=np.int64)
    found = None if tops is None else address(tops)
    core.call("oz_draw_tokens", address(scores_BV), found, rows, vocabulary, address(draws_B), address(tokens_B))
    return tokens_B


def logprobs(
    core: Core, logits_BV: Tensor, tokens_B: np.ndarray, counts_B: Sequence[int], tops: np.ndarray | None = None
) -> list[TokenLogprobs]:
    """As `engine.sampling.logprobs`. Raises ValueError as `sample` does."""
    scores_BV = _scores(logits_BV)
    rows, vocabulary = scores_BV.shape
    most = min(max(counts_B), vocabulary)
    log_sums_B = np.empty(rows, dtype=np.float64)
    values_BN, ids_BN = np.empty((rows, most), dtype=np.float32), np.empty((rows, most), dtype=np.int64)
    found = None if tops is None else address(tops)
    core.call(
        "oz_likeliest", address(scores_BV), found, rows, vocabulary, most, address(log_sums_B), address(values_BN),
        address(ids_BN),
    )  # fmt: skip
    if np.isnan(log_sums_B).any():
        return sampling.logprobs(logits_BV, tokens_B, counts_B)
    drawn_B = scores_BV[np.arange(rows), tokens_B] - log_sums_B
    values_BN = values_BN - log_sums_B[:, None]
    return [
        TokenLogprobs(int(token), logprob, tuple(zip(ids[:count], values[:count])))
        for token, logprob, ids, values, count in zip(
            tokens_B, drawn_B.tolist(), ids_BN.tolist(), values_BN.tolist(), counts_B
        )
    ]


def _scores(logits_BV: Tensor) -> np.ndarray:
    if logits_BV.dtype != torch.float32 or logits_BV.device.type != "cpu" or logits_BV.ndim != 2:
        raise ValueError(f"scores are {logits_BV.dtype} on {logits_BV.device}; the core draws from float32 on the CPU")
    return logits_BV.detach().contiguous().numpy()
