"""The product of activations with a quantised matrix, bit for bit as every implementation of it must give it.

T tokens, N rows, K columns, G groups. Activations are rounded a token at a time. Within a group the dot product is of
integers and exact; then all is float32, and every product and every sum is rounded by itself (no fused multiply-add):

    y[t, n] = s[t] * (((scale[n, 0] * dot[t, n, 0]) + scale[n, 1] * dot[t, n, 1]) + ...)

with groups in ascending order, and one group in w8. No sum crosses tokens or depends on how work is divided, so a
result is the same in any batch, on any number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openzaya.model.quantised.packing import QuantisedMatrix, unpack
from openzaya.model.quantised.rounding import round_activations


def multiply(x_TK: Tensor, matrix: QuantisedMatrix) -> Tensor:
    """`x` (T, K) times the transpose of `matrix` (N, K): float32 (T, N). For checking, not for speed."""
    tokens_TK, token_scale_T = round_activations(x_TK)
    codes_NK, scales = unpack(matrix)
    scale_NG = scales.float().reshape(len(scales), -1)
    groups = scale_NG.shape[1]
    # Integers this small are exact in float64, whose products have the fast routines.
    tokens_GTK = tokens_TK.double().unflatten(1, (groups, -1)).transpose(0, 1)
    codes_GKN = codes_NK.double().unflatten(1, (groups, -1)).permute(1, 2, 0)
    dots_GTN = torch.bmm(tokens_GTK, codes_GKN).float()
    total_TN = scale_NG[:, 0] * dots_GTN[0]
    for group in range(1, groups):
        total_TN = total_TN + scale_NG[:, group] * dots_GTN[group]
    return token_scale_T[:, None] * total_TN
