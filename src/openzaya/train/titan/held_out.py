"""Held-out losses of the recipe as torchtitan's validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.validate import BaseValidator
from torchtitan.tools.logging import logger
from torchtitan.tools.utils import device_type

from openzaya.data.packing import Batch
from openzaya.train.titan.batches import tensors_of
from openzaya.train.titan.model import TitanZaya
from openzaya.train.titan.recipe import NOT_GIVEN, Assigned, Assignment


class HeldOutLoss(BaseValidator):
    """The loss on what is never trained on, by corpus and for the problems, when the recipe and the end ask for it."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseValidator.Config):
        enable: bool = True
        freq: int = NOT_GIVEN
        """Steps between two; the recipe's where not given, and without either only the end has one."""
        last: Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress] = NOT_GIVEN
        assignment: Assigned = None

    def __init__(
        self,
        config: Config,
        *,
        loss_fn: Callable[..., tuple[Tensor, Any]],
        metrics_processor: MetricsProcessor,
        **_others: Any,
    ) -> None:
        super().__init__(config)
        self.loss_fn, self.metrics_processor = loss_fn, metrics_processor
        self.assignment: Assignment = config.assignment

    def should_validate(self, step: int) -> bool:
        return step == self.config.last or (self.config.freq > 0 and step % self.config.freq == 0)

    @torch.no_grad()
    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        """Log the losses at `step`; all ranks call this together."""
        (model,) = model_parts
        assert isinstance(model, TitanZaya)
        assignment, tokens = self.assignment, self.assignment.run.config.held_out.tokens
        assert assignment.source is not None
        model.eval()
        losses = {
            name: self._loss(model, assignment.even(batches, device_type))
            for name, batches in assignment.source.held_out(tokens).items()
            if assignment.run.world.agreed(bool(batches))  # the leader has the first rows
        }
        model.train()
        told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        logger.info(f"held-out loss at step {step:,}: {told}")
        curves = {f"held_out/{name}": loss for name, loss in losses.items()}
        self.metrics_processor.logger.log(curves, step)

    def _loss(self, model: TitanZaya, batches: Sequence[Batch]) -> float:
        meshes = self.assignment.meshes
        device = next(model.parameters()).device
        given = [tensors_of(batch) for batch in batches]
        own = [labels[:, model.places(labels.shape[1])].to(device) for _inputs, labels in given]
        learned = meshes.sum(torch.tensor(sum(int((labels != IGNORE_INDEX).sum()) for labels in own), device=device))
        total = torch.zeros((), dtype=torch.float64, device=device)
        for (inputs, _labels), labels in zip(given, own):
            input_ids = inputs.pop("input").to(device)
            hidden = model(input_ids, **{name: tensor.to(device) for name, tensor in inputs.items()})
            total += self.loss_fn(hidden, labels, learned)[0]
        return float(meshes.sum(total))
