"""Newton-Schulz iterations on matrices whose rows lie on different ranks.

An iteration wants a whole matrix. Matrices are dealt out, each to one rank that gets all its rows, iterates alone, and
sends every rank its rows of the result: each matrix is computed once in the world, and two messages carry a bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET = 1 << 24
"""Elements a rank holds whole at a time, about."""


def orthogonalise_shards(
    shards: Mapping[str, Tensor], rows: Mapping[str, int], group: dist.ProcessGroup, iterate: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """For each of the `shards` (this rank's rows) of matrices of `rows` in all, its rows of `iterate(whole matrix)`.

    Rows are split as `torch.chunk` does. Every rank of `group` gives the same names in the same order.
    """
    for names in _buckets(shards, rows, group.size()):
        owners = _owners(names, shards, rows, group.size())
        mine = [name for name in names if owners[name] == group.rank()]
        whole = _collect(names, mine, owners, shards, rows, group)
        results = iterated(whole, iterate)
        yield from _return(names, mine, owners, shards, rows, results, group)


def iterated(whole: Mapping[str, Tensor], iterate: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Matrices of one shape are iterated as one stack, in as many products as one of them takes."""
    alike: dict[torch.Size, list[str]] = {}
    for name, matrix in whole.items():
        alike.setdefault(matrix.shape, []).append(name)
    results: dict[str, Tensor] = {}
    for names in alike.values():
        results.update(zip(names, iterate(torch.stack([whole[name] for name in names])).unbind()))
    return results


def _split(rows: int, ranks: int) -> list[int]:
    size = -(-rows // ranks)
    return [max(0, min(size, rows - rank * size)) for rank in range(ranks)]


def _buckets(shards: Mapping[str, Tensor], rows: Mapping[str, int], ranks: int) -> Iterator[list[str]]:
    bucket: list[str] = []
    size = 0
    for name, shard in shards.items():
        elements = rows[name] * shard.shape[1]
        if bucket and size + elements > _BUCKET * ranks:
            yield bucket
            bucket, size = [], 0
        bucket.append(name)
        size += elements
    if bucket:
        yield bucket


def _owners(names: list[str], shards: Mapping[str, Tensor], rows: Mapping[str, int], ranks: int) -> dict[str, int]:
    """The largest first, each to whom has least to do."""

    def work(name: str) -> int:
        long, short = max(rows[name], shards[name].shape[1]), min(rows[name], shards[name].shape[1])
        return long * short * short

    loads, owners = [0] * ranks, {}
    for name in sorted(names, key=lambda name: (-work(name), name)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += work(name)
    return owners


def _collect(
    names: list[str],
    mine: list[str],
    owners: Mapping[str, int],
    shards: Mapping[str, Tensor],
    rows: Mapping[str, int],
    group: dist.ProcessGroup,
) -> dict[str, Tensor]:
    """The matrices that this rank owns, whole."""
    sent = [[shards[name].flatten() for name in names if owners[name] == rank] for rank in range(group.size())]
    sizes = {name: _split(rows[name], group.size()) for name in mine}
    receive = [sum(sizes[name][rank] * shards[name].shape[1] for name in mine) for rank in range(group.size())]
    came = _dealt(sent, receive, shards[names[0]], group)
    whole: dict[str, list[Tensor]] = {name: [] for name in mine}
    for rank, flat in enumerate(came):
        pieces = flat.split([sizes[name][rank] * shards[name].shape[1] for name in mine])
        for name, piece in zip(mine, pieces):
            whole[name].append(piece.view(-1, shards[name].shape[1]))
    return {name: torch.cat(pieces) for name, pieces in whole.items()}


def _return(
    names: list[str],
    mine: list[str],
    owners: Mapping[str, int],
    shards: Mapping[str, Tensor],
    rows: Mapping[str, int],
    results: Mapping[str, Tensor],
    group: dist.ProcessGroup,
) -> Iterator[tuple[str, Tensor]]:
    split = {name: results[name].split(_split(rows[name], group.size())) for name in mine}
    sent = [[split[name][rank].flatten() for name in mine] for rank in range(group.size())]
    asked = [[name for name in names if owners[name] == rank] for rank in range(group.size())]
    receive = [sum(shards[name].numel() for name in own) for own in asked]
    came = _dealt(sent, receive, shards[names[0]], group)
    for flat, own in zip(came, asked):
        for name, piece in zip(own, flat.split([shards[name].numel() for name in own])):
            yield name, piece.view_as(shards[name])


def _dealt(sent: list[list[Tensor]], receive: list[int], like: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    flat = torch.cat([like.new_empty(0), *(tensor for tensors in sent for tensor in tensors)])
    received = flat.new_empty(sum(receive))
    send = [sum(tensor.numel() for tensor in tensors) for tensors in sent]
    dist.all_to_all_single(received, flat, receive, send, group=group)
    return received.split(receive)
