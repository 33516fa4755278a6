"""The model of a run before its first step: what it is made of, and its weights, one tensor after the other.

Apart from each other, so that a rank that holds a share of the weights never has room for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from openzaya.model.checkpoint import Unfilled, find_model, usable_device
from openzaya.model.config import ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.initialise import initial_weights
from openzaya.model.names import expected_tensors
from openzaya.model.numerics import numerics_profile
from openzaya.model.sources import open_source
from openzaya.train.ablation import exchange_parts, held_parts
from openzaya.train.config import TrainConfig
from openzaya.train.lora import adapter_weights, add_adapters

Weights = Iterable[tuple[str, Iterable[Tensor]]]
"""Tensors by name, each whole, in pieces that follow each other along its first axis."""


def training_device(config: TrainConfig) -> torch.device:
    """Where a recipe trains; raises ValueError where torch has no such device here."""
    return usable_device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def starting_model(config: TrainConfig, shape: ZayaConfig) -> ZayaForCausalLM:
    """The whole model before the first step of a recipe, on its device; raises ValueError as its parts do."""
    model = empty_model(config, shape, training_device(config))
    _fill(model, first_weights(config, shape))
    return model


def empty_model(config: TrainConfig, shape: ZayaConfig, device: torch.device) -> ZayaForCausalLM:
    """The model that a recipe trains, exchanged parts and adapters in place, in memory that nothing was put into.

    It is float32, or the training dtype where only adapters move.
    """
    dtype = torch.float32 if config.lora is None else getattr(torch, config.dtype)
    with Unfilled(dtype, device):
        model = ZayaForCausalLM(shape, numerics_profile(config.numerics))
        exchange_parts(model, config.ablation)
        if config.lora is not None:
            add_adapters(model, config.lora)
    for held in held_parts(model, config.ablation):
        held.parameter.requires_grad_(False)
    return model


def first_weights(config: TrainConfig, shape: ZayaConfig) -> Iterator[tuple[str, Iterable[Tensor]]]:
    """Every tensor of `empty_model` before the first step: a function of the recipe's seed, or of its checkpoint.

    A tensor exists while it is asked for. Raises ValueError as `load_model` does where the checkpoint cannot be read.
    """
    outline = empty_model(config, shape, torch.device("meta"))
    if config.model.checkpoint is None:
        held = {part.name: part.value for part in held_parts(outline, config.ablation)}
        for name, value in initial_weights(outline, config.seed):
            kept = held.get(name)
            yield name, (value if kept is None else kept,)
        return
    source = open_source(find_model(config.model.checkpoint))
    for name in expected_tensors(source.config):
        yield name, source.pieces(name)
    for name, value in adapter_weights(outline, config.seed):
        yield name, (value,)


@torch.no_grad()
def _fill(model: ZayaForCausalLM, weights: Weights) -> None:
    """Put `weights` into `model`, which has every tensor whole."""
    tensors = model.state_dict()
    for name, pieces in weights:
        tensor = tensors.pop(name)
        copy_box(tensor, tensor.shape, tuple(slice(0, size) for size in tensor.shape), pieces)
    assert not tensors, f"nothing was put into {next(iter(tensors))}"


def copy_box(target: Tensor, whole: torch.Size, box: tuple[slice, ...], pieces: Iterable[Tensor]) -> None:
    """Fill `target` with what lies inside `box` of the tensor of shape `whole` that `pieces` make up.

    Of a piece that is a view of a file only that part is read.
    """
    rows, others = box[0], box[1:]
    size = math.prod(whole[1:])
    first = 0
    for piece in pieces:
        last = first + piece.numel() // size
        start, stop = max(first, rows.start), min(last, rows.stop)
        if start < stop:
            inside = piece.reshape(last - first, *whole[1:])[(slice(start - first, stop - first), *others)]
            target[start - rows.start : stop - rows.start].copy_(inside)
        first = last
    assert first == whole[0], f"pieces have {first} rows of {whole[0]}"
