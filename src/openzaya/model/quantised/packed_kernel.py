"""`packed_product` as a Triton kernel, for CUDA and ROCm, on the container's own layout.

A program computes a tile: some tokens of one expert times some blocks of rows, over all columns. It reads the codes as
32-bit words, each of them four columns of one row (two rows in w4, in low and high nibbles). So a tile of words is four
matrices of every fourth column, and four products with every fourth activation take its nibbles out in place; nothing
is moved between lanes.

T tokens, N rows of a tile, S steps of four columns, E experts.
"""

# Triton's language has no types that a checker knows.
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from openzaya.model.quantised.packing import QuantisedMatrix
from openzaya.model.quantised.scheme import LANES, STEP_COLUMNS

_TILE_STEPS = 32
_FEW_TOKENS, _MANY_TOKENS = 16, 64
"""Tokens of a tile; no matrix unit takes less than the first."""
_MANY_BLOCKS = 4
"""Blocks of a tile with many tokens; with few, one block a tile keeps more processors reading."""


def kernel_product(x_TK: Tensor, matrix: QuantisedMatrix, ends_E: Tensor | None = None) -> Tensor:
    """What `packed_product` says, computed on the device of `x` without waiting for it."""
    tokens, experts = len(x_TK), 1 if ends_E is None else len(ends_E)
    blocks, steps = matrix.codes.shape[-3:-1]
    output_TN = x_TK.new_empty(tokens, matrix.rows)
    if not tokens:
        return output_TN
    tiling = choose_tiling(tokens, experts, x_TK.dtype)
    # Where the tokens of each expert end is known on the device alone: as many tiles as there could be.
    tiles = (tokens + min(experts, tokens) * (tiling["TILE_TOKENS"] - 1)) // tiling["TILE_TOKENS"]
    launch: Any = _kernel[(tiles, triton.cdiv(blocks, tiling["TILE_BLOCKS"]))]
    with torch.cuda.device_of(x_TK):
        launch(
            x_TK.contiguous(),
            matrix.codes.view(torch.int32),
            matrix.scales,
            ends_E,
            output_TN,
            tokens,
            matrix.rows,
            blocks,
            steps,
            EXPERTS=experts,
            EXPERTS_FILLED_UP=triton.next_power_of_2(experts),
            GROUP_STEPS=None if matrix.scheme.group is None else matrix.scheme.group // STEP_COLUMNS,
            INTERLEAVED=matrix.interleaved,
            LANES=LANES,
            **tiling,
        )
    return output_TN


def choose_tiling(tokens: int, experts: int, dtype: torch.dtype) -> dict[str, int]:
    """Sizes of a tile for so many tokens of so many experts, that fit the shared memory of any GPU."""
    if tokens == 1:
        sizes = 1, 1
    elif tokens <= _FEW_TOKENS * experts or dtype.itemsize > 2:
        sizes = _FEW_TOKENS, 1
    else:
        sizes = _MANY_TOKENS, _MANY_BLOCKS
    return {"TILE_TOKENS": sizes[0], "TILE_BLOCKS": sizes[1], "TILE_STEPS": _TILE_STEPS}


@triton.jit
def _kernel(
    x, words, scales, ends, output, tokens, rows, blocks, steps,
    EXPERTS: tl.constexpr, EXPERTS_FILLED_UP: tl.constexpr, GROUP_STEPS: tl.constexpr, INTERLEAVED: tl.constexpr,
    LANES: tl.constexpr, TILE_TOKENS: tl.constexpr, TILE_BLOCKS: tl.constexpr, TILE_STEPS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    if EXPERTS == 1:
        expert, first, last = 0, tile * TILE_TOKENS, tokens
    else:
        expert, first, last = _tokens_of(tile, ends, EXPERTS, EXPERTS_FILLED_UP, TILE_TOKENS)
    if first < last:
        token_T = first + tl.arange(0, TILE_TOKENS)
        inside_T = token_T < last
        place_N = tl.arange(0, TILE_BLOCKS * LANES)
        block_N, lane_N = tl.program_id(1) * TILE_BLOCKS + place_N // LANES, place_N % LANES
        inside_N = block_N < blocks
        # int64, because the experts of a layer together may have more bytes than an int32 counts.
        stored_N = block_N.to(tl.int64) + expert * blocks
        x_T1 = x + token_T.to(tl.int64)[:, None] * (steps * 4)
        if GROUP_STEPS is None:
            low_TN = _product_w8(
                x_T1, inside_T, words, scales, stored_N, lane_N, inside_N, steps, LANES, TILE_TOKENS, TILE_STEPS
            )
            _store(output, low_TN, token_T, inside_T, block_N, lane_N, inside_N, rows, blocks, INTERLEAVED, LANES)
        else:
            low_TN, high_TN = _product_w4(
                x_T1, inside_T, words, scales, stored_N, lane_N, inside_N, steps,
                GROUP_STEPS, LANES, TILE_TOKENS, TILE_STEPS,
            )  # fmt: skip
            _store(output, low_TN, token_T, inside_T, block_N, lane_N, inside_N, rows, blocks, INTERLEAVED, 2 * LANES)
            lane_N += LANES
            _store(output, high_TN, token_T, inside_T, block_N, lane_N, inside_N, rows, blocks, INTERLEAVED, 2 * LANES)


@triton.jit
def _tokens_of(tile, ends, EXPERTS: tl.constexpr, EXPERTS_FILLED_UP: tl.constexpr, TILE_TOKENS: tl.constexpr):
    """The expert of a tile and its tokens, from the first to before the last; none past the last tile."""
    expert_E = tl.arange(0, EXPERTS_FILLED_UP)
    end_E = tl.load(ends + expert_E, mask=expert_E < EXPERTS, other=0)
    begin_E = tl.load(ends + expert_E - 1, mask=(expert_E > 0) & (expert_E < EXPERTS), other=0)
    tiles_E = (end_E - begin_E + TILE_TOKENS - 1) // TILE_TOKENS
    before_E = tl.cumsum(tiles_E, 0) - tiles_E
    here_E = (before_E <= tile) & (tile < before_E + tiles_E)
    expert = tl.sum(tl.where(here_E, expert_E, 0), 0)
    first = tl.sum(tl.where(here_E, begin_E + (tile - before_E) * TILE_TOKENS, 0), 0)
    return expert, first, tl.sum(tl.where(here_E, end_E, 0), 0)


@triton.jit
def _product_w4(
    x_T1, inside_T, words, scales, stored_N, lane_N, inside_N, steps,
    GROUP_STEPS: tl.constexpr, LANES: tl.constexpr, TILE_TOKENS: tl.constexpr, TILE_STEPS: tl.constexpr,
):  # fmt: skip
    """Products with the rows of low and of high nibbles."""
    SUMS: tl.constexpr = TILE_STEPS if TILE_TOKENS == 1 else TILE_TOKENS
    low = tl.zeros((SUMS, stored_N.shape[0]), tl.float32)
    high = tl.zeros((SUMS, stored_N.shape[0]), tl.float32)
    groups = steps // GROUP_STEPS
    for start in range(0, steps, TILE_STEPS):
        step_S = start + tl.arange(0, TILE_STEPS)
        inside_SN = (step_S < steps)[:, None] & inside_N[None, :]
        word_SN = tl.load(
            words + (stored_N * steps * LANES + lane_N)[None, :] + (step_S * LANES)[:, None], inside_SN, 0
        )
        group_SN = (stored_N * groups)[None, :] + (step_S // GROUP_STEPS)[:, None]
        scale_SN = scales + group_SN * (2 * LANES) + lane_N[None, :]
        low_scale_SN = tl.load(scale_SN, inside_SN, 0).to(tl.float32)
        high_scale_SN = tl.load(scale_SN + LANES, inside_SN, 0).to(tl.float32)
        for column in tl.static_range(4):
            x_TS = _activations(x_T1, step_S, column, inside_T, steps)
            low_SN = (word_SN >> (8 * column)) & 15
            high_SN = (word_SN >> (8 * column + 4)) & 15
            low = _add_product(low, x_TS, (low_SN - 8).to(tl.float32) * low_scale_SN, TILE_TOKENS)
            high = _add_product(high, x_TS, (high_SN - 8).to(tl.float32) * high_scale_SN, TILE_TOKENS)
    return _total(low, TILE_TOKENS), _total(high, TILE_TOKENS)


@triton.jit
def _product_w8(
    x_T1, inside_T, words, scales, stored_N, lane_N, inside_N, steps,
    LANES: tl.constexpr, TILE_TOKENS: tl.constexpr, TILE_STEPS: tl.constexpr,
):  # fmt: skip
    SUMS: tl.constexpr = TILE_STEPS if TILE_TOKENS == 1 else TILE_TOKENS
    total = tl.zeros((SUMS, stored_N.shape[0]), tl.float32)
    scale_N = tl.load(scales + stored_N * LANES + lane_N, inside_N, 0)
    for start in range(0, steps, TILE_STEPS):
        step_S = start + tl.arange(0, TILE_STEPS)
        inside_SN = (step_S < steps)[:, None] & inside_N[None, :]
        word_SN = tl.load(
            words + (stored_N * steps * LANES + lane_N)[None, :] + (step_S * LANES)[:, None], inside_SN, 0
        )
        for column in tl.static_range(4):
            x_TS = _activations(x_T1, step_S, column, inside_T, steps)
            code_SN = (word_SN << (24 - 8 * column)) >> 24
            total = _add_product(total, x_TS, code_SN.to(tl.float32) * scale_N[None, :], TILE_TOKENS)
    return _total(total, TILE_TOKENS)


@triton.jit
def _activations(x_T1, step_S, column: tl.constexpr, inside_T, steps):
    """Every fourth activation of each token of the tile."""
    return tl.load(x_T1 + (step_S * 4 + column)[None, :], inside_T[:, None] & (step_S < steps)[None, :], 0)


@triton.jit
def _add_product(total, x_TS, weight_SN, TILE_TOKENS: tl.constexpr):
    """`total` (T, N) plus a product; of one token, terms (S, N) that are summed at the very end."""
    weight_SN = weight_SN.to(x_TS.dtype)
    if TILE_TOKENS == 1:
        return total + tl.trans(x_TS).to(tl.float32) * weight_SN.to(tl.float32)
    else:
        return tl.dot(x_TS, weight_SN, total, input_precision="ieee")


@triton.jit
def _total(total, TILE_TOKENS: tl.constexpr):
    if TILE_TOKENS == 1:
        return tl.sum(total, 0)[None, :]
    else:
        return total


@triton.jit
def _store(
    output, sum_TN, token_T, inside_T, block_N, lane_N, inside_N, rows, blocks,
    INTERLEAVED: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """Gate rows first, then up, where their blocks alternate."""
    if INTERLEAVED:
        block_N = block_N % 2 * (blocks // 2) + block_N // 2
    row_N = block_N * BLOCK_ROWS + lane_N
    inside_TN = inside_T[:, None] & (inside_N & (row_N < rows))[None, :]
    place_TN = token_T.to(tl.int64)[:, None] * rows + row_N[None, :]
    tl.store(output + place_TN, sum_TN.to(output.dtype.element_ty), inside_TN)
