"""How a step is spread over GPUs: data, expert and context ranks, and how many rows each has at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Axes of parallelism; the ranks of a row and those that share experts are neighbours, within a node if they fit.

    Raises ValueError where the axes do not divide the GPUs.
    """

    gpus: int
    context: int = 1
    """Ranks that share a row."""
    expert: int = 1
    """Ranks that share the experts of a layer; they read rows of their own."""
    weights: Literal["sharded", "whole"] = "sharded"
    """Every rank keeps a share of the weights and gathers a block when it is due (FSDP), or all of them and only
    optimizer state is shared out (ZeRO-1)."""

    def __post_init__(self) -> None:
        if self.gpus % (self.context * self.expert):
            raise ValueError(
                f"{self.gpus} GPUs cannot be divided into context {self.context} x expert {self.expert} ranks; "
                "choose sizes whose product divides the GPUs"
            )

    @property
    def data(self) -> int:
        """Ranks that read different rows."""
        return self.gpus // self.context


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank has to do in a step."""

    tokens: int
    """Of the step, its part of shared rows counted."""
    microbatch: int
    """Tokens of one forward and backward."""
    microbatches: int


def share_of_step(layout: Layout, *, batch_tokens: int, row: int, microbatch_tokens: int) -> Share:
    """Divide a step over ranks, whole rows at a time.

    Raises ValueError where a rank would get less than one row, or where a row's part is longer than a microbatch.
    """
    part = row // layout.context
    rows = batch_tokens // (row * layout.data)
    if rows < 1:
        raise ValueError(
            f"a step of {batch_tokens:,} tokens has {batch_tokens // row} rows of {row:,} for {layout.data} data "
            "ranks; raise batch_tokens or sharding.context, or use fewer GPUs"
        )
    at_once = min(rows, microbatch_tokens // part)
    if at_once < 1:
        raise ValueError(
            f"microbatch_tokens {microbatch_tokens:,} is less than a rank's part of a row, {part:,}; raise it or "
            "sharding.context"
        )
    return Share(tokens=rows * part, microbatch=at_once * part, microbatches=-(-rows // at_once))
