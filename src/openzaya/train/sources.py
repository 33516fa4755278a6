"""What a phase reads, step by step: anything that gives the batches of a step, whatever they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from openzaya.data.packing import Batch


class BatchSource(Protocol):
    """The microbatches of every step on this rank.

    `batches` is a pure function of the step, so a run that goes on after a kill, or with another number of ranks,
    reads what it would have read. A rank may get none.
    """

    def batches(self, step: int) -> Sequence[Batch]: ...

    def held_out(self, tokens: int) -> Mapping[str, Sequence[Batch]]:
        """About `tokens` of what is never trained on, by a name to report the loss under; always the same."""
        ...


@dataclass(frozen=True, slots=True)
class Together:
    """Several sources that share each step."""

    sources: Sequence[BatchSource]

    def batches(self, step: int) -> list[Batch]:
        return [batch for source in self.sources for batch in source.batches(step)]

    def held_out(self, tokens: int) -> dict[str, Sequence[Batch]]:
        return {name: batches for source in self.sources for name, batches in source.held_out(tokens).items()}
