from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from openzaya.train.loss import chunk_tokens, linear_cross_entropy


def draw(seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sizes, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    tokens, hidden, vocabulary = sizes.randint(1, 70), sizes.randint(1, 40), sizes.randint(2, 90)
    states = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return states.requires_grad_(), weight.requires_grad_(), targets


def gradients(loss: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_loss_and_gradients_are_those_of_whole_logits_whatever_the_chunk(seed: int, chunk: int) -> None:
    states, weight, targets = draw(seed)
    fused = linear_cross_entropy(states, weight, targets, scale=0.3, chunk=chunk)
    whole = F.cross_entropy(F.linear(states.double(), weight.double()), targets, reduction="sum") * 0.3
    torch.testing.assert_close(fused.double(), whole, rtol=1e-5, atol=1e-5)
    for ours, truth in zip(gradients(2 * fused, states, weight), gradients(2 * whole, states, weight), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lift", [False, True])
def test_in_bfloat16_chunks_stay_near_the_float64_truth_and_lifting_brings_them_nearer(lift: bool) -> None:
    states, weight, targets = draw(5, torch.bfloat16)
    truth = F.cross_entropy(F.linear(states.double(), weight.double()), targets, reduction="sum")
    found = linear_cross_entropy(states, weight, targets, lift=lift, chunk=5)
    error = abs(found.item() - truth.item())
    assert error < truth.item() * (1e-6 if lift else 5e-3)
    for ours, exact in zip(gradients(found, states, weight), gradients(truth, states, weight), strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours.double() - exact).norm() / exact.norm()) < 0.02


def test_one_chunk_gives_the_bits_of_torch() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        states, weight, targets = draw(3, dtype)
        ours = gradients(linear_cross_entropy(states, weight, targets, scale=1 / 7), states, weight)
        logits = F.linear(states, weight).float()
        theirs = gradients(F.cross_entropy(logits, targets, reduction="sum") / 7, states, weight)
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_without_gradients_the_loss_is_the_same() -> None:
    states, weight, targets = draw(8)
    with torch.no_grad():
        plain = linear_cross_entropy(states, weight, targets, scale=0.5, chunk=3)
    torch.testing.assert_close(plain, linear_cross_entropy(states, weight, targets, scale=0.5).detach())


def test_a_frozen_head_gets_no_gradient_and_no_tokens_give_zeros() -> None:
    states, weight, targets = draw(4)
    found = linear_cross_entropy(states, weight.detach(), targets)
    assert found.grad_fn.saved_tensors[1] is None  # type: ignore[union-attr]
    (gradient,) = gradients(found, states)
    torch.testing.assert_close(gradient, gradients(linear_cross_entropy(states, weight, targets), states)[0])
    none = gradients(linear_cross_entropy(states[:0], weight, targets[:0]), weight)[0]
    assert none.shape == weight.shape
    assert not none.any()


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made inside."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_no_tensor_as_large_as_the_logits_ever_exists_forward_or_backward() -> None:
    states, weight = torch.randn(400, 8, requires_grad=True), torch.randn(500, 8, requires_grad=True)
    targets = torch.randint(0, 500, (400,))
    with Largest() as fused:
        linear_cross_entropy(states, weight, targets, chunk=10).backward()
    with Largest() as whole:
        F.cross_entropy(F.linear(states, weight), targets).backward()
    assert whole.elements == 400 * 500
    assert fused.elements <= 5_000


def test_a_chunk_has_few_scores_on_a_processor_and_enough_tokens_for_any_vocabulary() -> None:
    assert chunk_tokens(512, "cpu") * 512 == 1 << 21
    assert chunk_tokens(262_272, "cpu") == 256
    assert 512 < chunk_tokens(262_272, "cuda") <= 1_024
