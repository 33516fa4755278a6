"""Attention of packed rows for training on a CPU: pieces of a row, each over the keys that it sees, and no further.

A row of many documents is mostly pairs that do not see each other, and what one piece needs stays in a processor's
cache. Probabilities are computed again in the backward, so that none are kept.

B batch, S sequence, H query heads, K key-value heads, C head channels, T keys; in a piece Q queries of each of the
H / K heads of a group, one after the other, and N keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PIECE = 128
"""Most queries of a piece: fewer make more calls, more see more keys in vain."""


@dataclass(frozen=True, slots=True)
class _Piece:
    row: int
    queries: slice
    keys: slice


class PiecewiseAttention(torch.autograd.Function):
    """Grouped-query attention with scale C ** -0.5, where `mask` says what each query sees (at least one key)."""

    @staticmethod
    def forward(ctx: Any, q_BHSC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, mask_B1ST: Tensor) -> Tensor:
        pieces, hidden_B1ST = _pieces(mask_B1ST, q_BHSC.shape[0]), ~mask_B1ST
        mixed_BHSC = torch.empty(q_BHSC.shape, dtype=q_BHSC.dtype)
        for piece in pieces:
            k_KNC, v_KNC = k_BKTC[piece.row, :, piece.keys], v_BKTC[piece.row, :, piece.keys]
            p_KQN = _probabilities(_scaled(q_BHSC, piece, len(k_KNC)), k_KNC, hidden_B1ST, piece)
            _put(mixed_BHSC, piece, torch.bmm(p_KQN, v_KNC))
        ctx.save_for_backward(q_BHSC, k_BKTC, v_BKTC, hidden_B1ST)
        ctx.pieces = pieces
        return mixed_BHSC

    @staticmethod
    def backward(ctx: Any, gradient_BHSC: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        q_BHSC, k_BKTC, v_BKTC, hidden_B1ST = ctx.saved_tensors
        key_heads, scale = k_BKTC.shape[1], q_BHSC.shape[-1] ** -0.5
        of_q_BHSC = torch.empty(q_BHSC.shape, dtype=q_BHSC.dtype)
        # Pieces of a document add to the same keys, so sums are kept in float32 at least.
        summed = torch.promote_types(k_BKTC.dtype, torch.float32)
        of_k_BKTC, of_v_BKTC = torch.zeros(k_BKTC.shape, dtype=summed), torch.zeros(v_BKTC.shape, dtype=summed)
        for piece in ctx.pieces:
            k_KNC, v_KNC = k_BKTC[piece.row, :, piece.keys], v_BKTC[piece.row, :, piece.keys]
            q_KQC = _scaled(q_BHSC, piece, key_heads)
            p_KQN = _probabilities(q_KQC, k_KNC, hidden_B1ST, piece)
            g_KQC = gradient_BHSC[piece.row, :, piece.queries].reshape(key_heads, -1, q_BHSC.shape[-1])
            of_v_BKTC[piece.row, :, piece.keys] += torch.bmm(p_KQN.transpose(1, 2), g_KQC)
            of_p_KQN = torch.bmm(g_KQC, v_KNC.transpose(1, 2))
            of_scores_KQN = torch._softmax_backward_data(of_p_KQN, p_KQN, -1, p_KQN.dtype)
            _put(of_q_BHSC, piece, torch.bmm(of_scores_KQN, k_KNC).mul_(scale))
            of_k_BKTC[piece.row, :, piece.keys] += torch.bmm(of_scores_KQN.transpose(1, 2), q_KQC)
        return of_q_BHSC, of_k_BKTC.to(k_BKTC.dtype), of_v_BKTC.to(v_BKTC.dtype), None


def _pieces(mask_B1ST: Tensor, rows: int) -> list[_Piece]:
    """The pieces of every row; `mask` may be one for all rows."""
    found, length = [], mask_B1ST.shape[2]
    step = math.ceil(length / math.ceil(length / PIECE))
    for first in range(0, length, step):
        queries = slice(first, min(first + step, length))
        seen_BT = mask_B1ST[:, 0, queries].any(dim=1).to(torch.uint8)
        begins, ends = seen_BT.argmax(dim=1).tolist(), seen_BT.flip(1).argmax(dim=1).tolist()
        for row in range(rows):
            of_mask = row % len(begins)
            found.append(_Piece(row, queries, slice(begins[of_mask], seen_BT.shape[1] - ends[of_mask])))
    return found


def _scaled(q_BHSC: Tensor, piece: _Piece, key_heads: int) -> Tensor:
    q_HQC = q_BHSC[piece.row, :, piece.queries]
    return (q_HQC * q_HQC.shape[-1] ** -0.5).reshape(key_heads, -1, q_HQC.shape[-1])


def _probabilities(q_KQC: Tensor, k_KNC: Tensor, hidden_B1ST: Tensor, piece: _Piece) -> Tensor:
    hidden_QN = hidden_B1ST[piece.row % len(hidden_B1ST), 0, piece.queries, piece.keys]
    scores_KQN = torch.bmm(q_KQC, k_KNC.transpose(1, 2))
    scores_KQN.unflatten(1, (-1, len(hidden_QN))).masked_fill_(hidden_QN, float("-inf"))
    return scores_KQN.softmax(dim=-1)


def _put(into_BHSC: Tensor, piece: _Piece, part_KQC: Tensor) -> None:
    target_HQC = into_BHSC[piece.row, :, piece.queries]
    target_HQC.copy_(part_KQC.view(target_HQC.shape))
