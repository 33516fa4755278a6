"""Products of few tokens with the plain weights of their experts as a Triton kernel, for CUDA and ROCm.

What torch has for this asks the device how many tokens each expert has, on most GPUs and in most dtypes, so it can be
no part of a graph. Here the tile of each expert is found on the device, as in `quantised.packed_kernel`.

T tokens, N rows of a tile, C columns of a tile, E experts.
"""

# Triton's language has no types that a checker knows.
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from openzaya.model.quantised.packed_kernel import _tokens_of

_TILE_TOKENS = 16
"""No matrix unit takes less."""
_TILE_ROWS, _TILE_COLUMNS = 32, 128


def kernel_grouped_product(x_TD: Tensor, weight_END: Tensor, ends_E: Tensor) -> Tensor:
    """`x` sorted by expert times the transposed matrix of each, (T, N), without waiting for the device.

    The tokens of expert e begin at `ends_E[e - 1]` (int32; the first at 0) and end before `ends_E[e]`. Sums are
    float32.
    """
    tokens, (experts, rows, columns) = len(x_TD), weight_END.shape
    output_TN = x_TD.new_empty(tokens, rows)
    few = 1 if tokens == 1 else _TILE_TOKENS
    # As many tiles as there could be; what is left over ends at once.
    tiles = (tokens + min(experts, tokens) * (few - 1)) // few
    launch: Any = _kernel[(tiles, triton.cdiv(rows, _TILE_ROWS))]
    with torch.cuda.device_of(x_TD):
        launch(
            x_TD.contiguous(), weight_END.contiguous(), ends_E, output_TN, rows, columns,
            EXPERTS=experts, EXPERTS_FILLED_UP=triton.next_power_of_2(experts), TILE_TOKENS=few,
            TILE_ROWS=_TILE_ROWS, TILE_COLUMNS=_TILE_COLUMNS,
        )  # fmt: skip
    return output_TN


@triton.jit
def _kernel(
    x, weight, ends, output, rows, columns,
    EXPERTS: tl.constexpr, EXPERTS_FILLED_UP: tl.constexpr, TILE_TOKENS: tl.constexpr, TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    expert, first, last = _tokens_of(tl.program_id(0), ends, EXPERTS, EXPERTS_FILLED_UP, TILE_TOKENS)
    if first < last:
        token_T = first + tl.arange(0, TILE_TOKENS)
        row_N = tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)
        inside_T, inside_N = token_T < last, row_N < rows
        # int64, because the experts of a layer together may have more numbers than an int32 counts.
        stored_N = (expert.to(tl.int64) * rows + row_N) * columns
        total_TN = tl.zeros((TILE_TOKENS, TILE_ROWS), tl.float32)
        for start in range(0, columns, TILE_COLUMNS):
            column_C = start + tl.arange(0, TILE_COLUMNS)
            inside_C = column_C < columns
            weight_NC = tl.load(
                weight + stored_N[:, None] + column_C[None, :], inside_N[:, None] & inside_C[None, :], 0
            )
            x_TC = tl.load(
                x + token_T.to(tl.int64)[:, None] * columns + column_C[None, :],
                inside_T[:, None] & inside_C[None, :],
                0,
            )
            if TILE_TOKENS == 1:
                total_TN += tl.sum(x_TC.to(tl.float32) * weight_NC.to(tl.float32), 1)[None, :]
            else:
                total_TN = tl.dot(x_TC, tl.trans(weight_NC), total_TN, input_precision="ieee")
        place_TN = token_T.to(tl.int64)[:, None] * rows + row_N[None, :]
        tl.store(output + place_TN, total_TN.to(output.dtype.element_ty), inside_T[:, None] & inside_N[None, :])
