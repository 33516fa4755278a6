"""Checkpoints of torchtitan in the native layout, in and out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torchtitan.components.checkpointer import MODEL, AsyncMode, CheckpointManager
from torchtitan.protocols.state_dict_adapter import BaseStateDictAdapter

from openzaya.model.names import StoredTensor, expected_tensors
from openzaya.model.sources import companions
from openzaya.model.storage import CONFIG, write_json
from openzaya.train.schedule import total_steps
from openzaya.train.titan.recipe import Assigned, Assignment

_SHARD_BYTES = 5_000_000_000
_RANKS = "sharded"
"""Where torchtitan gathers the parts of the ranks before it joins them."""


class NativeLayout(BaseStateDictAdapter):
    """Between our names of weights and those of Hugging Face's `zaya`, which are the same."""

    def __init__(self, model_config: Any, hf_assets_path: str | None) -> None:
        self.tensors = expected_tensors(model_config.assignment.shape)
        self.hf_assets_path = hf_assets_path
        self.fqn_to_index_mapping = shards_of(self.tensors)

    def to_hf(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        return {name: state_dict[name] for name in self.tensors}

    def from_hf(self, hf_state_dict: Mapping[str, Any]) -> dict[str, Any]:
        return dict(hf_state_dict)

    def get_hf_storage_reader(self, path: str, from_quantized: bool = False) -> HuggingFaceStorageReader:
        """Raises ValueError for quantised weights."""
        if from_quantized:
            raise ValueError(f"{path} is quantised; start from the checkpoint that it was quantised from")
        return HuggingFaceStorageReader(path)


def shards_of(tensors: Mapping[str, StoredTensor], most: int = _SHARD_BYTES) -> dict[str, int]:
    """The number of the file, from 1, that each tensor goes into: in their order, as many as `most` bytes hold."""
    shards, number, filled = {}, 1, 0
    for name, tensor in tensors.items():
        if filled and filled + 4 * tensor.elements > most:
            number, filled = number + 1, 0
        shards[name] = number
        filled += 4 * tensor.elements
    return shards


class PhaseCheckpoints(CheckpointManager):
    """torchtitan's checkpoints, and at the end of a phase its model folder, as our own loop leaves it."""

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        assignment: Assigned = None

    def __init__(self, config: Config, **parts: Any) -> None:
        super().__init__(config, **parts)
        self.assignment: Assignment = config.assignment

    def dcp_save(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        async_mode: AsyncMode,
        enable_garbage_collection: bool = False,
        to_hf: bool = False,
    ) -> Any:
        """As torchtitan's, with the balancing biases in float32 whatever it exports; a folder of weights is whole."""
        own = self.states[MODEL].state_dict()
        exact = {name: own[name] for name, tensor in self._tensors().items() if tensor.float32 and name in state_dict}
        saved = super().dcp_save({**state_dict, **exact}, checkpoint_id, async_mode, enable_garbage_collection, to_hf)
        if to_hf and dist.get_rank() == 0:
            self._complete(Path(checkpoint_id), state_dict["model.embed_tokens.weight"].dtype)
        return saved

    def _save_last_step(self, curr_step: int) -> None:
        super()._save_last_step(curr_step)
        if curr_step == total_steps(self.assignment.phase):
            self._export(self.assignment.run.folder / self.assignment.phase.name)

    def _export(self, folder: Path) -> None:
        """Leave the model of the finished phase, whole or not at all."""
        partial, config = folder.with_suffix(".partial"), self.assignment.run.config
        assert self.assignment.shape is not None
        # Training from random weights keeps the masters as they are; a checkpoint goes on in the type that it came in.
        dtype = getattr(torch, "float32" if config.model.checkpoint is None else self.assignment.shape.dtype)
        weights = {name: tensor.to(dtype) for name, tensor in self.states[MODEL].state_dict().items()}
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        dist.barrier()
        self.dcp_save(weights, str(partial), AsyncMode.DISABLED, to_hf=True)
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            partial.replace(folder)
        dist.barrier()

    def _complete(self, folder: Path, dtype: torch.dtype) -> None:
        """Add what makes a folder of weights a model, the description last."""
        assert self.assignment.shape is not None
        shutil.rmtree(folder / _RANKS, ignore_errors=True)
        for path in companions(self.assignment.run.folder / "tokenizer"):
            shutil.copyfile(path, folder / path.name)
        write_json(folder / CONFIG, self.assignment.shape.with_(dtype=str(dtype).removeprefix("torch.")).to_dict())

    def _tensors(self) -> dict[str, StoredTensor]:
        assert self.assignment.shape is not None
        return expected_tensors(self.assignment.shape)
