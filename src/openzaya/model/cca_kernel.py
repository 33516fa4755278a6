"""Between projections and attention of CCA as Triton kernels, for CUDA and ROCm: one for the forward.

What `attention.CCAProjection`, `QKNorm` and `rotate` do one after the other, read once and written once. With z_m[t]
the column m places before token t (zero before its document), and i, j the places that a tap of the second and of the
first convolution looks back,

    x[t] = mean[t] + b1 + sum_i G_i (b0 + sum_j w0_j z_(i+j)[t])        then norm, temperature and rotation

A document needs no other case: where z_(i+j) is zero for all j, the second convolution sees b0, as it must. Sums, norm
and rotation are float32 in either profile of `numerics`; the second convolution multiplies in the dtype of the columns.
A program computes one head of a tile of tokens, or their values. Rotation turns pairs of channels, so a tile is held in
two: the first channel of each pair, and the second.

T tokens, N pairs of channels, C channels of a head, Z = (H + K) * C, P earlier columns, V delayed value channels.
"""

# Triton's language has no types that a checker knows.
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_FEW_TOKENS = 256
"""Up to here tiles are small, so that decoding rows keep many processors busy."""
_LEAST_TILE = 16
"""No matrix unit takes a smaller side."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the kernels read, laid out as they read it, and what they are compiled for."""

    q: Tensor
    k: Tensor
    """(B * S, Q) and (B * S, K * C); a token may lie any distance from the next."""
    columns_BPZ: Tensor | None
    resets_BS: Tensor | None
    rotary: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor, Tensor, Tensor]
    """Weight and bias of both convolutions, the second weight as (taps, Z, C) in the dtype of the columns.

    Where tokens are few that is a view: laying it out anew would move more than the tokens do.
    """
    temperature_K: Tensor
    epsilon: float
    batch: int
    sizes: dict[str, int]

    @classmethod
    def of(
        cls, epsilon: float, q_BSQ: Tensor, k_BSK: Tensor, columns_BPZ: Tensor | None, resets_BS: Tensor | None,
        cosine_BSR: Tensor, sine_BSR: Tensor, depthwise: Tensor, depthwise_bias: Tensor, grouped: Tensor,
        grouped_bias: Tensor, temperature_K: Tensor,
    ) -> Inputs:  # fmt: skip
        q, k = side_by_side(q_BSQ), side_by_side(k_BSK)
        channels = grouped.shape[1]
        taps_last = len(q) <= _FEW_TOKENS
        arranged = grouped.to(q.dtype).contiguous().permute(2, 0, 1)
        if not taps_last:
            arranged = arranged.contiguous()
        return cls(
            q,
            k,
            None if columns_BPZ is None else columns_BPZ.contiguous(),
            None if resets_BS is None else resets_BS.contiguous(),
            (cosine_BSR.contiguous(), sine_BSR.contiguous()),
            (depthwise.contiguous(), depthwise_bias, arranged, grouped_bias),
            temperature_K,
            epsilon,
            len(q_BSQ),
            {
                "HEADS": q.shape[1] // channels, "KEY_HEADS": k.shape[1] // channels, "CHANNELS": channels,
                "TURNED": cosine_BSR.shape[2], "TAPS0": depthwise.shape[2], "TAPS1": grouped.shape[2],
                "TAPS_LAST": taps_last,
                "PAIRS_FILLED": max(_LEAST_TILE, triton.next_power_of_2(triton.cdiv(channels, 2))),
            },
        )  # fmt: skip

    @property
    def tokens(self) -> int:
        return len(self.q)

    @property
    def length(self) -> int:
        return self.tokens // self.batch if self.batch else 0

    @property
    def tile(self) -> dict[str, int]:
        return tile_of(self.tokens, self.q.dtype)

    @property
    def options(self) -> dict[str, int]:
        return options_of(self.tokens)


def side_by_side(part_BSW: Tensor) -> Tensor:
    """(B * S, W), of which the numbers of a token are neighbours; a copy only where that cannot be a view."""
    part_TW = part_BSW.flatten(0, 1)
    return part_TW if part_TW.stride(1) == 1 else part_TW.contiguous()


def tile_of(tokens: int, dtype: torch.dtype) -> dict[str, int]:
    """Tokens of a tile, and channels of a step of its products, that fit the shared memory of any GPU."""
    if tokens <= _FEW_TOKENS:
        return {"TILE_TOKENS": _LEAST_TILE, "TILE_CHANNELS": 32}
    return {"TILE_TOKENS": 32, "TILE_CHANNELS": 32} if dtype.itemsize > 2 else {"TILE_TOKENS": 64, "TILE_CHANNELS": 64}


def options_of(tokens: int) -> dict[str, int]:
    """How a program is built: what it adds up is kept in registers, and a step's loads are not begun a step early."""
    return {"num_warps": 4 if tokens <= _FEW_TOKENS else 8, "num_stages": 1}


def launch_forward(
    inputs: Inputs, current_BSV: Tensor, delayed_BSV: Tensor, before_BV: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, S, H, C), keys and values (B, S, K, C)."""
    q, k, sizes, tile = inputs.q, inputs.k, inputs.sizes, inputs.tile
    heads, key_heads, shape = sizes["HEADS"], sizes["KEY_HEADS"], (inputs.batch, inputs.length)
    q_BSHC = q.new_empty(*shape, heads, sizes["CHANNELS"])
    k_BSKC, v_BSKC = (q.new_empty(*shape, key_heads, sizes["CHANNELS"]) for _ in range(2))
    if inputs.tokens:
        current, delayed = side_by_side(current_BSV), side_by_side(delayed_BSV)
        launch: Any = _forward[heads + key_heads + 1, triton.cdiv(inputs.tokens, tile["TILE_TOKENS"])]
        with torch.cuda.device_of(q):
            launch(
                q, k, current, delayed, inputs.columns_BPZ, None if before_BV is None else before_BV.contiguous(),
                inputs.resets_BS, *inputs.rotary, *inputs.weights, inputs.temperature_K, q_BSHC, k_BSKC, v_BSKC,
                inputs.tokens, inputs.length, q.stride(0), k.stride(0), current.stride(0), delayed.stride(0),
                inputs.epsilon, **sizes, **tile, **inputs.options,
            )  # fmt: skip
    return q_BSHC, k_BSKC, v_BSKC


@triton.jit
def _forward(
    q, k, current, delayed, before, before_delayed, resets, cosine, sine,
    depthwise, depthwise_bias, grouped, grouped_bias, temperature, q_out, k_out, v_out,
    tokens, length, q_row, k_row, current_row, delayed_row, epsilon,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, CHANNELS: tl.constexpr, TURNED: tl.constexpr, TAPS0: tl.constexpr,
    TAPS1: tl.constexpr, TAPS_LAST: tl.constexpr, PAIRS_FILLED: tl.constexpr, TILE_TOKENS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
):  # fmt: skip
    head, first = tl.program_id(0), tl.program_id(1) * TILE_TOKENS
    token_T = tl.arange(0, TILE_TOKENS)
    row_T, place_T, seen_T = placed(first + token_T, tokens, length, before, resets, TAPS0 + TAPS1 - 2)
    # From here on tokens count from the first of the tile, so that only these products need 64 bits.
    first = first.to(tl.int64)
    if head == HEADS + KEY_HEADS:
        HALF: tl.constexpr = KEY_HEADS * CHANNELS // 2
        current, delayed, v_out = current + first * current_row, delayed + first * delayed_row, v_out + first * 2 * HALF
        for begin in range(0, HALF, TILE_CHANNELS):
            channel_C = begin + tl.arange(0, TILE_CHANNELS)
            out_TC = v_out + (token_T * (2 * HALF))[:, None] + channel_C[None, :]
            inside_C, inside_TC = (channel_C < HALF)[None, :], (seen_T >= 0)[:, None] & (channel_C < HALF)[None, :]
            tl.store(out_TC, column_of(current, current_row, token_T, inside_TC, 0, channel_C), inside_TC)
            sees_TC = ((seen_T >= 1) & (place_T >= 1))[:, None] & inside_C
            previous_TC = column_of(delayed, delayed_row, token_T, sees_TC, 1, channel_C)
            if before_delayed is not None:
                sees_TC = ((seen_T >= 1) & (place_T == 0))[:, None] & inside_C
                previous_TC += column_of(before_delayed, HALF, row_T, sees_TC, 0, channel_C).to(previous_TC.dtype)
            tl.store(out_TC + HALF, previous_TC, inside_TC)
    else:
        q, k = q + first * q_row, k + first * k_row
        first_N, second_N = pairs(CHANNELS, TURNED, PAIRS_FILLED)
        first_TN, second_TN = mixed(
            q, k, before, depthwise, depthwise_bias, grouped, grouped_bias, q_row, k_row, head, token_T, row_T,
            place_T, seen_T, first_N, second_N, HEADS, KEY_HEADS, CHANNELS, TAPS0, TAPS1, TAPS_LAST, TILE_CHANNELS,
        )  # fmt: skip
        scale_T = length_scale(tl.sum(first_TN * first_TN + second_TN * second_TN, 1), epsilon, CHANNELS)
        scale_T *= tl.load(temperature + head - HEADS, head >= HEADS, 1).to(tl.float32)
        first_TN, second_TN = first_TN * scale_T[:, None], second_TN * scale_T[:, None]
        cosine, sine = cosine + first * TURNED, sine + first * TURNED
        cosine_TN, sine_TN = turns(cosine, sine, token_T, seen_T, TURNED, PAIRS_FILLED)
        out, row = of_head(
            q_out + first * HEADS * CHANNELS, k_out + first * KEY_HEADS * CHANNELS,
            HEADS * CHANNELS, KEY_HEADS * CHANNELS, head, HEADS, CHANNELS,
        )  # fmt: skip
        turned_TN = first_TN * cosine_TN - second_TN * sine_TN
        store(out, row, token_T, seen_T >= 0, first_N, CHANNELS, turned_TN)
        turned_TN = second_TN * cosine_TN + first_TN * sine_TN
        store(out, row, token_T, seen_T >= 0, second_N, CHANNELS, turned_TN)


# ---- parts of the programs, of the backward too ----


@triton.jit
def placed(token_T, tokens, length, before, resets, PAST: tl.constexpr):
    """Row and place in it of each token, and how many earlier columns it sees: -1 beyond the last token."""
    row_T, place_T = token_T // length, token_T % length
    seen_T = place_T
    if before is not None:
        # At least the delayed value, whatever the convolutions look back on.
        seen_T += PAST + 1
    if resets is not None:
        seen_T = tl.minimum(seen_T, tl.load(resets + token_T, token_T < tokens, 0).to(tl.int32))
    return row_T, place_T, tl.where(token_T < tokens, seen_T, -1)


@triton.jit
def pairs(CHANNELS: tl.constexpr, TURNED: tl.constexpr, PAIRS_FILLED: tl.constexpr):
    """First and second channel of each pair that rotation turns; those that it leaves are paired by halves too."""
    HALF: tl.constexpr = TURNED // 2
    REST: tl.constexpr = (CHANNELS - TURNED + 1) // 2
    pair_N = tl.arange(0, PAIRS_FILLED)
    first_N = pair_N + tl.where(pair_N < HALF, 0, HALF)
    second_N = first_N + tl.where(pair_N < HALF, HALF, REST)
    if PAIRS_FILLED > HALF + REST:
        first_N = tl.where(pair_N < HALF + REST, first_N, CHANNELS)
        second_N = tl.where(pair_N < HALF + REST, second_N, CHANNELS)
    return first_N, second_N


@triton.jit
def turns(cosine, sine, token_T, seen_T, TURNED: tl.constexpr, PAIRS_FILLED: tl.constexpr):
    """Cosine and sine of each pair; both halves of a row of R have the same."""
    pair_N = tl.arange(0, PAIRS_FILLED)
    inside_TN = (seen_T >= 0)[:, None] & (pair_N < TURNED // 2)[None, :]
    angle_TN = (token_T * TURNED)[:, None] + pair_N[None, :]
    cosine_TN = tl.load(cosine + angle_TN, inside_TN, 1).to(tl.float32)
    return cosine_TN, tl.load(sine + angle_TN, inside_TN, 0).to(tl.float32)


@triton.jit
def of_head(q, k, q_row, k_row, head, HEADS: tl.constexpr, CHANNELS: tl.constexpr):
    """Where the numbers of a head begin, and how far apart those of its tokens are."""
    if head < HEADS:
        start, row = q + head * CHANNELS, q_row
    else:
        start, row = k + (head - HEADS) * CHANNELS, k_row
    return start, row


@triton.jit
def column_of(start, row, token_T, inside_TC, back, channel_C):
    """What lies `back` tokens before each; zero outside."""
    return tl.load(start + ((token_T - back) * row)[:, None] + channel_C[None, :], inside_TC, 0)


@triton.jit
def store(start, row, token_T, inside_T, channel_C, CHANNELS: tl.constexpr, value_TC):
    inside_TC = inside_T[:, None] & (channel_C < CHANNELS)[None, :]
    out_TC = start + (token_T * row)[:, None] + channel_C[None, :]
    tl.store(out_TC, value_TC.to(start.dtype.element_ty), inside_TC)


@triton.jit
def earlier_column(
    start, row, before, head, token_T, row_T, place_T, seen_T, back, channel_C,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, PAST: tl.constexpr,
):  # fmt: skip
    """z_back of one head: from the columns at hand, or from those before them."""
    inside_C, sees_T = (channel_C < CHANNELS)[None, :], seen_T >= back
    column_TC = column_of(start, row, token_T, (sees_T & (place_T >= back))[:, None] & inside_C, back, channel_C)
    if before is not None:
        came_TC = column_of(
            before + head * CHANNELS, WIDTH, row_T * PAST + PAST + place_T,
            (sees_T & (place_T < back))[:, None] & inside_C, back, channel_C,
        )  # fmt: skip
        column_TC += came_TC.to(column_TC.dtype)
    return column_TC


@triton.jit
def mixed(
    q, k, before, depthwise, depthwise_bias, grouped, grouped_bias, q_row, k_row, head, token_T, row_T, place_T,
    seen_T, first_N, second_N, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, CHANNELS: tl.constexpr,
    TAPS0: tl.constexpr, TAPS1: tl.constexpr, TAPS_LAST: tl.constexpr, TILE_CHANNELS: tl.constexpr,
):  # fmt: skip
    """x of one head: its first channels (T, N) and its second ones, float32."""
    WIDTH: tl.constexpr = (HEADS + KEY_HEADS) * CHANNELS
    start, row = of_head(q, k, q_row, k_row, head, HEADS, CHANNELS)
    first_TN = mean_of(q, k, q_row, k_row, head, token_T, seen_T, first_N, HEADS, KEY_HEADS, CHANNELS)
    second_TN = mean_of(q, k, q_row, k_row, head, token_T, seen_T, second_N, HEADS, KEY_HEADS, CHANNELS)
    bias = grouped_bias + head * CHANNELS
    first_TN += tl.load(bias + first_N, first_N < CHANNELS, 0).to(tl.float32)[None, :]
    second_TN += tl.load(bias + second_N, second_N < CHANNELS, 0).to(tl.float32)[None, :]
    for begin in range(0, CHANNELS, TILE_CHANNELS):
        channel_C = begin + tl.arange(0, TILE_CHANNELS)
        inside_C, own_C = channel_C < CHANNELS, head * CHANNELS + channel_C
        bias_C = tl.load(depthwise_bias + own_C, inside_C, 0).to(tl.float32)
        for back in tl.static_range(TAPS1):
            first_sum_TC = tl.zeros((token_T.shape[0], TILE_CHANNELS), tl.float32) + bias_C[None, :]
            for tap in tl.static_range(TAPS0):
                column_TC = earlier_column(
                    start, row, before, head, token_T, row_T, place_T, seen_T, back + tap, channel_C,
                    WIDTH, CHANNELS, TAPS0 + TAPS1 - 2,
                )  # fmt: skip
                weight_C = tl.load(depthwise + own_C * TAPS0 + (TAPS0 - 1 - tap), inside_C, 0).to(tl.float32)
                first_sum_TC += column_TC.to(tl.float32) * weight_C[None, :]
            seen_TC = first_sum_TC.to(grouped.dtype.element_ty)
            matrix_CN = matrix_of(
                grouped, TAPS1 - 1 - back, head, first_N[None, :], channel_C[:, None],
                HEADS + KEY_HEADS, CHANNELS, TAPS1, TAPS_LAST,
            )  # fmt: skip
            first_TN = tl.dot(seen_TC, matrix_CN, first_TN, input_precision="ieee")
            matrix_CN = matrix_of(
                grouped, TAPS1 - 1 - back, head, second_N[None, :], channel_C[:, None],
                HEADS + KEY_HEADS, CHANNELS, TAPS1, TAPS_LAST,
            )  # fmt: skip
            second_TN = tl.dot(seen_TC, matrix_CN, second_TN, input_precision="ieee")
    return first_TN, second_TN


@triton.jit
def matrix_of(
    grouped, tap, head, out_O, in_I,
    ALL_HEADS: tl.constexpr, CHANNELS: tl.constexpr, TAPS1: tl.constexpr, TAPS_LAST: tl.constexpr,
):  # fmt: skip
    """Weights of one head and tap of the second convolution, for channels that lie along two axes."""
    place_OI = head * CHANNELS * CHANNELS + out_O * CHANNELS + in_I
    if TAPS_LAST:
        place_OI = place_OI * TAPS1 + tap
    else:
        place_OI += tap * (ALL_HEADS * CHANNELS * CHANNELS)
    return tl.load(grouped + place_OI, (out_O < CHANNELS) & (in_I < CHANNELS), 0)


@triton.jit
def mean_of(
    q, k, q_row, k_row, head, token_T, seen_T, channel_N,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, CHANNELS: tl.constexpr, TRANSPOSED: tl.constexpr = False,
):  # fmt: skip
    """Mean of a query and its key; for a key, of it and the mean of its queries. Or the same matrix transposed."""
    GROUP: tl.constexpr = HEADS // KEY_HEADS
    inside_TN = (seen_T >= 0)[:, None] & (channel_N < CHANNELS)[None, :]
    if head < HEADS:
        key = k + head // GROUP * CHANNELS
        own_TN = column_of(q + head * CHANNELS, q_row, token_T, inside_TN, 0, channel_N).to(tl.float32)
        other_TN = column_of(key, k_row, token_T, inside_TN, 0, channel_N).to(tl.float32)
        if TRANSPOSED:
            other_TN /= GROUP
    else:
        key = k + (head - HEADS) * CHANNELS
        own_TN = column_of(key, k_row, token_T, inside_TN, 0, channel_N).to(tl.float32)
        other_TN = tl.zeros(inside_TN.shape, tl.float32)
        for member in range(GROUP):
            query = q + ((head - HEADS) * GROUP + member) * CHANNELS
            other_TN += column_of(query, q_row, token_T, inside_TN, 0, channel_N).to(tl.float32)
        if not TRANSPOSED:
            other_TN /= GROUP
    return (own_TN + other_TN) * 0.5


@triton.jit
def length_scale(squares_T, epsilon, CHANNELS: tl.constexpr):
    """What takes vectors with these sums of squares to length sqrt(C)."""
    return CHANNELS**0.5 / tl.maximum(tl.sqrt(squares_T), epsilon)
