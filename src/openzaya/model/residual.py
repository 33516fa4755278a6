"""Learned residual scaling and RMSNorm (ZAYA1-8B report, equation 6).

B batch, S sequence, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openzaya.model import kernels
from openzaya.model.numerics import Numerics


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, statistics in float32."""

    def __init__(self, size: int, eps: float, numerics: Numerics) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.numerics = numerics

    def forward(self, x_BSD: Tensor) -> Tensor:
        if kernels.has_kernels(x_BSD):
            from openzaya.model.residual_kernel import kernel_norm

            return kernel_norm(x_BSD, self.weight, self.eps)
        x_float = x_BSD.float()
        normed = x_float * torch.rsqrt(x_float.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.numerics.lift:
            return (self.weight.float() * normed).to(self.weight.dtype)
        # Multiplying after the cast is what transformers does; it matters in bfloat16.
        return self.weight * normed.to(self.weight.dtype)


class ResidualScaling(nn.Module):
    """Merges a block's output into the float32 residual stream, each scaled and shifted by learned vectors.

    The released code adds the bias before it scales; the report writes it the other way round. Checkpoints follow the
    code.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.hidden_states_scale = nn.Parameter(torch.empty(size))
        self.hidden_states_bias = nn.Parameter(torch.empty(size))
        self.residual_scale = nn.Parameter(torch.empty(size))
        self.residual_bias = nn.Parameter(torch.empty(size))

    def forward(self, output_BSD: Tensor, residual_BSD: Tensor) -> Tensor:
        if kernels.has_kernels(residual_BSD):
            from openzaya.model.residual_kernel import kernel_scaling

            vectors = self.hidden_states_scale, self.hidden_states_bias, self.residual_scale, self.residual_bias
            return kernel_scaling(output_BSD, residual_BSD, *vectors)
        output_BSD = (output_BSD + self.hidden_states_bias) * self.hidden_states_scale
        residual_BSD = (residual_BSD + self.residual_bias) * self.residual_scale
        return output_BSD + residual_BSD
