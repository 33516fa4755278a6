"""The plan of a recipe on a described cluster: in the layout that it asks for, and in the fastest one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from openzaya.model.config import ZayaConfig
from openzaya.train.config import PhaseRecipe, TrainConfig
from openzaya.train.plan.activations import KeptBytes, kept_bytes
from openzaya.train.plan.cluster import Cluster
from openzaya.train.plan.layout import Layout, Share, share_of_step
from openzaya.train.plan.memory import StepMemory, step_memory
from openzaya.train.plan.outline import Outline, outline
from openzaya.train.plan.parameters import Parameters, parameters
from openzaya.train.plan.step import StepTime, step_time
from openzaya.train.plan.storage import Reading, Saving, reading, saving


@dataclass(frozen=True, slots=True)
class PhaseOnCluster:
    """A phase on a described cluster in one layout."""

    outline: Outline
    layout: Layout
    share: Share
    checkpointing: bool
    memory: StepMemory
    fits: bool
    step: StepTime
    tokens_per_second_a_gpu: float
    utilisation: float
    """Of the description's matmul speed, communication and optimizer included."""
    reading: Reading
    seconds: float
    """Of all steps, with what saving and failures cost."""


@dataclass(frozen=True, slots=True)
class ClusterPlanner:
    """Plans the phases of one recipe on one cluster; what does not depend on the layout is counted once."""

    config: TrainConfig
    shape: ZayaConfig
    cluster: Cluster
    counts: Parameters
    kept: KeptBytes

    @classmethod
    def create(cls, config: TrainConfig, shape: ZayaConfig, cluster: Cluster) -> ClusterPlanner:
        return cls(config, shape, cluster, parameters(shape), kept_bytes(shape, config.dtype, config.numerics))

    @property
    def saving(self) -> Saving:
        """States of the run on this cluster."""
        return saving(self.cluster, self.counts.state_bytes)

    def phases(self) -> list[PhaseOnCluster]:
        """Every phase in the layout that the recipe asks for.

        Raises ValueError where a phase cannot be laid out so on these GPUs.
        """
        plans = []
        for phase in self.config.phases:
            try:
                layout = Layout(
                    gpus=self.cluster.gpus, context=phase.sharding.context, expert=phase.sharding.expert
                )  # fmt: skip
                plans.append(self.phase(phase, layout))
            except ValueError as error:
                raise ValueError(f"phase {phase.name!r} on {self.cluster.name!r}: {error}") from None
        return plans

    def phase(self, phase: PhaseRecipe, layout: Layout) -> PhaseOnCluster:
        """One phase in a given layout; raises ValueError where it cannot be laid out so."""
        if self.shape.num_experts % layout.expert:
            raise ValueError(f"{self.shape.num_experts} experts cannot be shared equally by {layout.expert} ranks")
        cluster, checkpointing = self.cluster, phase.activation_checkpointing
        share = share_of_step(
            layout, batch_tokens=phase.batch_tokens, row=phase.row, microbatch_tokens=phase.microbatch_tokens
        )
        memory = step_memory(
            self.shape, self.counts, self.kept, layout,
            tokens=share.microbatch, checkpointing=checkpointing, dtype=self.config.dtype,
        )  # fmt: skip
        step = self._step(cluster, phase, layout, share)
        steps = phase.tokens / (share.tokens * layout.gpus)
        return PhaseOnCluster(
            outline=outline(self.config, phase, self.shape, self.counts),
            layout=layout,
            share=share,
            checkpointing=checkpointing,
            memory=memory,
            fits=memory.total <= cluster.gpu.memory * (1 - cluster.assumed.memory_reserve),
            step=step,
            tokens_per_second_a_gpu=share.tokens / step.total,
            utilisation=step.utilisation(cluster.gpu.matmul),
            reading=reading(
                batch_tokens=phase.batch_tokens,
                step_seconds=step.total,
                operations_limit=cluster.storage.operations,
                scatter=cluster.assumed.scatter,
            ),
            seconds=steps * step.total / (1 - self.saving.lost_share),
        )

    def _step(self, cluster: Cluster, phase: PhaseRecipe, layout: Layout, share: Share) -> StepTime:
        return step_time(
            self.shape, self.counts, cluster, layout, share,
            row=phase.row, checkpointing=phase.activation_checkpointing, dtype=self.config.dtype,
            newton_schulz_steps=self.config.optimizer.newton_schulz_steps,
        )  # fmt: skip

    def fastest(self, phase: PhaseRecipe) -> PhaseOnCluster | None:
        """The layout with the shortest step that fits the memory; None where none does."""
        # Of equals the simplest: fewest ranks in a row, then fewest that share experts.
        return min(
            (plan for plan in self._candidates(phase) if plan.fits),
            key=lambda plan: (-plan.tokens_per_second_a_gpu, plan.layout.context, plan.layout.expert),
            default=None,
        )

    def _candidates(self, phase: PhaseRecipe) -> Iterator[PhaseOnCluster]:
        """Every size of the axes in powers of two, every microbatch of whole rows, checkpointing off and on."""
        gpus, batch_rows = self.cluster.gpus, phase.batch_tokens // phase.row
        for context in _powers_of_two(gpus):
            for expert in _powers_of_two(min(gpus // context, self.shape.num_experts)):
                for rows in _powers_of_two(batch_rows * context // gpus):
                    for checkpointing in (False, True):
                        changes = {
                            "microbatch_tokens": rows * phase.row // context, "activation_checkpointing": checkpointing
                        }  # fmt: skip
                        try:
                            layout = Layout(gpus=gpus, context=context, expert=expert)
                            yield self.phase(phase.model_copy(update=changes), layout)
                        except ValueError:
                            continue

    def measured(self, tokens_per_second_a_gpu: float) -> ClusterPlanner:
        """The same with the utilisation at which the first phase would run at a measured speed.

        Raises ValueError where not even products at full speed would be as fast.
        """
        phase, plan = self.config.phases[0], self.phases()[0]

        def at(utilisation: float) -> Cluster:
            assumed = self.cluster.assumed.model_copy(update={"utilisation": utilisation})
            return self.cluster.model_copy(update={"assumed": assumed})

        def speed(utilisation: float) -> float:
            return plan.share.tokens / self._step(at(utilisation), phase, plan.layout, plan.share).total

        low, high = 1e-6, 1.0
        if speed(high) < tokens_per_second_a_gpu:
            raise ValueError(
                f"{tokens_per_second_a_gpu:,.0f} tokens a second a GPU is more than the {speed(high):,.0f} that this "
                "cluster could do with its products at full speed; check the description, or the measurement"
            )
        for _ in range(60):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if speed(middle) < tokens_per_second_a_gpu else (low, middle)
        return ClusterPlanner(self.config, self.shape, at(high), self.counts, self.kept)


def _powers_of_two(limit: int) -> Iterator[int]:
    size = 1
    while size <= limit:
        yield size
        size *= 2
