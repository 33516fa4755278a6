"""From a checkpoint of a run to a model folder that everybody reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from openzaya.model.config import ZayaConfig
from openzaya.model.names import Layout, StoredTensor, expected_tensors
from openzaya.model.storage import CONFIG, Outgoing, replaced_folder, write_json, write_weights
from openzaya.train.checkpoints.storage import Contents, read_contents, read_tensor

_SHARD_BYTES = 5_000_000_000
_BIAS = ".mlp.gate.balancing_biases"


def export_checkpoint(
    checkpoint: Path,
    config: ZayaConfig,
    folder: Path,
    *,
    layout: Layout = "native",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the masters of `checkpoint` as a model folder, whole or not at all, in room for one tensor at a time.

    Balancing biases are float32 in any case. `progress` gets bytes done and in all. Raises ValueError where the
    checkpoint is damaged, or holds no model of the shape of `config`.
    """
    contents = read_contents(checkpoint)
    tensors = [_outgoing(checkpoint, contents, tensor, dtype) for tensor in expected_tensors(config, layout).values()]
    named = config.with_(dtype=str(dtype).removeprefix("torch."))
    with replaced_folder(folder) as partial:
        write_json(partial / CONFIG, named.to_dict() if layout == "native" else named.to_legacy_dict())
        write_weights(partial, tensors, _SHARD_BYTES, progress)


def _outgoing(checkpoint: Path, contents: Contents, tensor: StoredTensor, dtype: torch.dtype) -> Outgoing:
    name = _name_in_state(tensor.native)
    if name not in contents.tensors:
        raise ValueError(f"{checkpoint} holds no {name}; give the configuration of the model that it is of")
    stored = contents.tensors[name]
    shape = stored.shape if tensor.expert is None else stored.shape[1:]
    if torch.Size(shape).numel() != torch.Size(tensor.shape).numel():
        raise ValueError(f"{checkpoint} holds {name} of shape {stored.shape}, which is not of this configuration")

    def pieces() -> Iterable[Tensor]:
        whole = read_tensor(checkpoint, stored)
        return (whole if tensor.expert is None else whole[tensor.expert],)

    return Outgoing(tensor.name, tensor.shape, torch.float32 if tensor.float32 else dtype, pieces)


def _name_in_state(native: str) -> str:
    """`master.<name>` of a parameter; the balancing biases are numbered by layer."""
    if native.endswith(_BIAS):
        return f"balancing.bias{native.split('.')[2]}"
    return f"master.{native}"
