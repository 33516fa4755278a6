"""Keeping the experts equally busy without an auxiliary loss (ZAYA1-8B report, equation 5).

The gradient of a balancing bias is the share of the batch's tokens that its expert got, minus an equal share; AdamW
takes it from there. AdamW's rate, betas and decay for the biases are not published; ours are in the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.router import Router

_BETAS = (0.9, 0.99)


class Balancer:
    """Updates the balancing biases of every layer once a step, from all tokens of the step.

    Shares range over the E experts; the skip class keeps its bias of -1.
    """

    def __init__(self, model: ZayaForCausalLM, rate: float) -> None:
        self.biases: list[Tensor] = [
            module.balancing_biases for module in model.modules() if isinstance(module, Router)
        ]
        self.rate = rate
        self.step_count = 0
        experts = model.config.num_experts
        self.first = torch.zeros(len(self.biases), experts)
        self.second = torch.zeros_like(self.first)
        self.counts = torch.zeros_like(self.first)

    def count(self, chosen: Sequence[Tensor]) -> None:
        """Add the routing of one forward: the class of every token, layer by layer."""
        experts = self.counts.shape[1]
        for layer, classes in enumerate(chosen):
            self.counts[layer] += torch.bincount(classes.flatten(), minlength=experts + 1)[:experts]

    def shares(self) -> Tensor:
        """Share of the counted tokens that each expert got, (layers, E)."""
        return self.counts / self.counts.sum(dim=1, keepdim=True).clamp_min(1)

    @torch.no_grad()
    def step(self, scale: float) -> float:
        """Move the biases, forget the counts, and return the mean load entropy over layers (1 is balanced)."""
        shares = self.shares()
        self.step_count += 1
        gradient = shares - 1 / shares.shape[1]
        self.first.lerp_(gradient, 1 - _BETAS[0])
        self.second.lerp_(gradient.square(), 1 - _BETAS[1])
        corrected = self.first / (1 - _BETAS[0] ** self.step_count)
        spread = (self.second / (1 - _BETAS[1] ** self.step_count)).sqrt() + 1e-8
        for bias, update in zip(self.biases, corrected / spread):
            bias[:-1] -= self.rate * scale * update
        self.counts.zero_()
        return load_entropy(shares)

    def state(self) -> dict[str, Tensor]:
        biases = {f"balancing.bias{layer}": bias for layer, bias in enumerate(self.biases)}
        return {"balancing.first": self.first, "balancing.second": self.second, **biases}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], step_count: int) -> None:
        for key, tensor in self.state().items():
            tensor.copy_(tensors[key])
        self.step_count = step_count


def load_entropy(shares: Tensor) -> float:
    """Entropy of the loads over its largest value, ln E, averaged over layers; the report asks for 0.99."""
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum(dim=1) / math.log(shares.shape[1])
    return float(entropy.mean())
