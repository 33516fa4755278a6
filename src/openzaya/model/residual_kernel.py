"""RMSNorm and residual scaling as Triton kernels, forward and backward, for CUDA and ROCm.

Written out in torch, either passes a dozen times over numbers that are read once here. What is computed is that of
`residual`, in float32 between what is read and what is written. Sums for weights are taken over fixed runs of tokens,
and over these in order, so no gradient depends on the run.

T tokens of a run, D hidden.
"""

# Triton's language has no types that a checker knows.
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_RUNS = 1024
"""Of tokens, at most: each has its own sums for weights."""
_WARPS = 8


def kernel_norm(x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """`x` (..., D) over its root mean square, times `weight`, in the dtype of `weight`."""
    output: Tensor = _Norm.apply(x, weight_D, epsilon)
    return output


def kernel_scaling(
    output: Tensor, residual: Tensor, scale_D: Tensor, bias_D: Tensor, residual_scale_D: Tensor, residual_bias_D: Tensor
) -> Tensor:
    """(output + bias) * scale + (residual + residual_bias) * residual_scale, (..., D), float32."""
    merged: Tensor = _Scaling.apply(output, residual, scale_D, bias_D, residual_scale_D, residual_bias_D)
    return merged


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(x, weight_D)
        ctx.epsilon = epsilon
        y = torch.empty(x.shape, dtype=weight_D.dtype, device=x.device)
        _launch(_norm, x, 1, (x.contiguous(), weight_D, y), epsilon)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D = ctx.saved_tensors
        to_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        sums_RD = torch.empty(_runs(x, _run(x)), x.shape[-1], device=x.device)
        _launch(
            _norm_gradient,
            x,
            _run(x),
            (x.contiguous(), weight_D, gradients[0].contiguous(), to_x, sums_RD),
            ctx.epsilon,
        )
        return to_x, sums_RD.sum(0).to(weight_D.dtype), None


class _Scaling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, residual: Tensor, *vectors: Tensor) -> Tensor:
        ctx.save_for_backward(output, residual, *vectors)
        merged = torch.empty(residual.shape, dtype=torch.float32, device=residual.device)
        _launch(_scaling, residual, 1, (output.contiguous(), residual.contiguous(), *vectors, merged))
        return merged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        output, residual, scale_D, bias_D, residual_scale_D, residual_bias_D = ctx.saved_tensors
        vectors = scale_D, bias_D, residual_scale_D, residual_bias_D
        to_output, to_residual = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (output, residual))
        sums_R3D = torch.empty(_runs(residual, _run(residual)), 3, residual.shape[-1], device=residual.device)
        read = (output.contiguous(), residual.contiguous(), *vectors, gradients[0].contiguous())
        _launch(_scaling_gradient, residual, _run(residual), (*read, to_output, to_residual, sums_R3D))
        total_D, to_scale_D, to_residual_scale_D = sums_R3D.sum(0)
        found = to_scale_D, total_D * scale_D, to_residual_scale_D, total_D * residual_scale_D
        return to_output, to_residual, *(each.to(vector.dtype) for each, vector in zip(found, vectors))


def _run(x: Tensor) -> int:
    """Tokens whose sums one program takes."""
    return max(1, triton.cdiv(x.numel() // x.shape[-1], _RUNS))


def _runs(x: Tensor, each: int) -> int:
    return triton.cdiv(x.numel() // x.shape[-1], each)


def _launch(kernel: Any, x: Tensor, each: int, tensors: tuple[Tensor, ...], *numbers: float) -> None:
    """A program for every `each` tokens of `x`."""
    width, runs = x.shape[-1], _runs(x, each)
    if runs:
        with torch.cuda.device_of(x):
            kernel[(runs,)](
                *tensors, *numbers, x.numel() // width, each, WIDTH=width, FILLED=triton.next_power_of_2(width),
                num_warps=_WARPS,
            )  # fmt: skip


@triton.jit
def _row(start, token, WIDTH: tl.constexpr, FILLED: tl.constexpr):
    place_D = tl.arange(0, FILLED)
    return tl.load(start + token * WIDTH + place_D, place_D < WIDTH, 0).to(tl.float32)


@triton.jit
def _put(start, token, value_D, WIDTH: tl.constexpr, FILLED: tl.constexpr):
    place_D = tl.arange(0, FILLED)
    tl.store(start + token * WIDTH + place_D, value_D.to(start.dtype.element_ty), place_D < WIDTH)


@triton.jit
def _norm(x, weight, y, epsilon, tokens, each, WIDTH: tl.constexpr, FILLED: tl.constexpr):
    run = tl.program_id(0)
    start = (run * each).to(tl.int64) * WIDTH
    x, y = x + start, y + start
    weight_D = _row(weight, 0, WIDTH, FILLED)
    for token in range(0, tl.minimum(each, tokens - run * each)):
        x_D = _row(x, token, WIDTH, FILLED)
        inverse = 1 / tl.sqrt(tl.sum(x_D * x_D, 0) / WIDTH + epsilon)
        _put(y, token, x_D * inverse * weight_D, WIDTH, FILLED)


@triton.jit
def _norm_gradient(
    x, weight, y_gradient, x_gradient, sums, epsilon, tokens, each, WIDTH: tl.constexpr, FILLED: tl.constexpr
):
    run = tl.program_id(0)
    start = (run * each).to(tl.int64) * WIDTH
    x, y_gradient, x_gradient = x + start, y_gradient + start, x_gradient + start
    weight_D = _row(weight, 0, WIDTH, FILLED)
    sum_D = tl.zeros((FILLED,), tl.float32)
    for token in range(0, tl.minimum(each, tokens - run * each)):
        x_D = _row(x, token, WIDTH, FILLED)
        inverse = 1 / tl.sqrt(tl.sum(x_D * x_D, 0) / WIDTH + epsilon)
        normed_D, gradient_D = x_D * inverse, _row(y_gradient, token, WIDTH, FILLED)
        sum_D += gradient_D * normed_D
        gradient_D *= weight_D
        along = tl.sum(gradient_D * normed_D, 0) / WIDTH
        _put(x_gradient, token, (gradient_D - normed_D * along) * inverse, WIDTH, FILLED)
    _put(sums, run, sum_D, WIDTH, FILLED)


@triton.jit
def _scaling(
    output, residual, scale, bias, residual_scale, residual_bias, merged, tokens, each,
    WIDTH: tl.constexpr, FILLED: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(0)
    start = (run * each).to(tl.int64) * WIDTH
    output, residual, merged = output + start, residual + start, merged + start
    scale_D, bias_D = _row(scale, 0, WIDTH, FILLED), _row(bias, 0, WIDTH, FILLED)
    residual_scale_D = _row(residual_scale, 0, WIDTH, FILLED)
    residual_bias_D = _row(residual_bias, 0, WIDTH, FILLED)
    for token in range(0, tl.minimum(each, tokens - run * each)):
        merged_D = (_row(output, token, WIDTH, FILLED) + bias_D) * scale_D
        merged_D += (_row(residual, token, WIDTH, FILLED) + residual_bias_D) * residual_scale_D
        _put(merged, token, merged_D, WIDTH, FILLED)


@triton.jit
def _scaling_gradient(
    output, residual, scale, bias, residual_scale, residual_bias, gradient, output_gradient, residual_gradient, sums,
    tokens, each, WIDTH: tl.constexpr, FILLED: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(0)
    start = (run * each).to(tl.int64) * WIDTH
    output, residual, gradient = output + start, residual + start, gradient + start
    output_gradient, residual_gradient = output_gradient + start, residual_gradient + start
    scale_D, bias_D = _row(scale, 0, WIDTH, FILLED), _row(bias, 0, WIDTH, FILLED)
    residual_scale_D = _row(residual_scale, 0, WIDTH, FILLED)
    residual_bias_D = _row(residual_bias, 0, WIDTH, FILLED)
    total_D = tl.zeros((FILLED,), tl.float32)
    scale_sum_D = tl.zeros((FILLED,), tl.float32)
    residual_sum_D = tl.zeros((FILLED,), tl.float32)
    for token in range(0, tl.minimum(each, tokens - run * each)):
        gradient_D = _row(gradient, token, WIDTH, FILLED)
        total_D += gradient_D
        scale_sum_D += gradient_D * (_row(output, token, WIDTH, FILLED) + bias_D)
        residual_sum_D += gradient_D * (_row(residual, token, WIDTH, FILLED) + residual_bias_D)
        _put(output_gradient, token, gradient_D * scale_D, WIDTH, FILLED)
        _put(residual_gradient, token, gradient_D * residual_scale_D, WIDTH, FILLED)
    _put(sums, run * 3, total_D, WIDTH, FILLED)
    _put(sums, run * 3 + 1, scale_sum_D, WIDTH, FILLED)
    _put(sums, run * 3 + 2, residual_sum_D, WIDTH, FILLED)
