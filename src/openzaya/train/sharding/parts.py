"""Which part of a whole tensor a rank holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from openzaya.model.decoder import ZayaForCausalLM
from openzaya.train.beginning import Weights, copy_box
from openzaya.train.sharding.meshes import Meshes


def placed(local: Tensor, parameter: DTensor, meshes: Meshes) -> DTensor:
    """`local`, which is laid out as `parameter` on this rank, as its part of the whole tensor.

    A `parameter` of the experts knows only of those of this rank's group; the whole has all of them.
    """
    if parameter.device_mesh.mesh_dim_names != ("copies",):
        return _part_of(parameter.shape, local, parameter.device_mesh, list(parameter.placements))
    assert meshes.experts is not None
    whole = torch.Size([parameter.shape[0] * meshes.degrees.experts, *parameter.shape[1:]])
    return _part_of(whole, local, meshes.experts, [Shard(0), *parameter.placements])


def _part_of(whole: torch.Size, local: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    stride = torch.empty(whole, device="meta").stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=whole, stride=stride)


def local_part(shard: DTensor) -> Tensor:
    """This rank's part of `shard`, the same memory."""
    local: Tensor = shard.detach().to_local()  # type: ignore[attr-defined]
    return local


def whole_of(part: DTensor) -> Tensor:
    """The whole tensor, which all ranks gather together."""
    placements = list(part.placements)
    # One dimension of a mesh at a time: torch does no more at once, and warns where it is asked to.
    for dimension in reversed(range(len(placements))):
        placements[dimension] = Replicate()
        part = part.redistribute(placements=placements)
    return part.to_local()


@torch.no_grad()
def fill_shards(model: ZayaForCausalLM, weights: Weights, meshes: Meshes) -> None:
    """Put this rank's part of `weights` into a `model` that is spread over `meshes`."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, pieces in weights:
        tensor = tensors.pop(name)
        if isinstance(tensor, DTensor):
            tensor = placed(local_part(tensor), tensor, meshes)
        _copy_pieces(tensor, pieces)
    assert not tensors, f"nothing was put into {next(iter(tensors))}"


def copy_part(held: Tensor, whole: Tensor) -> None:
    """Fill `held`, or where it is sharded this rank's part of it, from the `whole` tensor or its like part."""
    if isinstance(held, DTensor) and isinstance(whole, DTensor):
        held.to_local().copy_(whole.to_local())
    else:
        _copy_pieces(held, (whole,))


def _copy_pieces(held: Tensor, pieces: Iterable[Tensor]) -> None:
    if not isinstance(held, DTensor):
        copy_box(held, held.shape, tuple(slice(0, size) for size in held.shape), pieces)
        return
    sizes, offsets = compute_local_shape_and_global_offset(held.shape, held.device_mesh, held.placements)
    box = tuple(slice(start, start + size) for start, size in zip(offsets, sizes))
    copy_box(held.to_local(), held.shape, box, pieces)
