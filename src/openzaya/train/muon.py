"""Muon on matrices, AdamW on everything else, over float32 master weights.

Muon steps along the orthogonalised momentum (Newton-Schulz iteration, Jordan 2024), scaled so that its update has the
root mean square of an AdamW step (0.2 * sqrt(max(rows, columns)), Liu et al. 2025), so both share a rate. ZAYA1 uses it
in every phase (report, section III), with AdamW on embeddings, convolutions, norms, scales and temperatures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from openzaya.train.config import OptimizerRecipe

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration; they push every singular value into about 0.7 to 1.2 within five steps."""


@cache
def iteration_dtype(device: str) -> torch.dtype:
    """What a kind of device iterates in: bfloat16, but for processors that would have to emulate it."""
    emulated = device == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.float32 if emulated else torch.bfloat16


def orthogonalise(matrix: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly, of each matrix in a stack (..., rows, columns)."""
    x = matrix.to(dtype or iteration_dtype(matrix.device.type))
    wide = x.shape[-2] <= x.shape[-1]
    if not wide:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrix.dtype)


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon trains this parameter: linear weights and expert stacks, no embedding, head or convolution.

    Nor an adapter: what its two factors do lies in their product, which orthogonal steps of each know nothing of.
    """
    apart = ("embed_tokens", "lm_head", "conv_qk", "lora_")
    return parameter.ndim >= 2 and not any(part in name for part in apart)


def is_router(name: str) -> bool:
    """Whether this parameter belongs to a router, which learns at a share of the rates."""
    return ".mlp.gate." in name


@dataclass(slots=True)
class _Slot:
    """One parameter: the model's own tensor, its float32 master, and its moments."""

    parameter: nn.Parameter
    master: Tensor
    moments: tuple[Tensor, ...]
    matrix: bool
    decays: bool
    share: float
    """Of the recipe's rates."""


class MuonAdamW:
    """Both optimizers as one, with the state of each parameter in plain tensors that a checkpoint can hold."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], recipe: OptimizerRecipe) -> None:
        self.recipe = recipe
        self.step_count = 0
        self.slots: dict[str, _Slot] = {}
        for name, parameter in parameters:
            if not parameter.requires_grad:
                continue
            matrix = is_matrix(name, parameter) and recipe.matrices == "muon"
            # Scales, norms, biases and convolutions have their own resting values.
            decays = is_matrix(name, parameter) or (parameter.ndim == 2 and "conv_qk" not in name)
            master = self._master(name, parameter)
            moments = tuple(torch.zeros_like(master) for _ in range(1 if matrix else 2))
            share = recipe.router_share if is_router(name) else 1.0
            self.slots[name] = _Slot(parameter, master, moments, matrix, decays, share)

    def _master(self, name: str, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().float().clone()

    def forget(self) -> None:
        """Drop all gradients, for a step that is not taken."""
        for slot in self.slots.values():
            slot.parameter.grad = None

    def clip(self) -> float:
        """Scale all gradients so that their joint norm is at most the recipe's; returns the norm before."""
        gradients = [slot.parameter.grad for slot in self.slots.values() if slot.parameter.grad is not None]
        squares = [gradient.float().pow(2).sum() for gradient in gradients]
        norm = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
        if norm > self.recipe.clip:
            for gradient in gradients:
                gradient.mul_(self.recipe.clip / norm)
        return norm

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Update every parameter that has a gradient, at `scale` times the recipe's rates, and clear gradients."""
        self.step_count += 1
        for slot in self.slots.values():
            gradient = slot.parameter.grad
            if gradient is None:
                continue
            if slot.matrix:
                self._muon(slot, gradient.float(), self.recipe.muon_rate * slot.share * scale)
            else:
                self._adamw(slot, gradient.float(), self.recipe.adamw_rate * slot.share * scale)
            slot.parameter.copy_(slot.master)
            slot.parameter.grad = None

    def _muon(self, slot: _Slot, gradient: Tensor, rate: float) -> None:
        (momentum,) = slot.moments
        momentum.lerp_(gradient, 1 - self.recipe.momentum)
        direction = orthogonalise(gradient.lerp(momentum, self.recipe.momentum), self.recipe.newton_schulz_steps)
        size = self.recipe.matched_size * max(slot.master.shape[-2:]) ** 0.5
        slot.master.mul_(1 - rate * self.recipe.weight_decay).add_(direction, alpha=-rate * size)

    def _adamw(self, slot: _Slot, gradient: Tensor, rate: float) -> None:
        first, second = slot.moments
        beta1, beta2 = self.recipe.betas
        first.lerp_(gradient, 1 - beta1)
        second.lerp_(gradient.square(), 1 - beta2)
        corrected = first / (1 - beta1**self.step_count)
        spread = (second / (1 - beta2**self.step_count)).sqrt_().add_(1e-8)
        if slot.decays:
            slot.master.mul_(1 - rate * self.recipe.weight_decay)
        slot.master.sub_(corrected.div_(spread), alpha=rate)

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name, for a checkpoint."""
        tensors = {}
        for name, slot in self.slots.items():
            tensors[f"master.{name}"] = slot.master
            for index, moment in enumerate(slot.moments):
                tensors[f"moment{index}.{name}"] = moment
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], step_count: int) -> None:
        """Take up `state()` of an equal optimizer, and set the model's parameters to the masters."""
        for key, tensor in self.state().items():
            tensor.copy_(tensors[key])
        for slot in self.slots.values():
            slot.parameter.copy_(slot.master)
        self.step_count = step_count
