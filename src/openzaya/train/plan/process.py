"""The plan of a recipe in one process: memory, and time at a measured speed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from openzaya.model.config import ZayaConfig
from openzaya.train.config import PhaseRecipe, TrainConfig
from openzaya.train.plan.activations import KeptBytes, kept_bytes
from openzaya.train.plan.layout import Layout
from openzaya.train.plan.memory import SCORE_BYTES, StepMemory, step_memory
from openzaya.train.plan.outline import Outline, outline
from openzaya.train.plan.parameters import Parameters, parameters

UTILISATION = {"cpu": 0.12, "cuda": 0.2}
"""Share of a large product's speed that a step reaches, by kind of device, where no measurement is given. On two cores
that do 0.35 TFLOP/s, the recipe of zaya1-tiny ran at 7,100 tokens a second; of GPUs see `cluster.Assumed`."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run takes place in one process."""

    device: str
    """What torch calls its kind."""
    matmul: float
    """FLOPs a second of a large product, measured."""
    utilisation: float
    """Share of it that a step reaches, optimizer included."""
    memory: int | None
    """Bytes that are free; None where nothing tells."""


@dataclass(frozen=True, slots=True)
class PhaseInProcess:
    """A phase in one process; rollouts of aggregation are not counted."""

    outline: Outline
    microbatch: int
    """Tokens of one forward and backward."""
    checkpointing: bool
    memory: StepMemory
    other_activations: float
    """Bytes of activations with checkpointing where the recipe has none, and the other way round."""
    all_logits: float
    """Bytes if all logits of a microbatch were built at once."""
    fits: bool | None
    seconds: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class ProcessPlanner:
    """Plans the phases of one recipe on one machine."""

    config: TrainConfig
    shape: ZayaConfig
    machine: Machine
    counts: Parameters
    kept: KeptBytes

    @classmethod
    def create(cls, config: TrainConfig, shape: ZayaConfig, machine: Machine) -> ProcessPlanner:
        return cls(config, shape, machine, parameters(shape), kept_bytes(shape, config.dtype, config.numerics))

    def phases(self) -> list[PhaseInProcess]:
        """Every phase of the recipe."""
        return [self._phase(phase) for phase in self.config.phases]

    def measured(self, tokens_per_second: float) -> ProcessPlanner:
        """The same with the utilisation at which the first phase runs at a measured speed."""
        about = outline(self.config, self.config.phases[0], self.shape, self.counts)
        flops = about.token_flops + about.optimizer_flops / about.batch_tokens
        machine = replace(self.machine, utilisation=tokens_per_second * flops / self.machine.matmul)
        return replace(self, machine=machine)

    def _phase(self, phase: PhaseRecipe) -> PhaseInProcess:
        about = outline(self.config, phase, self.shape, self.counts)
        tokens = min(phase.batch_tokens, max(phase.microbatch_tokens, phase.row))
        checkpointing = phase.activation_checkpointing
        layers = self.shape.num_hidden_layers
        memory = step_memory(
            self.shape, self.counts, self.kept, Layout(gpus=1),
            tokens=tokens, checkpointing=checkpointing, dtype=self.config.dtype, device=self.machine.device,
        )  # fmt: skip
        free = self.machine.memory
        flops = phase.tokens * about.token_flops + about.steps * about.optimizer_flops
        seconds = flops / (self.machine.matmul * self.machine.utilisation)
        return PhaseInProcess(
            outline=about,
            microbatch=tokens,
            checkpointing=checkpointing,
            memory=memory,
            other_activations=tokens * self.kept.forward(layers, checkpointing=not checkpointing),
            all_logits=float(tokens * self.shape.vocab_size * SCORE_BYTES),
            fits=None if free is None else memory.total <= free,
            seconds=seconds,
            tokens_per_second=phase.tokens / seconds,
        )
