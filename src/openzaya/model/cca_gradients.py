"""Between projections and attention of CCA as one operation that gradients flow back through, on a GPU.

With x'[t] the gradient of the x of `cca_kernel` and * a product of channel by channel, the backward is

    z'[u] = mean'[u] + sum_ij w0_j * G_i^T x'[u + i + j]        over the places that see column u
    X_m   = sum_t x'[t] z_m[t]^T                                one matrix a head and m = i + j

and all gradients of weights follow from X_m and sum_t x'[t]: a few small products. No order depends on the run: each
X_m is summed in parts of the tokens that the shapes alone fix, and the parts in order.

T tokens, N pairs of channels, C channels of a head, Z = (H + K) * C, P earlier columns, V delayed value channels.
"""

# Triton's language has no types that a checker knows.
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from openzaya.model.cca_kernel import (
    Inputs,
    column_of,
    earlier_column,
    launch_forward,
    length_scale,
    matrix_of,
    mean_of,
    mixed,
    of_head,
    pairs,
    placed,
    store,
    turns,
)

_PARTS = 8
"""Of the tokens, at most, in the sums for weights; each part costs a matrix of float32 a head and earlier column."""
_LEAST_PART = 1024


def kernel_queries_keys_values(
    parts: tuple[Tensor, Tensor, Tensor, Tensor],
    before: tuple[Tensor, Tensor] | None,
    resets_BS: Tensor | None,
    rotary: tuple[Tensor, Tensor],
    convolutions: tuple[nn.Conv1d, nn.Conv1d],
    temperature_K: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, S, H, C), keys and values (B, S, K, C), ready for attention, without waiting for the device.

    `parts` are queries (B, S, Q), keys (B, S, K * C), current and delayed values (B, S, V), as projected. `before` has
    columns (B, P, Z) and delayed value (B, V) of what came before, zero where nothing did. `resets_BS` is the place in
    a document. `rotary` has cosine and sine (B, S, R), equal in both halves of R. Lengths below `epsilon` count as it.
    """
    q_BSQ, k_BSK, *halves = parts
    columns_BPZ, before_BV = before or (None, None)
    first, second = convolutions
    mixed: tuple[Tensor, Tensor, Tensor] = FusedCCA.apply(
        *halves, before_BV, epsilon, q_BSQ, k_BSK, columns_BPZ, resets_BS, *rotary, first.weight, first.bias,
        second.weight, second.bias, temperature_K,
    )  # fmt: skip
    return mixed


class FusedCCA(torch.autograd.Function):
    """From the fifth on its inputs are the tensors of `Inputs.of`, in that order."""

    @staticmethod
    def forward(
        ctx: Any, current_BSV: Tensor, delayed_BSV: Tensor, before_BV: Tensor | None, epsilon: float, *tensors: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.epsilon = epsilon
        # The values are not needed again.
        ctx.save_for_backward(*tensors)
        return launch_forward(Inputs.of(epsilon, *tensors), current_BSV, delayed_BSV, before_BV)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs = Inputs.of(ctx.epsilon, *ctx.saved_tensors)
        _current, _delayed, before, _epsilon, *wanted = ctx.needs_input_grad
        q_BSHC, k_BSKC, v_BSKC = (gradient.contiguous() for gradient in gradients)
        mixed_TZ, temperature_K = _through_norm(inputs, q_BSHC, k_BSKC)
        columns_BPZ = torch.empty_like(inputs.columns_BPZ) if inputs.columns_BPZ is not None and wanted[2] else None
        q_BSQ, k_BSK, delayed_BSV = _to_columns(inputs, mixed_TZ, v_BSKC, columns_BPZ)
        current_BSV, previous_BSV = v_BSKC.flatten(2).chunk(2, dim=-1)
        before_BV = previous_BSV[:, 0] if before else None
        if before_BV is not None and inputs.resets_BS is not None:
            before_BV = before_BV * (inputs.resets_BS[:, :1] > 0)
        weights = _to_weights(inputs, mixed_TZ) if any(wanted[6:10]) else (None,) * 4
        return (
            current_BSV, delayed_BSV, before_BV, None, q_BSQ, k_BSK, columns_BPZ, None, None, None, *weights,
            temperature_K,
        )  # fmt: skip


def _through_norm(inputs: Inputs, q_BSHC: Tensor, k_BSKC: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (T, Z) and of the temperatures, from those of queries and keys."""
    sizes, tile, tokens = inputs.sizes, inputs.tile, inputs.tokens
    q, k = inputs.q, inputs.k
    tiles = triton.cdiv(tokens, tile["TILE_TOKENS"])
    mixed_TZ = q.new_empty(tokens, q.shape[1] + k.shape[1])
    temperature = q.new_zeros(tiles, sizes["KEY_HEADS"], dtype=torch.float32)
    if tokens:
        launch: Any = _norm_gradient[sizes["HEADS"] + sizes["KEY_HEADS"], tiles]
        with torch.cuda.device_of(q):
            launch(
                q, k, inputs.columns_BPZ, inputs.resets_BS, *inputs.rotary, *inputs.weights, inputs.temperature_K,
                q_BSHC, k_BSKC, mixed_TZ, temperature, tokens, inputs.length, q.stride(0), k.stride(0),
                inputs.epsilon, **sizes, **tile, **inputs.options,
            )  # fmt: skip
    return mixed_TZ, temperature.sum(0).to(inputs.temperature_K.dtype)


def _to_columns(
    inputs: Inputs, mixed_TZ: Tensor, v_BSKC: Tensor, columns_BPZ: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and delayed values; into `columns`, those of the columns before."""
    q, k, sizes, tile = inputs.q, inputs.k, inputs.sizes, inputs.tile
    widths = q.shape[1], k.shape[1], k.shape[1] // 2
    q_BSQ, k_BSK, delayed_BSV = (q.new_empty(inputs.batch, inputs.length, width) for width in widths)
    places = inputs.batch * (inputs.length + (0 if columns_BPZ is None else columns_BPZ.shape[1]))
    if inputs.tokens:
        heads = sizes["HEADS"] + sizes["KEY_HEADS"]
        launch: Any = _column_gradient[heads + 1, triton.cdiv(places, tile["TILE_TOKENS"])]
        depthwise, _bias, grouped, _grouped_bias = inputs.weights
        with torch.cuda.device_of(q):
            launch(
                mixed_TZ, v_BSKC, inputs.resets_BS, depthwise, grouped, q_BSQ, k_BSK, delayed_BSV, columns_BPZ,
                places, inputs.length, **_without(sizes, "TURNED", "PAIRS_FILLED"), **tile,
                CHANNELS_FILLED=2 * sizes["PAIRS_FILLED"], **inputs.options,
            )  # fmt: skip
    return q_BSQ, k_BSK, delayed_BSV


def _to_weights(inputs: Inputs, mixed_TZ: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of weight and bias of both convolutions."""
    q, k, sizes, tokens = inputs.q, inputs.k, inputs.sizes, inputs.tokens
    channels, taps0, taps1 = sizes["CHANNELS"], sizes["TAPS0"], sizes["TAPS1"]
    heads, backs = mixed_TZ.shape[1] // channels, taps0 + taps1 - 1
    parts = min(_PARTS, triton.cdiv(tokens, _LEAST_PART))
    products = mixed_TZ.new_empty(parts, heads, backs, channels, channels, dtype=torch.float32)
    sums = mixed_TZ.new_empty(parts, heads, channels, dtype=torch.float32)
    if tokens:
        launch: Any = _products[heads * backs, parts]
        with torch.cuda.device_of(q):
            launch(
                q, k, inputs.columns_BPZ, inputs.resets_BS, mixed_TZ, products, sums, tokens, inputs.length,
                q.stride(0), k.stride(0), triton.cdiv(tokens, parts),
                **_without(sizes, "TURNED", "PAIRS_FILLED", "TAPS_LAST"),
                TILE_TOKENS=inputs.tile["TILE_TOKENS"], CHANNELS_FILLED=2 * sizes["PAIRS_FILLED"], **inputs.options,
            )  # fmt: skip
    return _weight_gradients(inputs.weights, products.sum(0), sums.sum(0), taps0)


def _weight_gradients(
    weights: tuple[Tensor, Tensor, Tensor, Tensor], products_HMOC: Tensor, sums_HO: Tensor, taps0: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From X_m (heads, P + 1, C out, C in) and the sum of x' (heads, C out)."""
    depthwise, depthwise_bias, arranged, grouped_bias = weights
    heads, channels = sums_HO.shape
    # By places back, i (I) and j (J), in place of taps.
    first_HCJ = depthwise.float().view(heads, channels, taps0).flip(-1)
    second_HIOC = arranged.float().unflatten(1, (heads, channels)).transpose(0, 1).flip(1)
    products_HIOCJ = products_HMOC.unfold(1, taps0, 1)
    to_first_HCJ = (second_HIOC[..., None] * products_HIOCJ).sum((1, 2))
    to_first_bias_HC = (second_HIOC * sums_HO[:, None, :, None]).sum((1, 2))
    to_second_HIOC = (products_HIOCJ * first_HCJ[:, None, None]).sum(-1)
    to_second_HIOC += sums_HO[:, None, :, None] * depthwise_bias.float().view(heads, 1, 1, channels)
    return (
        to_first_HCJ.flip(-1).reshape(depthwise.shape).to(depthwise.dtype),
        to_first_bias_HC.flatten().to(depthwise_bias.dtype),
        to_second_HIOC.flip(1).permute(0, 2, 3, 1).flatten(0, 1).to(grouped_bias.dtype),
        sums_HO.flatten().to(grouped_bias.dtype),
    )


def _without(sizes: dict[str, int], *names: str) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if name not in names}


@triton.jit
def _norm_gradient(
    q, k, before, resets, cosine, sine, depthwise, depthwise_bias, grouped, grouped_bias, temperature,
    q_gradient, k_gradient, mixed_gradient, temperature_gradient, tokens, length, q_row, k_row, epsilon,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, CHANNELS: tl.constexpr, TURNED: tl.constexpr, TAPS0: tl.constexpr,
    TAPS1: tl.constexpr, TAPS_LAST: tl.constexpr, PAIRS_FILLED: tl.constexpr, TILE_TOKENS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Back through rotation, temperature and norm; x is computed once more."""
    WIDTH: tl.constexpr = (HEADS + KEY_HEADS) * CHANNELS
    head, first = tl.program_id(0), tl.program_id(1) * TILE_TOKENS
    token_T = tl.arange(0, TILE_TOKENS)
    row_T, place_T, seen_T = placed(first + token_T, tokens, length, before, resets, TAPS0 + TAPS1 - 2)
    first = first.to(tl.int64)
    first_N, second_N = pairs(CHANNELS, TURNED, PAIRS_FILLED)
    first_TN, second_TN = mixed(
        q + first * q_row, k + first * k_row, before, depthwise, depthwise_bias, grouped, grouped_bias, q_row, k_row,
        head, token_T, row_T, place_T, seen_T, first_N, second_N,
        HEADS, KEY_HEADS, CHANNELS, TAPS0, TAPS1, TAPS_LAST, TILE_CHANNELS,
    )  # fmt: skip
    start, row = of_head(
        q_gradient + first * HEADS * CHANNELS, k_gradient + first * KEY_HEADS * CHANNELS,
        HEADS * CHANNELS, KEY_HEADS * CHANNELS, head, HEADS, CHANNELS,
    )  # fmt: skip
    inside_T1 = (seen_T >= 0)[:, None]
    turned_first_TN = column_of(start, row, token_T, inside_T1 & (first_N < CHANNELS)[None, :], 0, first_N)
    turned_second_TN = column_of(start, row, token_T, inside_T1 & (second_N < CHANNELS)[None, :], 0, second_N)
    cosine_TN, sine_TN = turns(cosine + first * TURNED, sine + first * TURNED, token_T, seen_T, TURNED, PAIRS_FILLED)
    to_first_TN = turned_first_TN.to(tl.float32) * cosine_TN + turned_second_TN.to(tl.float32) * sine_TN
    to_second_TN = turned_second_TN.to(tl.float32) * cosine_TN - turned_first_TN.to(tl.float32) * sine_TN

    squares_T = tl.sum(first_TN * first_TN + second_TN * second_TN, 1)
    scale_T = length_scale(squares_T, epsilon, CHANNELS)
    along_T = tl.sum(to_first_TN * first_TN + to_second_TN * second_TN, 1)
    if head >= HEADS:
        place = tl.program_id(1) * KEY_HEADS + head - HEADS
        tl.store(temperature_gradient + place, tl.sum(along_T * scale_T, 0))
    scale_T *= tl.load(temperature + head - HEADS, head >= HEADS, 1).to(tl.float32)
    # Below epsilon the scale is no function of the length.
    along_T = tl.where(tl.sqrt(squares_T) > epsilon, along_T / squares_T, 0.0)
    to_first_TN = (to_first_TN - first_TN * along_T[:, None]) * scale_T[:, None]
    to_second_TN = (to_second_TN - second_TN * along_T[:, None]) * scale_T[:, None]
    out = mixed_gradient + first * WIDTH + head * CHANNELS
    store(out, WIDTH, token_T, seen_T >= 0, first_N, CHANNELS, to_first_TN)
    store(out, WIDTH, token_T, seen_T >= 0, second_N, CHANNELS, to_second_TN)


@triton.jit
def _column_gradient(
    mixed_gradient, v_gradient, resets, depthwise, grouped, q_gradient, k_gradient, delayed_gradient, before_gradient,
    places, length, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, CHANNELS: tl.constexpr, TAPS0: tl.constexpr,
    TAPS1: tl.constexpr, TAPS_LAST: tl.constexpr, TILE_TOKENS: tl.constexpr, TILE_CHANNELS: tl.constexpr,
    CHANNELS_FILLED: tl.constexpr,
):  # fmt: skip
    """Back through convolutions, mean and delay. Columns before a row are places of it from -P on."""
    WIDTH: tl.constexpr = (HEADS + KEY_HEADS) * CHANNELS
    EARLIER: tl.constexpr = 0 if before_gradient is None else TAPS0 + TAPS1 - 2
    head, first = tl.program_id(0), tl.program_id(1) * TILE_TOKENS
    span = length + EARLIER
    number_T = first + tl.arange(0, TILE_TOKENS)
    row_T, place_T, inside_T = number_T // span, number_T % span - EARLIER, number_T < places
    own_T = inside_T & (place_T >= 0)
    # From here on tokens count from that of the first place of the tile.
    first = (first // span * length + first % span - EARLIER).to(tl.int64)
    token_T = (row_T * length + place_T - first).to(tl.int32)
    if resets is not None:
        resets += first
    if head == HEADS + KEY_HEADS:
        HALF: tl.constexpr = KEY_HEADS * CHANNELS // 2
        sees_T1 = sees(resets, token_T, place_T, own_T, length, 1)[:, None]
        v_gradient, delayed_gradient = v_gradient + first * 2 * HALF + HALF, delayed_gradient + first * HALF
        for begin in range(0, HALF, TILE_CHANNELS):
            channel_C = begin + tl.arange(0, TILE_CHANNELS)
            next_TC = column_of(v_gradient, 2 * HALF, token_T, sees_T1 & (channel_C < HALF)[None, :], -1, channel_C)
            store(delayed_gradient, HALF, token_T, own_T, channel_C, HALF, next_TC)
    else:
        channel_C = tl.arange(0, CHANNELS_FILLED)
        inside_C, own_C = channel_C < CHANNELS, head * CHANNELS + channel_C
        mixed_gradient += first * WIDTH
        total_TC = mean_of(
            mixed_gradient, mixed_gradient + HEADS * CHANNELS, WIDTH, WIDTH, head, token_T, tl.where(own_T, 0, -1),
            channel_C, HEADS, KEY_HEADS, CHANNELS, TRANSPOSED=True,
        )  # fmt: skip
        for tap in tl.static_range(TAPS0):
            turned_TC = tl.zeros((TILE_TOKENS, CHANNELS_FILLED), tl.float32)
            for back in tl.static_range(TAPS1):
                sees_T1 = sees(resets, token_T, place_T, inside_T, length, tap + back)[:, None]
                for begin in range(0, CHANNELS, TILE_CHANNELS):
                    out_O = begin + tl.arange(0, TILE_CHANNELS)
                    gradient_TO = column_of(
                        mixed_gradient + head * CHANNELS, WIDTH, token_T, sees_T1 & (out_O < CHANNELS)[None, :],
                        -(tap + back), out_O,
                    )  # fmt: skip
                    matrix_OC = matrix_of(
                        grouped, TAPS1 - 1 - back, head, out_O[:, None], channel_C[None, :],
                        HEADS + KEY_HEADS, CHANNELS, TAPS1, TAPS_LAST,
                    )  # fmt: skip
                    turned_TC = tl.dot(gradient_TO, matrix_OC, turned_TC, input_precision="ieee")
            weight_C = tl.load(depthwise + own_C * TAPS0 + (TAPS0 - 1 - tap), inside_C, 0).to(tl.float32)
            total_TC += turned_TC * weight_C[None, :]
        out, row = of_head(
            q_gradient + first * HEADS * CHANNELS, k_gradient + first * KEY_HEADS * CHANNELS,
            HEADS * CHANNELS, KEY_HEADS * CHANNELS, head, HEADS, CHANNELS,
        )  # fmt: skip
        store(out, row, token_T, own_T, channel_C, CHANNELS, total_TC)
        if before_gradient is not None:
            earlier_T = row_T * EARLIER + place_T + EARLIER
            store(
                before_gradient + head * CHANNELS, WIDTH, earlier_T, inside_T & (place_T < 0), channel_C, CHANNELS,
                total_TC,
            )  # fmt: skip


@triton.jit
def sees(resets, token_T, place_T, inside_T, length, ahead: tl.constexpr):
    """Whether the token `ahead` places on is there, and looks back as far as here."""
    sees_T = inside_T & (place_T + ahead >= 0) & (place_T + ahead < length)
    if resets is not None:
        sees_T = sees_T & (tl.load(resets + token_T + ahead, sees_T, 0) >= ahead)
    return sees_T


@triton.jit
def _products(
    q, k, before, resets, mixed_gradient, products, sums, tokens, length, q_row, k_row, part,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, CHANNELS: tl.constexpr, TAPS0: tl.constexpr, TAPS1: tl.constexpr,
    TILE_TOKENS: tl.constexpr, CHANNELS_FILLED: tl.constexpr,
):  # fmt: skip
    """X_m of one head and one m, and with m = 0 the sum of x', over one part of the tokens."""
    PAST: tl.constexpr = TAPS0 + TAPS1 - 2
    WIDTH: tl.constexpr = (HEADS + KEY_HEADS) * CHANNELS
    head, back = tl.program_id(0) // (PAST + 1), tl.program_id(0) % (PAST + 1)
    channel_C = tl.arange(0, CHANNELS_FILLED)
    inside_C = channel_C < CHANNELS
    start, row = of_head(q, k, q_row, k_row, head, HEADS, CHANNELS)
    product_OC = tl.zeros((CHANNELS_FILLED, CHANNELS_FILLED), tl.float32)
    sum_O = tl.zeros((CHANNELS_FILLED,), tl.float32)
    end = tl.minimum((tl.program_id(1) + 1) * part, tokens)
    for begin in range(tl.program_id(1) * part, end, TILE_TOKENS):
        token_T = tl.arange(0, TILE_TOKENS)
        row_T, place_T, seen_T = placed(begin + token_T, end, length, before, resets, PAST)
        first = tl.full((), begin, tl.int64)
        column_TC = earlier_column(
            start + first * row, row, before, head, token_T, row_T, place_T, seen_T, back, channel_C,
            WIDTH, CHANNELS, PAST,
        )  # fmt: skip
        gradient_TO = column_of(
            mixed_gradient + first * WIDTH + head * CHANNELS, WIDTH, token_T,
            (seen_T >= 0)[:, None] & inside_C[None, :], 0, channel_C,
        )  # fmt: skip
        product_OC = tl.dot(tl.trans(gradient_TO), column_TC, product_OC, input_precision="ieee")
        sum_O += tl.sum(gradient_TO.to(tl.float32), 0)
    place = (tl.program_id(1) * (HEADS + KEY_HEADS) + head).to(tl.int64)
    out_OC = products + (place * (PAST + 1) + back) * CHANNELS * CHANNELS
    out_OC = out_OC + channel_C[:, None] * CHANNELS + channel_C[None, :]
    tl.store(out_OC, product_OC, inside_C[:, None] & inside_C[None, :])
    if back == 0:
        tl.store(sums + place * CHANNELS + channel_C, sum_O, inside_C)
