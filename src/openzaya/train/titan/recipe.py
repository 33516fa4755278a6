"""A phase of a recipe as a torchtitan run does it: what the parts of the run share, and torchtitan's options for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torchtitan.distributed.activation_checkpoint import FullAC
from torchtitan.tools.logging import logger

from openzaya.data.packing import Batch
from openzaya.model.config import ZayaConfig
from openzaya.train.ablation_recipe import AblationRecipe
from openzaya.train.config import CHECKPOINT, SCRATCH, PhaseRecipe, TrainConfig, read_train_config
from openzaya.train.loop import Run
from openzaya.train.schedule import total_steps
from openzaya.train.sharding.batches import evened
from openzaya.train.sharding.meshes import Degrees, Meshes
from openzaya.train.sharding.world import Ranks
from openzaya.train.sources import BatchSource

NOT_GIVEN = 0
"""Of an option that the recipe fills in."""


@dataclass(slots=True)
class Assignment:
    """One phase of the run in a folder, and what comes to be known of it while torchtitan builds its parts."""

    run: Run
    phase: PhaseRecipe
    meshes: Meshes = field(default_factory=lambda: Meshes(Degrees()))
    shape: ZayaConfig | None = None
    source: BatchSource | None = None
    """What the ranks read."""

    @classmethod
    def of(cls, recipe: str, phase: str, folder: str) -> Assignment:
        """Raises ValueError where the recipe is unsound, has no such phase, or wants what torchtitan does not do."""
        config = read_train_config(recipe)
        named = [found for found in config.phases if phase in ("", found.name)]
        if not named:
            raise ValueError(f"--phase {phase} is not in {recipe}; it has {', '.join(p.name for p in config.phases)}")
        _check(config, named[0])
        return cls(Run(config, Path(recipe).read_text(encoding="utf-8"), Path(folder), logger.info), named[0])

    def open(self, device: str) -> ZayaConfig:
        """Take the folder for this recipe and work out the shape of the model; all ranks call this together."""
        self.run.world = Ranks(device)
        self.run.claim()
        self.shape = self.phase.shape(self.run.model_config)
        return self.shape

    def even(self, batches: Sequence[Batch], device: str) -> list[Batch]:
        """`batches` so that all ranks compute as many, of rows that split evenly; all ranks call this together."""
        assert self.shape is not None
        return evened(batches, self.meshes, self.shape.convolution_history, torch.device(device))

    def to_dict(self) -> dict[str, Any]:
        """What torchtitan's log shows of it in every part."""
        return {"phase": self.phase.name}


Assigned = Annotated[Any, tyro.conf.Fixed, tyro.conf.Suppress]
"""The type of a field that holds an `Assignment`, which no option sets."""


def _check(config: TrainConfig, phase: PhaseRecipe) -> None:
    unknown = {
        "lora": config.lora is not None,
        "ablation": config.ablation != AblationRecipe(),
        "aggregation.refreshes": phase.aggregation is not None and phase.aggregation.refreshes > 0,
    }
    if wanted := [key for key, is_wanted in unknown.items() if is_wanted]:
        raise ValueError(f"the recipe sets {wanted[0]}, which only `openzaya train` does; train {phase.name!r} with it")


def follow(config: Any, assignment: Assignment) -> None:
    """Fill in what the recipe says in the options of a run (`ZayaTrainer.Config`).

    Raises ValueError for an option that disagrees with the recipe, or that nothing here would follow.
    """
    _refuse_unknown(config)
    recipe, phase, training, parallel = assignment.run.config, assignment.phase, config.training, config.parallelism
    steps = total_steps(phase)
    if training.steps > steps:
        raise ValueError(f"--training.steps {training.steps} is more than the {steps} of the phase {phase.name!r}")
    training.steps = training.steps or steps
    _set(parallel, "expert_parallel_degree", phase.sharding.expert)
    _set(parallel, "context_parallel_degree", phase.sharding.context)
    readers = max(1, int(os.environ.get("WORLD_SIZE", "1")) // parallel.context_parallel_degree)
    rows = -(-max(1, phase.batch_tokens // phase.row) // readers)
    microbatches = -(-rows * phase.row // max(phase.row, phase.microbatch_tokens))
    _set(training, "seq_len", phase.row)
    _set(training, "local_batch_size", -(-rows // microbatches))
    _set(training, "global_batch_size", training.local_batch_size * microbatches * readers)
    _set(training, "max_norm", recipe.optimizer.clip)
    training.mixed_precision_param = recipe.dtype
    if phase.activation_checkpointing and config.activation_checkpoint is None:
        config.activation_checkpoint = FullAC.Config()
    config.validator.freq = config.validator.freq or recipe.held_out.every_steps or NOT_GIVEN
    config.validator.last = training.steps
    _keep(config, assignment)
    parts = (config.model_spec.model, config.optimizer, config.lr_scheduler, config.dataloader, config.checkpoint)
    for part in (*parts, config.validator):
        part.assignment = assignment


def _set(section: Any, option: str, said: float) -> None:
    given = getattr(section, option)
    if given not in (NOT_GIVEN, said):
        raise ValueError(f"{option} is {given} and the recipe says {said}; change the recipe, which options follow")
    setattr(section, option, said)


def _refuse_unknown(config: Any) -> None:
    parallel, training = config.parallelism, config.training
    refused = {
        "parallelism.tensor_parallel_degree": parallel.tensor_parallel_degree > 1,
        "parallelism.pipeline_parallel_degree": parallel.pipeline_parallel_degree > 1,
        "parallelism.data_parallel_replicate_degree": parallel.data_parallel_replicate_degree > 1,
        "parallelism.fsdp_reshard_after_forward": parallel.fsdp_reshard_after_forward != "default",
        "training.enable_cpu_offload": training.enable_cpu_offload,
        "training.dtype": training.dtype != "float32",
        "compile.enable": config.compile.enable,
        "activation_checkpoint": not isinstance(config.activation_checkpoint, (FullAC.Config, type(None))),
        "checkpoint.create_seed_checkpoint": config.checkpoint.create_seed_checkpoint,
    }
    if wanted := [option for option, is_wanted in refused.items() if is_wanted]:
        raise ValueError(
            f"{wanted[0]} does nothing for this model: weights are sharded by FSDP, experts and context, float32 "
            "masters stay on the device, and blocks are recomputed whole or not at all; leave the option out"
        )


def _keep(config: Any, assignment: Assignment) -> None:
    """This phase has folders of its own for checkpoints and curves, and begins where the phase before it ended."""
    checkpoint, run = config.checkpoint, assignment.run
    checkpoint.folder = f"{assignment.phase.name}.titan"
    config.metrics.save_tb_folder = f"tb/{assignment.phase.name}"
    start = run.config.start_of(assignment.phase)
    if start in (SCRATCH, CHECKPOINT) or any(map(_is_whole, (run.folder / checkpoint.folder).glob("step-*"))):
        return
    if checkpoint.initial_load_path is None:
        (ended,) = [total_steps(phase) for phase in run.config.phases if phase.name == start]
        before = run.folder / f"{start}.titan" / f"step-{ended}"
        if not _is_whole(before):
            raise ValueError(
                f"the phase {assignment.phase.name!r} starts from {start!r}, whose end is not in {run.folder}: "
                f"train it first (--phase {start}), or name a checkpoint with --checkpoint.initial_load_path"
            )
        checkpoint.initial_load_path = str(before.resolve())
        checkpoint.initial_load_model_only = False
    # Where the phase before stood in its data and its schedule is over with it; moments go on.
    checkpoint.exclude_from_loading = ["train_state", "lr_scheduler", "dataloader"]


def _is_whole(checkpoint: Path) -> bool:
    """Whether torchtitan has finished writing it."""
    return (checkpoint / ".metadata").exists()
