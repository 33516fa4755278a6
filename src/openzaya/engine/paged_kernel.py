"""Attention of one query a row over its pages as Triton kernels, for CUDA and ROCm.

The pages of a row are cut into parts, and a program computes one key-value head of one part: scores page by page, with
a running maximum. A second kernel joins the parts. How a row is cut depends on its own length alone, so a row computes
the same in any batch; lengths are read on the device, so the same launch serves any lengths.

B rows, K key-value heads, G query heads of each, C channels, E places of a page, W pages of a table.
"""

# Triton's language has no types that a checker knows.
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTS = 32
"""At most, so that few rows of long contexts still keep many processors reading."""
LEAST_PAGES = 4
"""Pages of a part, at least: below that, joining costs more than it saves."""
_LEAST_TILE = 16
"""No matrix unit takes a smaller side."""


def paged_attention(
    q_BKGC: Tensor, keys: Tensor, values: Tensor, tables_BW: Tensor, lengths_B: Tensor, window: int | None
) -> Tensor:
    """Softmax attention with scale C ** -0.5 of each row's token number `lengths_B` to those up to itself.

    `keys` and `values` are (pages, K, E, C), `tables_BW` (int32) names the pages of each row in order; what it has
    after a row's last page is not read. Of a `window` the last so many tokens are seen.
    """
    rows, heads, group, channels = q_BKGC.shape
    page = keys.shape[2]
    sizes: dict[str, Any] = {
        "GROUP": group, "CHANNELS": channels, "GROUP_FILLED": max(_LEAST_TILE, triton.next_power_of_2(group)),
        "CHANNELS_FILLED": max(_LEAST_TILE, triton.next_power_of_2(channels)), "PAGE": page, "PARTS": PARTS,
        "LEAST_PAGES": LEAST_PAGES, "WINDOW": window,
    }  # fmt: skip
    mixed = torch.empty(rows, heads, PARTS, group, channels, dtype=torch.float32, device=q_BKGC.device)
    running = torch.empty(rows, heads, PARTS, 2, group, dtype=torch.float32, device=q_BKGC.device)
    output_BKGC = torch.empty_like(q_BKGC, memory_format=torch.contiguous_format)
    part: Any = _part[(rows, heads, PARTS)]
    join: Any = _join[(rows, heads)]
    with torch.cuda.device_of(q_BKGC):
        part(
            q_BKGC.contiguous(), keys, values, tables_BW, lengths_B, mixed, running, tables_BW.stride(0),
            channels**-0.5, **sizes,
        )  # fmt: skip
        del sizes["GROUP_FILLED"]
        join(mixed, running, lengths_B, output_BKGC, GROUP_FILLED=triton.next_power_of_2(group), **sizes)
    return output_BKGC


@triton.jit
def _span(last, PAGE: tl.constexpr, PARTS: tl.constexpr, LEAST_PAGES: tl.constexpr, WINDOW: tl.constexpr):
    """The first page that the token at `last` sees, the end of its pages, and how many a part has."""
    end = last // PAGE + 1
    first = end * 0
    if WINDOW is not None:
        first = tl.maximum(last - WINDOW + 1, 0) // PAGE
    return first, end, tl.maximum((end - first + PARTS - 1) // PARTS, LEAST_PAGES)


@triton.jit
def _part(
    q, keys, values, tables, lengths, mixed, running, width, scale,
    GROUP: tl.constexpr, CHANNELS: tl.constexpr, GROUP_FILLED: tl.constexpr, CHANNELS_FILLED: tl.constexpr,
    PAGE: tl.constexpr, PARTS: tl.constexpr, LEAST_PAGES: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    row, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    last = tl.load(lengths + row).to(tl.int32)
    first, end, each = _span(last, PAGE, PARTS, LEAST_PAGES, WINDOW)
    begin = first + part * each
    if begin < end:
        end = tl.minimum(begin + each, end)
        own = row * tl.num_programs(1) + head
        group_G, channel_C, place_E = tl.arange(0, GROUP_FILLED), tl.arange(0, CHANNELS_FILLED), tl.arange(0, PAGE)
        inside_GC = (group_G < GROUP)[:, None] & (channel_C < CHANNELS)[None, :]
        inside_EC = (place_E >= 0)[:, None] & (channel_C < CHANNELS)[None, :]
        vector_GC = group_G[:, None] * CHANNELS + channel_C[None, :]
        vector_EC = place_E[:, None] * CHANNELS + channel_C[None, :]
        q_GC = tl.load(q + own * GROUP * CHANNELS + vector_GC, inside_GC, 0)
        highest_G = tl.full((GROUP_FILLED,), float("-inf"), tl.float32)
        weight_G = tl.zeros((GROUP_FILLED,), tl.float32)
        mixed_GC = tl.zeros((GROUP_FILLED, CHANNELS_FILLED), tl.float32)
        for page in range(begin, end):
            # int64, because the pages of a layer may have more numbers than an int32 counts.
            number = tl.load(tables + row.to(tl.int64) * width + page).to(tl.int64)
            start = (number * tl.num_programs(1) + head) * (PAGE * CHANNELS)
            k_EC = tl.load(keys + start + vector_EC, inside_EC, 0)
            v_EC = tl.load(values + start + vector_EC, inside_EC, 0)
            scores_GE = tl.dot(q_GC, tl.trans(k_EC), input_precision="ieee") * scale
            position_E = page * PAGE + place_E
            seen_E = position_E <= last
            if WINDOW is not None:
                seen_E = seen_E & (last - position_E < WINDOW)
            scores_GE = tl.where(seen_E[None, :], scores_GE, float("-inf"))
            # No page is unseen as a whole, so the maximum is a number.
            raised_G = tl.maximum(highest_G, tl.max(scores_GE, 1))
            weights_GE = tl.exp(scores_GE - raised_G[:, None])
            kept_G = tl.exp(highest_G - raised_G)
            weight_G = weight_G * kept_G + tl.sum(weights_GE, 1)
            mixed_GC = mixed_GC * kept_G[:, None] + tl.dot(weights_GE.to(v_EC.dtype), v_EC, input_precision="ieee")
            highest_G = raised_G
        place = own * PARTS + part
        tl.store(mixed + place.to(tl.int64) * (GROUP * CHANNELS) + vector_GC, mixed_GC, inside_GC)
        tl.store(running + place * (2 * GROUP) + group_G, highest_G, group_G < GROUP)
        tl.store(running + place * (2 * GROUP) + GROUP + group_G, weight_G, group_G < GROUP)


@triton.jit
def _join(
    mixed, running, lengths, output,
    GROUP: tl.constexpr, CHANNELS: tl.constexpr, GROUP_FILLED: tl.constexpr, CHANNELS_FILLED: tl.constexpr,
    PAGE: tl.constexpr, PARTS: tl.constexpr, LEAST_PAGES: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    first, end, each = _span(tl.load(lengths + row).to(tl.int32), PAGE, PARTS, LEAST_PAGES, WINDOW)
    own = row * tl.num_programs(1) + head
    group_G, channel_C = tl.arange(0, GROUP_FILLED), tl.arange(0, CHANNELS_FILLED)
    inside_GC = (group_G < GROUP)[:, None] & (channel_C < CHANNELS)[None, :]
    vector_GC = group_G[:, None] * CHANNELS + channel_C[None, :]
    highest_G = tl.full((GROUP_FILLED,), float("-inf"), tl.float32)
    weight_G = tl.zeros((GROUP_FILLED,), tl.float32)
    mixed_GC = tl.zeros((GROUP_FILLED, CHANNELS_FILLED), tl.float32)
    for part in range(0, (end - first + each - 1) // each):
        place = own * PARTS + part
        here_G = tl.load(running + place * (2 * GROUP) + group_G, group_G < GROUP, 0)
        raised_G = tl.maximum(highest_G, here_G)
        kept_G, share_G = tl.exp(highest_G - raised_G), tl.exp(here_G - raised_G)
        part_G = tl.load(running + place * (2 * GROUP) + GROUP + group_G, group_G < GROUP, 1)
        part_GC = tl.load(mixed + place.to(tl.int64) * (GROUP * CHANNELS) + vector_GC, inside_GC, 0)
        weight_G = weight_G * kept_G + part_G * share_G
        mixed_GC = mixed_GC * kept_G[:, None] + part_GC * share_G[:, None]
        highest_G = raised_G
    mixed_GC = mixed_GC / weight_G[:, None]
    tl.store(output + own * GROUP * CHANNELS + vector_GC, mixed_GC.to(output.dtype.element_ty), inside_GC)
