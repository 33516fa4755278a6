"""What the compiled core must give, to the bit, in numpy: packing, quantisation, products, SwiGLU.

T tokens, N rows, K columns, G groups.
"""

from __future__ import annotations

import numpy as np

from openzaya.engine.core.products import PackedMatrix

VARIANTS = ("portable", "avx2", "avx512vnni-256", "avxvnni", "avx512vnni")
F32 = np.float32


def packed_rows(q_NK: np.ndarray, scales_NG: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of one matrix of integers, byte by byte as the layout says."""
    rows = 32 if bits == 4 else 16
    blocks = -(-len(q_NK) // rows)
    q = np.zeros((blocks * rows, q_NK.shape[1]), dtype=np.int32)
    q[: len(q_NK)] = q_NK
    scales = np.zeros((blocks * rows, scales_NG.shape[1]), dtype=scales_NG.dtype)
    scales[: len(scales_NG)] = scales_NG
    lanes = q.reshape(-1, 16, q.shape[1] // 4, 4).transpose(0, 2, 1, 3).reshape(-1, q.shape[1] // 4, 64)
    if bits == 8:
        return lanes.astype(np.int8), scales.reshape(blocks, 16)
    codes = (lanes[0::2] + 8) | (lanes[1::2] + 8) << 4
    return codes.astype(np.uint8), np.ascontiguousarray(scales.reshape(blocks, 32, -1).transpose(0, 2, 1))


def packed(q_ENK: np.ndarray, scales_ENG: np.ndarray, bits: int) -> PackedMatrix:
    parts = [packed_rows(q, scales, bits) for q, scales in zip(q_ENK, scales_ENG)]
    codes, scales = (np.stack(arrays) for arrays in zip(*parts))
    return PackedMatrix(codes, scales, q_ENK.shape[1])


def quantised(x_TK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes (T, K) and scales (T) of finite tokens."""
    scales_T = np.abs(x_TK).max(axis=1) / F32(127)
    scales_T = np.where(scales_T > 0, scales_T, F32(1))
    return np.clip(np.rint(x_TK / scales_T[:, None]), -127, 127).astype(np.int32), scales_T


def product(x_TK: np.ndarray, q_NK: np.ndarray, scales_NG: np.ndarray) -> np.ndarray:
    codes_TK, x_scales_T = quantised(x_TK)
    tokens, rows, groups = len(x_TK), len(q_NK), scales_NG.shape[1]
    # Sums of integers this small are exact in float64, whose products numpy is quick at.
    codes = codes_TK.reshape(tokens, groups, q_NK.shape[1] // groups).astype(np.float64)
    weights = q_NK.reshape(rows, groups, -1).astype(np.float64)
    total_TN = np.zeros((tokens, rows), dtype=F32)
    for group in range(groups):
        dots_TN = (codes[:, group] @ weights[:, group].T).astype(F32)
        total_TN = total_TN + scales_NG[:, group].astype(F32) * dots_TN
    return x_scales_T[:, None] * total_TN


def exponential(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, F32(-87.3), F32(88.0))
    shifted = x * F32(1.44269504) + F32(12582912)
    power = shifted - F32(12582912)
    rest = (x - power * F32(0.693359375)) - power * F32(-2.12194440e-4)
    total = np.full_like(x, F32(1.98756915e-4))
    for term in (1.39819995e-3, 8.33345191e-3, 4.16657959e-2, 1.66666655e-1, 5.00000012e-1):
        total = total * rest + F32(term)
    total = (total * (rest * rest) + rest) + F32(1)
    return np.ldexp(total, power.astype(np.int32))


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return gate / (F32(1) + exponential(-gate)) * up


def interleaved(gate_NK: np.ndarray, up_NK: np.ndarray, block: int) -> np.ndarray:
    """Rows of gate and of up in turn, by blocks."""
    pairs = np.stack([gate_NK.reshape(-1, block, gate_NK.shape[1]), up_NK.reshape(-1, block, up_NK.shape[1])], axis=1)
    return pairs.reshape(-1, gate_NK.shape[1])


def random_matrix(
    random: np.random.Generator, shape: tuple[int, int, int], bits: int, group: int, *, extreme: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Integers (E, N, K) and scales (E, N, G); `extreme` takes only the ends of their range."""
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    q = random.choice([low, high], shape) if extreme else random.integers(low, high + 1, shape)
    kind, groups = (np.float16, shape[2] // group) if bits == 4 else (np.float32, 1)
    return q, random.uniform(1e-3, 2e-2, (*shape[:2], groups)).astype(kind)
