"""The data of a phase as a torchtitan data loader: what our own loop reads, in its order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.config import Configurable
from torchtitan.tools.utils import device_type

from openzaya.data.packing import Batch
from openzaya.train.reading import open_reading
from openzaya.train.titan.recipe import Assigned, Assignment

FOLLOWING = "following"
"""Under this key a microbatch says how many of its step come after it."""


class RecipeBatches(BaseDataLoader):
    """The microbatches of each step, as many on every rank. What a step reads is a function of the step alone.

    So its state is a number, and a run goes on with other ranks than before.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        assignment: Assigned = None

    def __init__(self, config: Config, *, dp_world_size: int, dp_rank: int, **_others: Any) -> None:
        self.assignment: Assignment = config.assignment
        self.step = 0
        """Of the phase; the next one that is read."""
        run, phase = self.assignment.run, self.assignment.phase
        speaker = run.speaker
        with run.world.leader_first():
            reading = open_reading(run.config, phase, speaker, run.folder, run.say, dp_rank, dp_world_size)
        self.assignment.source = self.source = reading.source

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        while True:
            batches = self.assignment.even(self.source.batches(self.step), device_type)
            self.step += 1
            for following, batch in zip(reversed(range(len(batches))), batches):
                inputs, labels = tensors_of(batch)
                yield {**inputs, FOLLOWING: following}, labels

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.step = state_dict["step"]


def tensors_of(batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """The arguments of a forward, the token ids under "input", and the labels (B, S)."""
    place = torch.from_numpy
    inputs = {"input": place(batch.input_ids), "real": place(batch.real)}
    if batch.document_ids is not None:
        inputs["document_ids"] = place(batch.document_ids)
    return inputs, place(batch.targets).masked_fill(~place(batch.learned), IGNORE_INDEX)
