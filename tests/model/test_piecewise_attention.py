"""Attention that learns on a CPU, in pieces of a row, beside torch's fused attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openzaya.model import piecewise
from openzaya.model.attention import attend

HEADS = [(4, 2), (6, 1), (3, 3)]
BATCH, CHANNELS = 3, 16


def drawn(count: int, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, count, length, CHANNELS, generator=generator, dtype=torch.float64).requires_grad_()


def documents(length: int) -> Tensor:
    """Rows of short documents, of two, and of one, (B, 1, S, S)."""
    numbers = torch.arange(length) // torch.tensor([5, 30, 10_000])[:, None]
    return (numbers[:, :, None] == numbers[:, None, :]).tril()[:, None]


def fused(inputs: tuple[Tensor, ...], mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=True)


def gradients(output: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.autograd.grad(output, inputs, upstream.to(output.dtype))


@pytest.mark.parametrize("kept", [0, 10**9], ids=["computed again", "kept"])
@pytest.mark.parametrize("spare", [0, 10], ids=["row by row", "rows together"])
@pytest.mark.parametrize("packed", [False, True], ids=["one document a row", "packed"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_values_and_gradients_are_those_of_the_fused_attention(heads, packed, dtype, spare, kept, monkeypatch):
    for name, value in (("PIECE", 8), ("SPARE", spare), ("KEPT", kept)):
        monkeypatch.setattr(piecewise, name, value)
    length = 37
    exact = drawn(heads[0], length, 0), drawn(heads[1], length, 1), drawn(heads[1], length, 2)
    mask = documents(length) if packed else None
    causal = torch.ones(length, length, dtype=torch.bool).tril() if mask is None else mask
    truth = fused(exact, causal)
    given = tuple(part.detach().to(dtype).requires_grad_() for part in exact)
    found = attend(*given, mask)
    near = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.06}
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), truth, **near)
    for ours, theirs in zip(gradients(found, given), gradients(truth, exact), strict=True):
        torch.testing.assert_close(ours.double(), theirs, **near)


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("piece", [1, 4, 7, 64])
@pytest.mark.parametrize("spare", [0, 12, 50])
def test_pieces_see_what_any_mask_says_be_it_a_window_or_keys_of_other_ranks(heads, piece, spare, monkeypatch):
    monkeypatch.setattr(piecewise, "PIECE", piece)
    monkeypatch.setattr(piecewise, "SPARE", spare)
    length, keys = 20, 50
    inputs = drawn(heads[0], length, 3), drawn(heads[1], keys, 4), drawn(heads[1], keys, 5)
    places, all_places = torch.arange(length)[:, None] + torch.tensor([0, 11, 30])[:, None, None], torch.arange(keys)
    window = (all_places <= places) & (all_places > places - 6)
    some = torch.rand(BATCH, 1, length, keys, generator=torch.Generator().manual_seed(6)) < 0.1
    some[..., 17] = True
    for mask in (window[:, None], some, some[:1]):
        found, truth = piecewise.PiecewiseAttention.apply(*inputs, mask), fused(inputs, mask)
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)
        for ours, theirs in zip(gradients(found, inputs), gradients(truth, inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_piece_of_one_row_reads_no_key_that_none_of_its_queries_sees(monkeypatch):
    monkeypatch.setattr(piecewise, "PIECE", 10)
    monkeypatch.setattr(piecewise, "SPARE", 0)
    inputs = drawn(2, 40, 7), drawn(1, 40, 8), drawn(1, 40, 9)
    mask = documents(40)
    with torch.no_grad():
        for part in inputs[1:]:
            part[0, :, 30:] = float("nan")
            part[1, :, :30] = float("nan")
    found = piecewise.PiecewiseAttention.apply(*inputs, mask)
    assert torch.isfinite(found[0, :, :30]).all()
    assert torch.isfinite(found[1, :, 30:]).all()
