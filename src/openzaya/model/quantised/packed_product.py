"""The product of float activations with a quantised matrix that stays packed.

W is the dequantised matrix in the dtype of the activations, and sums are float32: what an ordinary product with the
dequantised matrix gives, up to the order of its sums. Nothing is rounded but what is stored already, unlike in
`product`, which rounds activations too.

T tokens, N rows, K columns, E experts, B blocks, S steps of four columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from openzaya.model.quantised.packing import NIBBLE_ZERO, QuantisedMatrix, deinterleave, dequantise
from openzaya.model.quantised.scheme import LANES, STEP_COLUMNS

_CHUNK_ELEMENTS = 1 << 20
"""Dequantised at a time."""


def packed_product(x_TK: Tensor, matrix: QuantisedMatrix, ends_E: Tensor | None = None) -> Tensor:
    """`x` (T, K) times the transpose of `matrix` (N, K): (T, N), in the dtype of `x`.

    With `ends_E` (int32) the tensors of `matrix` have a leading axis of experts, and the tokens are sorted by expert:
    those of expert e begin at `ends_E[e - 1]` (the first at 0) and end before `ends_E[e]`. On a GPU nothing is read
    back from the device. Raises ValueError on a GPU where Triton is not installed.
    """
    if x_TK.device.type == "cuda":
        require_kernel(x_TK.device)
        from openzaya.model.quantised.packed_kernel import kernel_product

        return kernel_product(x_TK, matrix, ends_E)
    if ends_E is None:
        return _product(x_TK, matrix)
    begin, output_TN = 0, x_TK.new_empty(len(x_TK), matrix.rows)
    for expert, end in enumerate(ends_E.tolist()):
        if end > begin:
            output_TN[begin:end] = _product(x_TK[begin:end], matrix.of_expert(expert))
        begin = end
    return output_TN


def require_kernel(device: torch.device) -> None:
    """Raises ValueError where products on `device` need Triton and it is not there."""
    if device.type == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError:
            raise ValueError(
                "packed weights on a GPU need Triton, which is not installed; run `pip install triton`, or load the "
                "model without packed"
            ) from None


def packed_rows(ids: Tensor, matrix: QuantisedMatrix, dtype: torch.dtype) -> Tensor:
    """The rows of `matrix` (N, K) that `ids` name, as an embedding gives them: (..., K).

    Raises IndexError on a CPU for an id that is no row; on a GPU such an id is undefined.
    """
    if ids.device.type == "cpu" and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < matrix.rows:
        raise IndexError(f"a row from {int(ids.min())} to {int(ids.max())} is asked for, but there are {matrix.rows}")
    block, row = ids // matrix.scheme.block, ids % matrix.scheme.block
    # (..., S, 4): the bytes of one lane in every step of its block.
    codes = matrix.codes.unflatten(-1, (LANES, STEP_COLUMNS))[block, :, row % LANES]
    if matrix.scheme.group is None:
        return (codes.flatten(-2).float() * matrix.scales[block, row][..., None]).to(dtype)
    nibbles = torch.where((row < LANES)[..., None, None], codes & 15, codes >> 4).to(torch.int8) - NIBBLE_ZERO
    scales = matrix.scales[block, :, row].float()
    grouped = nibbles.flatten(-2).float().unflatten(-1, (-1, matrix.scheme.group))
    return (grouped * scales[..., None]).flatten(-2).to(dtype)


def _product(x_TK: Tensor, matrix: QuantisedMatrix) -> Tensor:
    """By chunks of blocks, in the stored order of rows."""
    block, columns = matrix.scheme.block, x_TK.shape[1]
    blocks = max(1, _CHUNK_ELEMENTS // (block * columns))
    stored_TN = x_TK.new_empty(len(x_TK), len(matrix.codes) * block)
    for first in range(0, len(matrix.codes), blocks):
        codes, scales = matrix.codes[first : first + blocks], matrix.scales[first : first + blocks]
        weight_NK = dequantise(QuantisedMatrix(codes, scales, matrix.scheme, len(codes) * block)).to(x_TK.dtype)
        stored_TN[:, first * block : (first + len(codes)) * block] = F.linear(x_TK, weight_NK)
    if matrix.interleaved:
        return deinterleave(stored_TN.T.unflatten(0, (-1, block))).flatten(0, 1).T
    return stored_TN[:, : matrix.rows]
