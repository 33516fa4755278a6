"""Cross-entropy of the next token straight from hidden states: logits exist for some tokens at a time only.

All logits of a step of ZAYA1-8B, 262,272 a token, would be the largest tensor of the step by far, once as scores and
once as their gradient. Here a chunk of tokens gets its scores, its loss and its gradients, and they are gone before the
next one.

T tokens, D hidden, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 28}
"""Scores that exist at a time (float32) by kind of device; on a CPU, what its caches hold, up to three times faster."""

LEAST_TOKENS = 256
"""Tokens of a chunk at least, whatever the vocabulary: every chunk passes over the head and its gradient."""


def chunk_tokens(vocabulary: int, device: str) -> int:
    """Tokens whose scores exist at a time on that kind of device."""
    return max(LEAST_TOKENS, MOST_LOGITS.get(device, MOST_LOGITS["cuda"]) // vocabulary)


def linear_cross_entropy(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    *,
    scale: float = 1.0,
    lift: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """`scale` times the summed negative log-likelihood of `targets` under `hidden @ weight.T`: a float32 scalar.

    With `lift` the product itself is in float32 too (numerics "report"); the softmax always is. Equal to
    `F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum") * scale`, gradients included.
    `chunk` is how many tokens have their scores at a time, `chunk_tokens` unless told.
    """
    chunk = chunk or chunk_tokens(weight_VD.shape[0], hidden_TD.device.type)
    if torch.is_grad_enabled() and (hidden_TD.requires_grad or weight_VD.requires_grad):
        loss: Tensor = _LinearCrossEntropy.apply(hidden_TD, weight_VD, targets_T, scale, lift, chunk)
        return loss
    total = hidden_TD.new_zeros((), dtype=torch.float32)
    for hidden_CD, targets_C in zip(hidden_TD.split(chunk), targets_T.split(chunk)):
        total += F.cross_entropy(_scores(hidden_CD, weight_VD, lift), targets_C, reduction="sum")
    return total * scale


def _scores(hidden_CD: Tensor, weight_VD: Tensor, lift: bool) -> Tensor:
    if lift:
        hidden_CD, weight_VD = hidden_CD.float(), weight_VD.float()
    return F.linear(hidden_CD, weight_VD).float()


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward, while a chunk's scores are there; the backward hands them on."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, scale: float, lift: bool, chunk: int
    ) -> Tensor:
        head_VD = weight_VD.float() if lift else weight_VD
        several = hidden_TD.shape[0] > chunk
        gradient_TD = torch.empty_like(hidden_TD)
        gradient_VD: Tensor | None = None
        head_learns = ctx.needs_input_grad[1]
        total = hidden_TD.new_zeros((), dtype=torch.float32)
        for start in range(0, hidden_TD.shape[0], chunk):
            part = slice(start, start + chunk)
            hidden_CD = hidden_TD[part].to(head_VD.dtype)
            likelihood_CV = F.linear(hidden_CD, head_VD).float().log_softmax(dim=-1)
            places_C1 = targets_T[part, None]
            total -= likelihood_CV.gather(1, places_C1).sum()
            sharp_CV = torch.zeros_like(likelihood_CV).scatter_(1, places_C1, -scale)
            score_CV = torch.ops.aten._log_softmax_backward_data(sharp_CV, likelihood_CV, -1, torch.float32)
            score_CV = score_CV.to(head_VD.dtype)
            gradient_TD[part] = (score_CV @ head_VD).to(hidden_TD.dtype)
            if not head_learns:
                continue
            part_VD = (hidden_CD.mT @ score_CV).mT
            # Sums over chunks are float32; one chunk's is the product's own, as torch would have it.
            gradient_VD = (
                (part_VD.float() if several else part_VD) if gradient_VD is None else gradient_VD.add_(part_VD)
            )
        if head_learns and gradient_VD is None:
            gradient_VD = torch.zeros_like(weight_VD)
        ctx.save_for_backward(gradient_TD, None if gradient_VD is None else gradient_VD.to(weight_VD.dtype))
        return total * scale

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = outputs
        gradient_TD, gradient_VD = ctx.saved_tensors
        if upstream != 1:
            gradient_TD = gradient_TD * upstream
            gradient_VD = None if gradient_VD is None else gradient_VD * upstream
        return gradient_TD, gradient_VD, None, None, None, None
