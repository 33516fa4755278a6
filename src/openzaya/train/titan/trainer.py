"""torchtitan's trainer with the step of our own loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss
from torchtitan.distributed import utils as dist_utils
from torchtitan.tools.logging import logger
from torchtitan.trainer import Trainer

from openzaya.train.loss import linear_cross_entropy
from openzaya.train.titan.batches import FOLLOWING, RecipeBatches
from openzaya.train.titan.checkpoints import PhaseCheckpoints
from openzaya.train.titan.held_out import HeldOutLoss
from openzaya.train.titan.model import TitanZaya
from openzaya.train.titan.optimizer import RecipeOptimizers, RecipeSchedule
from openzaya.train.titan.recipe import Assignment, follow

if not hasattr(torch.distributed, "set_timeout"):
    # torchtitan 0.3.0 calls it by the name that it has from torch 2.14 on.
    torch.distributed.set_timeout = torch.distributed.distributed_c10d._set_pg_timeout  # type: ignore[attr-defined]


class TokenLoss(BaseLoss):
    """A rank's share of the mean negative log-likelihood of a learned token, in nats."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        pass

    def __init__(self, config: Config, **_others: Any) -> None:
        self.model: TitanZaya | None = None
        """Whose head scores tokens; the trainer gives it when there is one."""

    def __call__(
        self, pred: Tensor, labels: Tensor, global_valid_tokens: Tensor, **_others: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """From hidden states (B, S, D) and labels (B, S) to the loss and no figures."""
        assert self.model is not None
        learned = labels != IGNORE_INDEX
        lift = self.model.numerics.lift
        scale = 1 / max(1, int(global_valid_tokens))
        return linear_cross_entropy(pred[learned], self.model.head, labels[learned], scale=scale, lift=lift), {}


class ZayaTrainer(Trainer):
    """Its step has as many microbatches as the data of the step, the gradient norm is over experts that lie on
    different ranks too, and a step whose loss or gradient is not finite changes nothing."""

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        recipe: str = ""
        """The recipe (TOML), as `openzaya train` takes it: model, data, rates, sharding."""
        phase: str = ""
        """The phase of the recipe that is trained; the first where not given."""
        optimizer: RecipeOptimizers.Config = field(default_factory=RecipeOptimizers.Config)
        lr_scheduler: RecipeSchedule.Config = field(default_factory=RecipeSchedule.Config)
        dataloader: RecipeBatches.Config = field(default_factory=RecipeBatches.Config)
        checkpoint: PhaseCheckpoints.Config = field(default_factory=PhaseCheckpoints.Config)
        loss: TokenLoss.Config = field(default_factory=TokenLoss.Config)
        validator: HeldOutLoss.Config = field(default_factory=HeldOutLoss.Config)

        def __post_init__(self) -> None:
            Trainer.Config.__post_init__(self)
            # torchtitan makes one without any option first, to fill the options in.
            if self.recipe:
                follow(self, Assignment.of(self.recipe, self.phase, self.dump_folder))

    def __init__(self, config: Config) -> None:
        if not config.recipe:
            raise ValueError("nothing says what to train; name a recipe with --recipe FILE.toml")
        super().__init__(config)
        (self.model,) = self.model_parts
        self.loss_fn.model = self.model
        self.bad = 0
        """Steps in a row that came to nothing."""

    def post_dataloading_process(
        self, input_dict: dict[str, Any], labels: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Whole rows go in, and labels are those of this rank's part: the model itself knows about parts."""
        inputs, labels = input_dict["input"], labels[:, self.model.places(labels.shape[1])]
        self.ntokens_seen += labels.numel()
        return inputs, labels, {name: given for name, given in input_dict.items() if name != "input"}

    def train_step(self, data_iterator: Iterator[tuple[dict[str, Any], Tensor]]) -> None:
        """One update of weights and biases, or none on any rank."""
        self.optimizers.zero_grad()
        rates = self.lr_schedulers.get_metrics()
        microbatches = self._microbatches(data_iterator)
        learned = sum(int((labels != IGNORE_INDEX).sum()) for _inputs, labels in microbatches)
        totals = torch.tensor([learned, sum(int(inputs["real"].sum()) for inputs, _labels in microbatches)])
        if self.parallel_dims.dp_enabled:
            totals = dist_utils.dist_sum_tensor(totals.to(self.device), self.parallel_dims.get_mesh("batch"))
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for inputs, labels in microbatches:
            on_device: dict[str, Any] = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            on_device["real_in_step"] = int(totals[1])
            loss += self.forward_backward_step(
                input_dict=on_device, labels=labels.to(self.device), global_valid_tokens=totals[0]
            ).detach()
        whole = float(self.model.assignment.meshes.sum(loss))
        norm = self.optimizers.clip()
        self.checkpointer.maybe_wait_for_staging()
        if math.isfinite(whole) and math.isfinite(norm):
            self.bad = 0
            self.optimizers.step()
        else:
            self._pass_over(whole, norm)
        self.lr_schedulers.step()
        if self.metrics_processor.should_log(self.step) or self.step == self.config.training.steps:
            parts = (labels[:, self.model.places(labels.shape[1])] for _inputs, labels in microbatches)
            own = sum(int((labels != IGNORE_INDEX).sum()) for labels in parts)
            self._log(whole, float(loss) * int(totals[0]) / max(1, own), norm, rates)

    def _microbatches(
        self, data_iterator: Iterator[tuple[dict[str, Any], Tensor]]
    ) -> list[tuple[dict[str, Tensor], Tensor]]:
        microbatches, following = [], 1
        while following:
            inputs, labels = next(data_iterator)
            following = inputs.pop(FOLLOWING)
            microbatches.append((inputs, labels))
        return microbatches

    def _pass_over(self, loss: float, norm: float) -> None:
        self.optimizers.forget()
        self.bad += 1
        logger.warning(f"step {self.step} is passed over: its loss is {loss:.4g} and its gradient {norm:.4g}")
        if self.bad == self.model.assignment.run.config.bad_steps:
            raise RuntimeError(
                f"{self.bad} steps in a row up to step {self.step} have no finite loss; lower the rates or lengthen "
                "the warm-up, or launch again to try once more from the newest checkpoint"
            )

    def _log(self, loss: float, own_loss: float, norm: float, rates: dict[str, float]) -> None:
        """`own_loss` is the mean over this rank's tokens."""
        largest = torch.tensor(own_loss, dtype=torch.float64, device=self.device)
        seen = torch.tensor(self.ntokens_seen, device=self.device)
        meshes, entropies = self.model.assignment.meshes, self.optimizers.entropies
        figures = {"n_tokens_seen": int(meshes.sum(seen)), **rates}
        if entropies:
            figures["load_entropy/mean"] = sum(entropies) / len(entropies)
        figures |= {f"load_entropy/layer_{layer}": entropy for layer, entropy in enumerate(entropies)}
        self.metrics_processor.log(self.step, loss, float(meshes.most(largest)), norm, extra_metrics=figures)
