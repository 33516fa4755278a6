"""The plan of a recipe in one process: memory, and time at a measured speed."""

from __future__ import annotations

from dataclasses import dataclass

from openzaya.model.config import ZayaConfig
from openzaya.train.config import PhaseRecipe, TrainConfig
from openzaya.train.plan.activations import KeptBytes, kept_bytes
from openzaya.train.plan.layout import Layout
from openzaya.train.plan.memory import LOGIT_BYTES, StepMemory, step_memory
from openzaya.train.plan.outline import Outline, outline
from openzaya.train.plan.parameters import Parameters, parameters


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run takes place in one process."""

    matmul: float
    """FLOPs a second of a large product, measured."""
    utilisation: float
    """Share of it that forward and backward reach."""
    source: str
    """Where the utilisation is from."""
    memory: int | None
    """Bytes that are free; None where nothing tells."""


@dataclass(frozen=True, slots=True)
class PhaseInProcess:
    """A phase in one process."""

    outline: Outline
    memory: StepMemory
    memory_otherwise: StepMemory
    """With checkpointing where the recipe has none, and the other way round."""
    all_logits: float
    """Bytes if all logits of a microbatch were built at once."""
    fits: bool | None
    seconds: float
    tokens_per_second: float


def plan_process(config: TrainConfig, shape: ZayaConfig, machine: Machine) -> list[PhaseInProcess]:
    """Every phase of a recipe in one process; rollouts of aggregation phases are not counted."""
    kept = kept_bytes(shape, config.dtype, config.numerics)
    counts = parameters(shape)
    return [_phase(config, phase, shape, counts, kept, machine) for phase in config.phases]


def _phase(
    config: TrainConfig, phase: PhaseRecipe, shape: ZayaConfig, counts: Parameters, kept: KeptBytes, machine: Machine
) -> PhaseInProcess:
    about = outline(config, phase, shape, counts)
    tokens = min(phase.batch_tokens, max(phase.microbatch_tokens, phase.row))

    def memory(checkpointing: bool) -> StepMemory:
        return step_memory(
            shape, counts, kept, Layout(gpus=1), tokens=tokens, checkpointing=checkpointing, dtype=config.dtype
        )  # fmt: skip

    asked = memory(phase.activation_checkpointing)
    speed = machine.matmul * machine.utilisation
    seconds = (phase.tokens * about.token_flops + about.steps * about.optimizer_flops) / speed
    return PhaseInProcess(
        outline=about,
        memory=asked,
        memory_otherwise=memory(not phase.activation_checkpointing),
        all_logits=float(tokens * shape.vocab_size * LOGIT_BYTES),
        fits=None if machine.memory is None else asked.total <= machine.memory,
        seconds=seconds,
        tokens_per_second=phase.tokens / seconds,
    )


def utilisation_of(about: Outline, tokens_per_second: float, matmul: float) -> float:
    """The share of `matmul` at which this phase would run at `tokens_per_second`, optimizer included."""
    return tokens_per_second * (about.token_flops + about.optimizer_flops / about.batch_tokens) / matmul
