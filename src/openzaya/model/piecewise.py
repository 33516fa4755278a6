"""Attention for training on a CPU: pieces of the rows, each over the keys that it sees, and no further.

A packed row is mostly pairs that do not see each other, and what one piece needs stays in a processor's cache. Rows
that see about the same keys are one piece together, so that small ones are not all calls.

B batch, S sequence, H query heads, K key-value heads, C head channels, T keys; in a piece R rows, Q queries of each of
the H / K heads of a group, one after the other, and N keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PIECE = 96
"""Most queries of a row in a piece: fewer make more calls, more see more keys in vain."""
SPARE = 96
"""So many keys, on average, may a row read in vain to be in one piece with the others."""
KEPT = 2**25
"""Most probabilities of a layer that wait for the backward; of larger ones none do, and it computes them again."""


@dataclass(frozen=True, slots=True)
class _Piece:
    rows: slice
    queries: slice
    keys: slice

    @property
    def pairs(self) -> int:
        """Of queries and keys of one head."""
        lengths = [part.stop - part.start for part in (self.rows, self.queries, self.keys)]
        return math.prod(lengths)


class PiecewiseAttention(torch.autograd.Function):
    """Grouped-query attention with scale C ** -0.5, where `mask` says what each query sees (at least one key)."""

    @staticmethod
    def forward(ctx: Any, q_BHSC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, mask_B1ST: Tensor) -> Tensor:
        pieces, hidden_B1ST = _pieces(mask_B1ST, q_BHSC.shape[0]), ~mask_B1ST
        keeps = sum(piece.pairs for piece in pieces) * q_BHSC.shape[1] <= KEPT
        mixed_BHSC, kept = torch.empty(q_BHSC.shape, dtype=q_BHSC.dtype), []
        for piece in pieces:
            p_XQN = _probabilities(q_BHSC, k_BKTC, hidden_B1ST, piece)
            _put(mixed_BHSC, piece, torch.bmm(p_XQN, _keys(v_BKTC, piece)))
            kept.append(p_XQN if keeps else None)
        ctx.save_for_backward(q_BHSC, k_BKTC, v_BKTC, hidden_B1ST)
        ctx.pieces, ctx.kept = pieces, kept
        return mixed_BHSC

    @staticmethod
    def backward(ctx: Any, gradient_BHSC: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        q_BHSC, k_BKTC, v_BKTC, hidden_B1ST = ctx.saved_tensors
        key_heads, scale = k_BKTC.shape[1], q_BHSC.shape[-1] ** -0.5
        of_q_BHSC = torch.empty(q_BHSC.shape, dtype=q_BHSC.dtype)
        # Pieces of a document add to the same keys, so sums are kept in float32 at least.
        summed = torch.promote_types(k_BKTC.dtype, torch.float32)
        of_k_BKTC, of_v_BKTC = torch.zeros(k_BKTC.shape, dtype=summed), torch.zeros(v_BKTC.shape, dtype=summed)
        for piece, p_XQN in zip(ctx.pieces, ctx.kept, strict=True):
            if p_XQN is None:
                p_XQN = _probabilities(q_BHSC, k_BKTC, hidden_B1ST, piece)
            k_XNC, v_XNC = _keys(k_BKTC, piece), _keys(v_BKTC, piece)
            q_XQC, g_XQC = _queries(q_BHSC, piece, key_heads), _queries(gradient_BHSC, piece, key_heads)
            _add(of_v_BKTC, piece, torch.bmm(p_XQN.transpose(1, 2), g_XQC))
            of_p_XQN = torch.bmm(g_XQC, v_XNC.transpose(1, 2))
            of_scores_XQN = torch._softmax_backward_data(of_p_XQN, p_XQN, -1, p_XQN.dtype)
            _put(of_q_BHSC, piece, torch.bmm(of_scores_XQN, k_XNC).mul_(scale))
            _add(of_k_BKTC, piece, torch.bmm(of_scores_XQN.transpose(1, 2), q_XQC))
        return of_q_BHSC, of_k_BKTC.mul_(scale).to(k_BKTC.dtype), of_v_BKTC.to(v_BKTC.dtype), None


def _pieces(mask_B1ST: Tensor, rows: int) -> list[_Piece]:
    """The pieces of all rows; `mask` may be one for all of them."""
    found, length = [], mask_B1ST.shape[2]
    step = math.ceil(length / math.ceil(length / PIECE))
    for first in range(0, length, step):
        queries = slice(first, min(first + step, length))
        seen_BT = mask_B1ST[:, 0, queries].any(dim=1).to(torch.uint8)
        begins = seen_BT.argmax(dim=1).tolist()
        ends = (seen_BT.shape[1] - seen_BT.flip(1).argmax(dim=1)).tolist()
        keys = slice(min(begins), max(ends))
        spare = keys.stop - keys.start - (sum(ends) - sum(begins)) / len(begins)
        if spare <= SPARE:
            found.append(_Piece(slice(0, rows), queries, keys))
        else:
            ranges = enumerate(zip(begins, ends, strict=True))
            found += [_Piece(slice(row, row + 1), queries, slice(begin, end)) for row, (begin, end) in ranges]
    return found


# X = R K is a batch of products.


def _queries(x_BHSC: Tensor, piece: _Piece, key_heads: int) -> Tensor:
    part_RHQC = x_BHSC[piece.rows, :, piece.queries]
    return part_RHQC.reshape(part_RHQC.shape[0] * key_heads, -1, part_RHQC.shape[-1])


def _keys(x_BKTC: Tensor, piece: _Piece) -> Tensor:
    return x_BKTC[piece.rows, :, piece.keys].flatten(0, 1)


def _probabilities(q_BHSC: Tensor, k_BKTC: Tensor, hidden_B1ST: Tensor, piece: _Piece) -> Tensor:
    rows = piece.rows if len(hidden_B1ST) > 1 else slice(0, 1)
    hidden_R1QN = hidden_B1ST[rows, :, piece.queries, piece.keys]
    q_XQC, k_XNC = _queries(q_BHSC, piece, k_BKTC.shape[1]), _keys(k_BKTC, piece)
    scores_XQN = torch.bmm(q_XQC, k_XNC.transpose(1, 2)).mul_(q_BHSC.shape[-1] ** -0.5)
    scores_XQN.view(-1, q_BHSC.shape[1], *hidden_R1QN.shape[2:]).masked_fill_(hidden_R1QN, float("-inf"))
    return scores_XQN.softmax(dim=-1)


def _put(into_BHSC: Tensor, piece: _Piece, part_XQC: Tensor) -> None:
    target_RHQC = into_BHSC[piece.rows, :, piece.queries]
    target_RHQC.copy_(part_XQC.view(target_RHQC.shape))


def _add(into_BKTC: Tensor, piece: _Piece, part_XNC: Tensor) -> None:
    target_RKNC = into_BKTC[piece.rows, :, piece.keys]
    target_RKNC += part_XNC.view(target_RKNC.shape)
