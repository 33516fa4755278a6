"""The parameters of a model as the optimizer and expert parallelism see them, and what an optimizer step computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import empty, nn

from openzaya.model.config import ZayaConfig
from openzaya.model.names import expected_tensors
from openzaya.train.muon import is_matrix

MASTER_BYTES = MOMENT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Matrix:
    """Matrices of one shape that Muon orthogonalises, each by itself."""

    rows: int
    columns: int
    count: int

    def newton_schulz_flops(self, steps: int) -> float:
        """Of one of them: x xᵀ, its square, and their product with x, `steps` times."""
        short, long = sorted((self.rows, self.columns))
        return steps * (4.0 * short**2 * long + 2.0 * short**3)


@dataclass(frozen=True, slots=True)
class Parameters:
    """Elements by kind; counted once for a shape."""

    experts: int
    """In expert stacks, all of them Muon's."""
    other: int
    matrices: tuple[Matrix, ...]
    """Muon's, expert stacks taken apart."""

    @property
    def total(self) -> int:
        return self.experts + self.other

    @property
    def muon(self) -> int:
        """What Muon trains; AdamW has the rest."""
        return sum(matrix.count * matrix.rows * matrix.columns for matrix in self.matrices)

    @property
    def moment_bytes(self) -> int:
        """One moment of Muon, two of AdamW."""
        return (2 * self.total - self.muon) * MOMENT_BYTES

    @property
    def state_bytes(self) -> int:
        """Masters and moments: what a checkpoint of the run holds."""
        return self.total * MASTER_BYTES + self.moment_bytes


def parameters(config: ZayaConfig) -> Parameters:
    """Count the parameters of a model; balancing biases are buffers, and none. `muon.is_matrix` says what is Muon's."""
    tensors = [tensor for tensor in expected_tensors(config).values() if not tensor.float32]
    matrices: dict[tuple[int, int], int] = {}
    for tensor in tensors:
        if is_matrix(tensor.name, nn.Parameter(empty(tensor.shape, device="meta"))):
            *stack, rows, columns = tensor.shape
            matrices[rows, columns] = matrices.get((rows, columns), 0) + (stack[0] if stack else 1)
    experts = sum(tensor.elements for tensor in tensors if tensor.part == "experts")
    return Parameters(
        experts=experts,
        other=sum(tensor.elements for tensor in tensors) - experts,
        matrices=tuple(Matrix(rows, columns, count) for (rows, columns), count in matrices.items()),
    )


def optimizer_flops(matrices: Sequence[Matrix], *, steps: int, ranks: int = 1) -> float:
    """Newton-Schulz of one optimizer step on the busiest of `ranks` ranks, each matrix being one rank's work.

    AdamW's few operations an element are bound by memory and not counted.
    """
    total = sum(matrix.count * matrix.newton_schulz_flops(steps) for matrix in matrices)
    largest = max((matrix.newton_schulz_flops(steps) for matrix in matrices), default=0.0)
    return max(total / ranks, largest)
