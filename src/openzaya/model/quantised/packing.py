"""The order of a quantised matrix in memory, made for products that read it from the first byte to the last.

N rows, K columns, G groups a row, B blocks, S steps of four columns, R rows of a block (32 in w4, 16 in w8).

| scheme | tensor | shape | where a value is |
|---|---|---|---|
| w4 | codes, uint8 | (B, S, 64) | column 4 s + j of rows 32 b + r (low nibble) and 32 b + 16 + r (high): byte 4 r + j |
| w4 | scales, float16 | (B, G, 32) | row 32 b + r, group g: [b, g, r] |
| w8 | codes, int8 | (B, S, 64) | column 4 s + j of row 16 b + r: byte 4 r + j |
| w8 | scales, float32 | (B, 16) | row 16 b + r: [b, r] |

A nibble is the integer plus 8. Rows past the matrix are zeros with the scale 0. Gate and up rows of experts alternate
by blocks, block 2 i gate and block 2 i + 1 the matching rows of up, so that SwiGLU can follow its product at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from openzaya.model.quantised.rounding import restore_weights, round_weights
from openzaya.model.quantised.scheme import LANES, STEP_COLUMNS, Scheme

DTYPES = {"U8": torch.uint8, "I8": torch.int8, "F16": torch.float16, "F32": torch.float32}
"""The types of codes and scales, by the names that `Scheme` has for them."""
NIBBLE_ZERO = 8
"""What a nibble has where the integer is 0."""


@dataclass(frozen=True, slots=True)
class QuantisedMatrix:
    """A matrix W (N, K) in the layout of this file; `codes` and `scales` may be views of a file.

    Where products say so, a stack of them: one an expert, along a leading axis of both tensors.
    """

    codes: Tensor
    scales: Tensor
    scheme: Scheme
    rows: int
    interleaved: bool = False

    def of_expert(self, expert: int) -> QuantisedMatrix:
        """One matrix of a stack."""
        return replace(self, codes=self.codes[expert], scales=self.scales[expert])


def quantise(weight_NK: Tensor, scheme: Scheme, *, interleaved: bool = False) -> QuantisedMatrix:
    """Round and pack a float matrix; `interleaved` where its rows are all of gate, then all of up.

    Raises ValueError for a shape or a value that the scheme cannot hold.
    """
    rows, columns = weight_NK.shape
    if refusal := scheme.refusal("the matrix", rows, columns, interleaved=interleaved):
        raise ValueError(refusal)
    codes_NK, scales = round_weights(weight_NK, scheme)
    packed, packed_scales = pack_codes(codes_NK, scheme), pack_scales(scales, scheme)
    if interleaved:
        packed, packed_scales = interleave(packed), interleave(packed_scales)
    return QuantisedMatrix(packed, packed_scales, scheme, rows, interleaved)


def dequantise(matrix: QuantisedMatrix) -> Tensor:
    """The float32 matrix (N, K) that `matrix` stands for, gate rows first where they alternate."""
    codes_NK, scales = unpack(matrix)
    return restore_weights(codes_NK, scales, matrix.scheme)


def unpack(matrix: QuantisedMatrix) -> tuple[Tensor, Tensor]:
    """Integers (N, K) and scales as `round_weights` gives them, in the order of the original rows."""
    codes, scales = matrix.codes, matrix.scales
    if matrix.interleaved:
        codes, scales = deinterleave(codes), deinterleave(scales)
    codes_NK, plain_scales = unpack_codes(codes, matrix.scheme), unpack_scales(scales, matrix.scheme)
    return codes_NK[: matrix.rows], plain_scales[: matrix.rows]


def pack_codes(codes_NK: Tensor, scheme: Scheme) -> Tensor:
    """(N, K) int8 to (B, S, 64)."""
    codes_NK = F.pad(codes_NK, (0, 0, 0, -codes_NK.shape[0] % scheme.block))
    lanes = codes_NK.unflatten(1, (-1, STEP_COLUMNS)).unflatten(0, (-1, LANES)).transpose(1, 2).flatten(2)
    if scheme.name == "w8":
        return lanes.contiguous()
    low, high = (lanes + NIBBLE_ZERO).to(torch.uint8).unflatten(0, (-1, 2)).unbind(1)
    return low | high << 4


def unpack_codes(packed: Tensor, scheme: Scheme) -> Tensor:
    """(B, S, 64) to int8 (N, K), N with the rows that fill the last block."""
    lanes = packed
    if scheme.name == "w4":
        nibbles = torch.stack([packed & 15, packed >> 4], dim=1).flatten(0, 1)
        lanes = nibbles.to(torch.int8) - NIBBLE_ZERO
    return lanes.unflatten(2, (LANES, STEP_COLUMNS)).transpose(1, 2).flatten(2).flatten(0, 1)


def pack_scales(scales: Tensor, scheme: Scheme) -> Tensor:
    """(N, G) to (B, G, R) in w4; (N) to (B, R) in w8."""
    per_row = scales.unflatten(0, (-1, 1)) if scales.ndim == 1 else scales
    padded = F.pad(per_row, (0, 0, 0, -per_row.shape[0] % scheme.block))
    packed = padded.unflatten(0, (-1, scheme.block)).transpose(1, 2).contiguous()
    return packed[:, 0] if scheme.group is None else packed


def unpack_scales(packed: Tensor, scheme: Scheme) -> Tensor:
    """The inverse of `pack_scales`, N with the rows that fill the last block."""
    return packed.flatten() if scheme.group is None else packed.transpose(1, 2).flatten(0, 1)


def interleave(packed: Tensor) -> Tensor:
    """Blocks of gate, then of up, to blocks of gate and up in turn; along the first axis."""
    return packed.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)


def deinterleave(packed: Tensor) -> Tensor:
    """The inverse of `interleave`."""
    return packed.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)
