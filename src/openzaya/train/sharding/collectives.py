"""The two exchanges between ranks that gradients flow back through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Newer torch has other names for these and warns of the old ones.
_ALL_GATHER = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


def exchange(rows: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Deal out `rows`, the first `send[0]` to rank 0 of `group` and so on; returns what came, by rank.

    The gradient takes the same way back, so every rank must use what it gets, were it nothing.
    """
    received: Tensor = _Exchange.apply(rows, list(send), list(receive), group)
    return received


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return _dealt(rows, send, receive, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _dealt(gradients[0], ctx.receive, ctx.send, ctx.group), None, None, None


def _dealt(rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
    received = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), receive, send, group=group)
    return received


def gathered(part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """The equally large parts of all ranks of `group` side by side along `dim`."""
    whole: Tensor = _Gathered.apply(part, dim, group)
    return whole


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        ranks = group.size()
        parts = part.new_empty(ranks * part.shape[0], *part.shape[1:])
        _ALL_GATHER(parts, part.contiguous(), group=group)
        return torch.cat(parts.chunk(ranks), dim=dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        parts = torch.cat(gradients[0].chunk(ctx.group.size(), dim=ctx.dim))
        own = parts.new_empty(parts.shape[0] // ctx.group.size(), *parts.shape[1:])
        _REDUCE_SCATTER(own, parts, group=ctx.group)
        return own, None, None
