"""Checkpoints of random weights in a given shape: for knowing the speed of a model without its weights.

Speed depends on the shape, on how weights are kept, and on how many experts a step reads. A router of random numbers
would send most tokens to a few experts, because what comes out of a GELU has a mean that all tokens share. Here that
mean is taken out of every router, so that tokens spread over the experts about evenly, as balanced training has it.
What such a model writes means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openzaya.model.checkpoint import SHARD_BYTES, Unfilled
from openzaya.model.config import ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.initialise import initialise
from openzaya.model.names import StoredTensor, expected_tensors
from openzaya.model.quantised.matrices import Matrix, check_shapes, matrices, plain_tensors
from openzaya.model.quantised.packing import DTYPES
from openzaya.model.quantised.quantise import check_room, write_container
from openzaya.model.quantised.scheme import Scheme
from openzaya.model.router import Router
from openzaya.model.storage import CONFIG, Outgoing, replaced_folder, write_json, write_weights

OnBytes = Callable[[int, int], None]
_CHUNK = 1 << 24
"""Numbers that are made at a time."""
_STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random_container(
    folder: Path, config: ZayaConfig, scheme: Scheme, *, seed: int = 0, progress: OnBytes | None = None
) -> None:
    """Write a quantised folder without a tokenizer, its integers drawn and its scales those of a fresh model.

    Some megabytes at a time are in memory besides the model's small tensors. Raises ValueError where the scheme cannot
    hold the shape or the disk is too full.
    """
    check_shapes(config, scheme)
    source = np.random.Generator(np.random.SFC64(seed))
    drawn = chain.from_iterable(_random_matrix(matrix, scheme, source) for matrix in matrices(config))
    small = _small_tensors(config, seed)
    kept = [Outgoing(t.native, t.shape, small[t.native].dtype, _whole(small[t.native])) for t in plain_tensors(config)]
    kept.sort(key=lambda tensor: -tensor.dtype.itemsize)
    write_container(
        folder, config, scheme, [*drawn, *kept], progress=progress and (lambda step: progress(step.done, step.total))
    )


def random_checkpoint(
    folder: Path,
    config: ZayaConfig,
    *,
    seed: int = 0,
    max_shard_bytes: int = SHARD_BYTES,
    progress: OnBytes | None = None,
) -> None:
    """Write a plain checkpoint in the native layout, in shards, without a tokenizer; in memory as `random_container`.

    Raises ValueError where the disk is too full.
    """
    source = torch.Generator().manual_seed(seed)
    small = _small_tensors(config, seed)
    dtype = _STORED[config.dtype]
    outgoing = []
    for tensor in expected_tensors(config).values():
        if tensor.part in ("experts", "embedding", "head"):
            outgoing.append(Outgoing(tensor.name, tensor.shape, dtype, _random_numbers(tensor, dtype, source)))
        else:
            outgoing.append(Outgoing(tensor.name, tensor.shape, small[tensor.name].dtype, _whole(small[tensor.name])))
    check_room(folder, sum(tensor.size for tensor in outgoing))
    with replaced_folder(folder) as partial:
        write_json(partial / CONFIG, config.to_dict())
        write_weights(partial, outgoing, max_shard_bytes, progress)


def random_model(config: ZayaConfig, device: torch.device | str = "cpu", *, seed: int = 0) -> ZayaForCausalLM:
    """A model of random weights in memory, in the type that its configuration says, its routers even."""
    with Unfilled(_STORED[config.dtype], torch.device(device)):
        model = ZayaForCausalLM(config)
    return spread_tokens(initialise(model, seed)).eval()


@torch.no_grad()
def spread_tokens(model: ZayaForCausalLM) -> ZayaForCausalLM:
    """Take out of every router what all tokens share, so that none of its classes is ahead from the start."""
    for module in model.modules():
        if isinstance(module, Router):
            for layer in (module.router_mlp.fc2, module.router_mlp.out_proj):
                layer.weight.sub_(layer.weight.mean(dim=1, keepdim=True))
    return model


def _small_tensors(config: ZayaConfig, seed: int) -> dict[str, Tensor]:
    """Every tensor of a fresh model but its experts and its embedding, which are next to nothing here."""
    return random_model(config.with_(vocab_size=1, moe_intermediate_size=1), seed=seed).state_dict()


def _whole(tensor: Tensor) -> Callable[[], list[Tensor]]:
    return lambda: [tensor]


def _random_numbers(
    tensor: StoredTensor, dtype: torch.dtype, source: torch.Generator
) -> Callable[[], Iterator[Tensor]]:
    """Pieces of a normal matrix, its deviation 1 / sqrt(columns)."""
    columns = tensor.shape[-1]
    rows = tensor.elements // columns

    def pieces() -> Iterator[Tensor]:
        step = max(1, _CHUNK // columns)
        for start in range(0, rows, step):
            piece = torch.empty(min(step, rows - start), columns).normal_(0, 1 / math.sqrt(columns), generator=source)
            yield piece.to(dtype)

    return pieces


def _random_matrix(matrix: Matrix, scheme: Scheme, source: np.random.Generator) -> tuple[Outgoing, Outgoing]:
    """Integers of every value alike, and one scale for all of them but the rows that only fill the last block.

    The lowest one, which has no opposite, becomes 0: a mean other than 0, however small, grows from matrix to matrix
    until all tokens are alike and go to the same experts.
    """
    levels = 16 if scheme.name == "w4" else 256
    deviation = math.sqrt(sum(2 * value**2 for value in range(1, levels // 2)) / levels)
    codes_shape, scales_shape = matrix.codes_shape(scheme), matrix.scales_shape(scheme)
    codes_type, scales_type = DTYPES[scheme.code_type], DTYPES[scheme.scale_type]

    def codes() -> Iterator[Tensor]:
        left = math.prod(codes_shape)
        while left:
            taken = min(left, _CHUNK)
            drawn = np.frombuffer(bytearray(source.bytes(taken)), dtype=np.uint8)
            if scheme.name == "w4":
                drawn |= ((drawn & 0x0F) == 0).view(np.uint8) << 3
                drawn |= ((drawn & 0xF0) == 0).view(np.uint8) << 7
            else:
                drawn[drawn == 0x80] = 0
            yield torch.from_numpy(drawn).view(codes_type)
            left -= taken

    def scales() -> Iterator[Tensor]:
        values = torch.full(scales_shape, 1 / (deviation * math.sqrt(matrix.columns)), dtype=scales_type)
        if spare := -matrix.rows % scheme.block:
            last = values.select(-2 if scheme.group is None else -3, -1)
            last[..., scheme.block - spare :] = 0
        yield values

    return (
        Outgoing(matrix.codes_name, codes_shape, codes_type, codes),
        Outgoing(matrix.scales_name, scales_shape, scales_type, scales),
    )
