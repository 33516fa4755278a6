"""Keeping the experts equally busy without an auxiliary loss (ZAYA1-8B report, equation 5), and what that is against.

The gradient of a balancing bias is the share of the batch's tokens that its expert got, minus an equal share; AdamW
takes it from there. AdamW's rate, betas and decay for the biases are not published; ours are in the recipe. The named
alternatives move the biases by the same error in another way, or leave them and add a loss.

L layers, E experts, T tokens. Shares range over the E experts; the skip class keeps its bias of -1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.router import Router
from openzaya.train.config import BalancingRecipe


@dataclass(slots=True)
class Controller:
    """A rule from the error of a step, p - 1/E (L, E), to the change of the biases; two tensors are all it keeps."""

    recipe: BalancingRecipe
    rate: float
    first: Tensor
    """Mean of the errors (adamw), or the error of the last step (pid)."""
    second: Tensor
    """Mean of their squares (adamw), or the error of the step before that (pid)."""
    step_count: int = 0

    def change(self, error_LE: Tensor, scale: float) -> Tensor:
        """What to add to the biases at `scale` times the rate; moves the controller on."""
        self.step_count += 1
        match self.recipe.method:
            case "adamw":
                return self._adamw(error_LE, self.rate * scale)
            case "sign":
                return error_LE.sign() * -(self.rate * scale)
            case "pid":
                return self._pid(error_LE * error_LE.shape[1])
            case _:
                return torch.zeros_like(error_LE)

    def _adamw(self, gradient_LE: Tensor, rate: float) -> Tensor:
        beta1, beta2 = self.recipe.betas
        self.first.lerp_(gradient_LE, 1 - beta1)
        self.second.lerp_(gradient_LE.square(), 1 - beta2)
        corrected = self.first / (1 - beta1**self.step_count)
        spread = (self.second / (1 - beta2**self.step_count)).sqrt() + 1e-8
        return (corrected / spread).mul_(-rate)

    def _pid(self, error_LE: Tensor) -> Tensor:
        # As changes, so that the biases of a checkpoint are where it starts from; rates do not scale it.
        proportional, integral, derivative = self.recipe.gains
        before = error_LE - self.first
        bend = before - (self.first - self.second)
        self.second.copy_(self.first)
        self.first.copy_(error_LE)
        return (proportional * before + integral * error_LE + derivative * bend).neg_()


class Balancer:
    """Updates the balancing biases of every layer once a step, from all tokens of the step."""

    def __init__(self, model: ZayaForCausalLM, rate: float, recipe: BalancingRecipe | None = None) -> None:
        self.recipe = recipe or BalancingRecipe()
        self.biases: list[Tensor] = [bias for name, bias in model.named_buffers() if name.endswith("balancing_biases")]
        device = self.biases[0].device
        self.counts = torch.zeros(len(self.biases), model.config.num_experts, device=device)
        self.controller = Controller(self.recipe, rate, torch.zeros_like(self.counts), torch.zeros_like(self.counts))
        self.total: Callable[[Tensor], Tensor] = lambda counts: counts
        """Sum of the counts over all ranks of the batch; one rank has them all."""

    def count(self, chosen: Sequence[Tensor]) -> None:
        """Add the routing of one forward: the class of every token, layer by layer."""
        experts = self.counts.shape[1]
        for layer, classes in enumerate(chosen):
            self.counts[layer] += torch.bincount(classes.flatten(), minlength=experts + 1)[:experts]

    def forget(self) -> None:
        """Drop what was counted, for a step that is not taken."""
        self.counts.zero_()

    def shares(self) -> Tensor:
        """Share of the counted tokens that each expert got, (L, E)."""
        counts = self.total(self.counts)
        return counts / counts.sum(dim=1, keepdim=True).clamp_min(1)

    @torch.no_grad()
    def step(self, scale: float) -> list[float]:
        """Move the biases, forget the counts, and return the load entropy of each layer (1 is balanced)."""
        shares = self.shares()
        change = self.controller.change(shares - 1 / shares.shape[1], scale)
        for bias, update in zip(self.biases, change):
            bias[:-1] += update
        self.forget()
        return load_entropies(shares)

    def state(self) -> dict[str, Tensor]:
        """Controller and biases by name, for a checkpoint."""
        biases = {f"balancing.bias{layer}": bias for layer, bias in enumerate(self.biases)}
        return {"balancing.first": self.controller.first, "balancing.second": self.controller.second, **biases}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], step_count: int) -> None:
        for key, tensor in self.state().items():
            tensor.copy_(tensors[key])
        self.controller.step_count = step_count


def load_entropies(shares_LE: Tensor) -> list[float]:
    """Entropy of each layer's loads over its largest value, ln E; the report asks for 0.99."""
    entropy_L = -(shares_LE * shares_LE.clamp_min(1e-12).log()).sum(dim=1) / math.log(shares_LE.shape[1])
    return [float(entropy) for entropy in entropy_L]


# ---- the auxiliary loss ----


def auxiliary_loss(probability_TE: Tensor, share_E: Tensor) -> Tensor:
    """E times the sum over experts of their share and their mean probability (Switch Transformer, equation 4).

    `probability_TE` may have the skip class behind the E experts of `share_E`; it is left out.
    """
    experts = share_E.shape[0]
    return experts * (share_E * probability_TE[:, :experts].mean(dim=0)).sum()


class AuxiliaryLoss:
    """Adds the gradient of the auxiliary loss of each layer to what flows back into its router.

    It acts on the scores of a router when their gradient comes by, so it reaches the backward once a forward, however
    often a block is computed again.
    """

    def __init__(self, model: ZayaForCausalLM, weight: float) -> None:
        self.weight = weight
        self.real_T: Tensor | None = None
        """Which tokens of the coming forward count: not padding."""
        self.part = 1.0
        """Of the step, that the coming forward is."""
        self.total: Callable[[Tensor], Tensor] = lambda counts: counts
        """Sum of counts over the ranks that share the rows of a forward; shares are those of all its tokens."""
        for module in model.modules():
            if isinstance(module, Router):
                scores = module.router_mlp
                scores.register_forward_hook(self._hook(module))

    def _hook(self, router: Router) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, scores_TE: Tensor) -> None:
            if not scores_TE.requires_grad:
                return
            real_T = torch.ones_like(scores_TE[:, 0]) if self.real_T is None else self.real_T.to(scores_TE.dtype)
            part, kept_TE = self.part, scores_TE.detach()
            scores_TE.register_hook(
                lambda gradient_TE: gradient_TE + self._gradient(kept_TE, router, real_T).to(gradient_TE) * part
            )

        return hook

    def _gradient(self, scores_TE: Tensor, router: Router, real_T: Tensor) -> Tensor:
        with torch.enable_grad():
            scores_TE = scores_TE.float().requires_grad_()
            probability_TE = scores_TE.softmax(dim=-1)
            kept = real_T.bool()
            chosen_T = (probability_TE.detach() + router.balancing_biases).argmax(dim=-1)[kept]
            experts = scores_TE.shape[1] - 1
            counts_E = self.total(torch.bincount(chosen_T, minlength=experts + 1)[:experts])
            loss = auxiliary_loss(probability_TE[kept], counts_E / counts_E.sum().clamp_min(1))
            (gradient_TE,) = torch.autograd.grad(loss * self.weight, scores_TE)
        return gradient_TE
