"""Muon, AdamW, the schedule and balancing behind the faces that torchtitan knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer
from torchtitan.config import Configurable

from openzaya.train.balancing import AuxiliaryLoss, Balancer
from openzaya.train.schedule import rate_scale, warmup_steps
from openzaya.train.sharding.optimizer import ShardedMuonAdamW
from openzaya.train.titan.model import TitanZaya
from openzaya.train.titan.recipe import Assigned, Assignment

_STEPS, _BALANCING_STEPS = "steps", "balancing.steps"


class RecipeOptimizers(OptimizersContainer):
    """`ShardedMuonAdamW` of the recipe. `scale` is the share of the recipe's rates that a step takes."""

    @dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        assignment: Assigned = None

    def __init__(self, config: Config, *, model_parts: Sequence[nn.Module]) -> None:
        (model,) = model_parts
        assert isinstance(model, TitanZaya)
        assignment: Assignment = config.assignment
        self.model_parts = list(model_parts)
        self.optimizers: list[Any] = []
        self.recipe = assignment.run.config.optimizer
        self.inner = ShardedMuonAdamW(model, self.recipe, assignment.meshes)
        self.balancer: Balancer | None = None
        self.scale = 0.0
        self.entropies: Sequence[float] = ()
        """Load entropy of each layer at the last step; 1 is balanced."""
        self._post_init([parameter for parameter in model.parameters() if parameter.requires_grad])

    def __len__(self) -> int:
        return 1

    def clip(self) -> float:
        """Clip to the recipe's norm, taken over all ranks and over experts that lie apart; the norm before."""
        return self.inner.clip()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update from the gradients that `clip` has taken up."""
        self.inner.step(self.scale)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.forget()

    def forget(self) -> None:
        """Drop gradients and counts, for a step that is not taken."""
        self.inner.forget()
        if self.balancer is not None:
            self.balancer.forget()

    def state_dict(self) -> dict[str, Any]:
        """Moments by name, and the state of balancing. Masters and biases are the model's own."""
        moments = {key: tensor for key, tensor in self.inner.state().items() if key.startswith("moment")}
        state = {**moments, _STEPS: self.inner.step_count}
        if self.balancer is not None:
            controller = self.balancer.controller
            state |= {"balancing.first": controller.first, "balancing.second": controller.second}
            state[_BALANCING_STEPS] = controller.step_count
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up the counts; tensors have been read into the memory of those of `state_dict` already."""
        self.inner.step_count = state_dict[_STEPS]
        if self.balancer is not None:
            self.balancer.controller.step_count = state_dict[_BALANCING_STEPS]


class RecipeSchedule(LRSchedulersContainer):
    """The rates of a phase, as a pure function of the step."""

    @dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        assignment: Assigned = None

        @property
        def warmup_steps(self) -> int:
            """What torchtitan's log shows."""
            return round(warmup_steps(self.assignment.phase))

    def __init__(self, config: Config, *, optimizers: RecipeOptimizers, training_steps: int) -> None:
        self.phase, self.optimizers = config.assignment.phase, optimizers
        self.schedulers: list[Any] = []
        self._go_to(0)

    def _go_to(self, step: int) -> None:
        self.step_number = step
        self.optimizers.scale = rate_scale(self.phase, step)

    def step(self) -> None:
        self._go_to(self.step_number + 1)

    def get_metrics(self) -> dict[str, float]:
        scale, recipe = self.optimizers.scale, self.optimizers.recipe
        rates = {"lr/AdamW": recipe.adamw_rate * scale}
        return rates | ({"lr/Muon": recipe.muon_rate * scale} if recipe.matrices == "muon" else {})

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step_number}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._go_to(state_dict["step"])


def register_balancing(optimizers: RecipeOptimizers, model_parts: Sequence[nn.Module], _parallel_dims: Any) -> None:
    """Have the balancing biases move behind each step of the optimizers, by the routing of all ranks in that step."""
    (model,) = model_parts
    assert isinstance(model, TitanZaya)
    recipe, meshes = model.assignment.run.config, model.assignment.meshes
    balancer = Balancer(model, recipe.optimizer.balancing_rate, recipe.balancing)
    balancer.total = meshes.sum
    model.balancer = optimizers.balancer = balancer
    if recipe.balancing.method == "auxiliary":
        model.auxiliary = AuxiliaryLoss(model, recipe.balancing.auxiliary_weight)
        model.auxiliary.total = meshes.sum_of_rows

    def balance(_optimizers: object, _arguments: object, _keywords: object) -> None:
        optimizers.entropies = balancer.step(min(1.0, optimizers.scale))

    optimizers.register_step_post_hook(balance)
