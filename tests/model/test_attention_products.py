"""Attention that learns on a CPU, by plain products, beside torch's fused attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from openzaya.model.attention import attend


@pytest.mark.parametrize("packed", [False, True], ids=["one document a row", "packed"])
@pytest.mark.parametrize("heads", [(4, 2), (6, 1), (3, 3)], ids=str)
def test_values_and_gradients_are_those_of_the_fused_attention(heads, packed):
    generator = torch.Generator().manual_seed(0)
    batch, length, channels = 3, 37, 16

    def drawn(count):
        return torch.randn(batch, count, length, channels, generator=generator, dtype=torch.float64).requires_grad_()

    inputs = drawn(heads[0]), drawn(heads[1]), drawn(heads[1])
    mask = None
    if packed:
        documents = torch.arange(length) // torch.tensor([5, 11, 40])[:, None]
        mask = (documents[:, :, None] == documents[:, None, :]).tril()[:, None]
    upstream = torch.randn(batch, heads[0], length, channels, generator=generator, dtype=torch.float64)
    causal = torch.ones(length, length, dtype=torch.bool).tril() if mask is None else mask
    fused = F.scaled_dot_product_attention(*inputs, attn_mask=causal, enable_gqa=True)
    found = attend(*inputs, mask)
    torch.testing.assert_close(found, fused, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(output, inputs, upstream) for output in (found, fused))):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
