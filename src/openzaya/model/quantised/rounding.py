"""From floats to small integers and scales: weights once, activations a token at a time. Pure functions.

N rows, K columns, G groups a row, T tokens. All of it is symmetric: a value is its integer times its scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openzaya.model.quantised.scheme import Scheme

_W4_LOW, _W4_HIGH = -8, 7
_LIMIT = 127
_W4_DIVISORS = (6.0, 6.5, 7.0, 7.5, 8.0, 8.5, 9.0, 10.0)
"""Tried for every group: the value of largest magnitude divided by each. Above 8 it is clipped for the others' sake."""
_SMALLEST_HALF = 2.0**-24
_LARGEST_HALF = 65504.0
_CHUNK_ELEMENTS = 1 << 18
"""Rounded at a time: about what stays in a core's cache with the copies that the search makes."""


def round_weights(weight_NK: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Integers, int8 (N, K), and scales: float16 (N, G) in w4, float32 (N) in w8.

    Columns must be a multiple of the group. Raises ValueError for a weight that is not finite or, in w4, beyond what a
    float16 scale reaches (half a million).
    """
    rows = max(1, _CHUNK_ELEMENTS // max(1, weight_NK.shape[1]))
    rounded = [_round_rows(chunk.float(), scheme) for chunk in weight_NK.split(rows)]
    codes, scales = zip(*rounded)
    return torch.cat(codes), torch.cat(scales)


def restore_weights(codes_NK: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
    """The weights (N, K), float32, that integers and scales of `round_weights` stand for."""
    if scheme.group is None:
        return codes_NK.float() * scales[:, None]
    grouped_NGK = codes_NK.float().unflatten(1, (-1, scheme.group))
    return (grouped_NGK * scales.float()[..., None]).flatten(1)


def round_activations(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Integers, int8 (T, K), and one float32 scale a token (T): round(x / s) with s = max|x| / 127.

    Halves round to even. A token of zeros (or of values so small that s would be 0) has the scale 1. Each token is
    rounded by itself, so that no result depends on the others of its batch.
    """
    x_TK = x_TK.float()
    scale_T = x_TK.abs().amax(dim=1) / _LIMIT
    scale_T = torch.where(scale_T == 0, 1.0, scale_T)
    codes_TK = (x_TK / scale_T[:, None]).round().clamp(-_LIMIT, _LIMIT)
    return codes_TK.to(torch.int8), scale_T


def _round_rows(weight_NK: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    if not weight_NK.isfinite().all():
        raise ValueError("a weight is not a finite number; the checkpoint is damaged, download it again")
    return _round_w8(weight_NK) if scheme.group is None else _round_w4(weight_NK, scheme.group)


def _round_w8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    codes_NK, scale_N = round_activations(weight_NK)
    # A row of zeros needs no scale, and 0 keeps it apart from one of ones.
    return codes_NK, scale_N.masked_fill(~codes_NK.bool().any(dim=1), 0.0)


def _round_w4(weight_NK: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The scale of each group with the least squared error among a few candidates, each refitted to its own integers.

    There is one more negative integer than positive ones, so the group's largest magnitude is given the negative side,
    and the scale its sign. For given integers q the best scale is <w, q> / <q, q>, and leaves the error
    |w|^2 - <w, q>^2 / <q, q>: the candidate of the largest second term wins.
    """
    grouped_NGK = weight_NK.unflatten(1, (-1, group))
    extreme_NG = grouped_NGK.gather(2, grouped_NGK.abs().argmax(dim=2, keepdim=True)).squeeze(2)
    if (largest := float(extreme_NG.abs().max())) > _LARGEST_HALF * _W4_DIVISORS[0]:
        raise ValueError(f"a weight is {largest:.6g}, too large for the float16 scales of w4; use the scheme w8")
    present_NG = extreme_NG.abs() >= _SMALLEST_HALF
    best_NG, scale_NG = torch.full_like(extreme_NG, -1.0), torch.zeros_like(extreme_NG)
    for divisor in _W4_DIVISORS:
        inverse_NG = torch.where(present_NG, -divisor / extreme_NG, 0.0)
        codes_NGK = _nearest_w4(grouped_NGK, inverse_NG)
        along_NG, length_NG = (grouped_NGK * codes_NGK).sum(dim=2), codes_NGK.square().sum(dim=2).clamp_min(1.0)
        explained_NG = along_NG.square() / length_NG
        better_NG = explained_NG > best_NG
        best_NG = torch.where(better_NG, explained_NG, best_NG)
        scale_NG = torch.where(better_NG, along_NG / length_NG, scale_NG)
    kept_NG = scale_NG.clamp(-_LARGEST_HALF, _LARGEST_HALF).half()
    stored_NG = kept_NG.float()
    codes_NGK = _nearest_w4(grouped_NGK, torch.where(stored_NG == 0, 0.0, 1.0 / stored_NG))
    return codes_NGK.to(torch.int8).flatten(1), kept_NG


def _nearest_w4(grouped_NGK: Tensor, inverse_NG: Tensor) -> Tensor:
    return (grouped_NGK * inverse_NG[..., None]).round_().clamp_(_W4_LOW, _W4_HIGH)
