"""Activation checkpointing from outside the model: of each block only the input is kept, the rest is computed again."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from openzaya.model.cache import Cache
from openzaya.model.decoder import Block, ZayaForCausalLM
from openzaya.model.placement import Placement
from openzaya.model.router import Routing


def checkpoint_blocks(model: ZayaForCausalLM) -> None:
    """Have every block of `model` computed a second time in the backward.

    The second time every token goes where it went the first time, whatever the rounding, and nothing is recorded, so
    that balancing counts a token once.
    """
    for block in model.model.layers:
        assert isinstance(block, Block)
        block.forward = _Recomputed(block)  # type: ignore[method-assign]


class _Recomputed:
    """Stands in for a block's forward."""

    def __init__(self, block: Block) -> None:
        self.compute = block.forward

    def __call__(
        self,
        residual_BSD: Tensor,
        previous_TR: Tensor | None,
        placement: Placement,
        cache: Cache | None,
        routing: Routing | None,
    ) -> tuple[Tensor, Tensor]:
        if cache is not None:
            return self.compute(residual_BSD, previous_TR, placement, cache, routing)
        forced = None if routing is None or routing.forced is None else [routing.forced[len(routing.chosen)]]
        first = Routing(forced)

        def block(residual_BSD: Tensor, previous_TR: Tensor | None) -> tuple[Tensor, Tensor]:
            again = Routing(first.chosen) if first.chosen else first
            return self.compute(residual_BSD, previous_TR, placement, None, again)

        output = checkpoint(block, residual_BSD, previous_TR, use_reentrant=False, preserve_rng_state=False)
        if routing is not None:
            routing.chosen.extend(first.chosen)
        return cast(tuple[Tensor, Tensor], output)
