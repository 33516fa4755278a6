"""Storage for `torch.distributed.checkpoint` that holds nothing but safetensors and JSON.

torch's own file storage keeps its metadata in a pickle, which runs whatever code its author put there. Here a
checkpoint is a folder of `rank-00000.safetensors`, ... with the pieces of tensors that each rank had, and
`checkpoint.json`, which says of every tensor its type, shape and pieces, and of every piece its place, file and
SHA-256. torch plans who writes and who reads which piece, so a checkpoint loads on any number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint import StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from openzaya.model.storage import Outgoing, write_file

CONTENTS = "checkpoint.json"
PARTIAL = ".partial"
"""Ending of a folder that is no checkpoint yet, or no longer."""

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor, and where its bytes are."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    key: str
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Sequence[Piece]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint holds: tensors by name, and what else the run has to know."""

    tensors: Mapping[str, StoredTensor]
    progress: Mapping[str, Any]


# ---- writing ----


class PieceWriter(StorageWriter):
    """Writes the pieces of this rank into a folder aside, which the coordinator names `path` when all have."""

    def __init__(self, path: Path, rank: int, progress: Mapping[str, Any]) -> None:
        self.path, self.folder = path, path.with_suffix(PARTIAL)
        self.rank, self.progress = rank, progress

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        name = f"rank-{self.rank:05d}.safetensors"
        outgoing, results = [], []
        for number, item in enumerate(plan.items):
            tensor = planner.resolve_data(item)
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{item.index.fqn} is no tensor; what a run knows besides tensors goes into progress")
            held = tensor.detach().cpu().contiguous()
            key = f"{item.index.fqn}/{number}"
            outgoing.append(Outgoing(key, tuple(held.shape), held.dtype, lambda held=held: (held,)))  # type: ignore[misc]
            results.append(WriteResult(item.index, held.nbytes, (name, key, tuple(held.shape), _sha256(held))))
        for _bytes in write_file(self.folder / name, outgoing, {"format": "pt"}):
            pass
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        pieces: dict[str, list[dict[str, Any]]] = {}
        for result in (result for of_rank in results for result in of_rank):
            file, key, sizes, sha256 = result.storage_data
            offsets = result.index.offset or torch.Size([0] * len(sizes))
            piece = {"offsets": list(offsets), "sizes": list(sizes), "file": file, "key": key, "sha256": sha256}
            pieces.setdefault(result.index.fqn, []).append(piece)
        tensors = {}
        for name, stored in metadata.state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata)
            dtype = str(stored.properties.dtype).removeprefix("torch.")
            tensors[name] = {"dtype": dtype, "shape": list(stored.size), "pieces": pieces.get(name, [])}
        contents = {"version": _VERSION, "progress": dict(self.progress), "tensors": tensors}
        body = json.dumps(contents)
        with (self.folder / CONTENTS).open("w", encoding="utf-8") as file:
            # Its own hash, on a line of its own, tells a damaged description.
            file.write(f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n")
            file.flush()
            os.fsync(file.fileno())
        self._name()

    def _name(self) -> None:
        sync_folder(self.folder)
        if self.path.exists():
            former = self.path.with_suffix(f".former{PARTIAL}")
            self.path.rename(former)
            self.folder.rename(self.path)
            shutil.rmtree(former)
        else:
            self.folder.rename(self.path)
        sync_folder(self.path.parent)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


# ---- reading ----


class PieceReader(StorageReader):
    """Reads what the planner asks for out of a checkpoint folder, and checks every piece that it touches."""

    def __init__(self, folder: Path, contents: Contents | None = None) -> None:
        self.folder = folder
        self.contents = contents or read_contents(folder)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """One reader reads one folder."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        stored = {
            name: TensorStorageMetadata(
                TensorProperties(tensor.dtype),
                torch.Size(tensor.shape),
                [ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes)) for p in tensor.pieces],
            )
            for name, tensor in self.contents.tensors.items()
        }
        return Metadata(state_dict_metadata=dict(stored))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """All that it needs is in the contents."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            if item.type is not LoadItemType.TENSOR:
                raise ValueError(f"{item.storage_index.fqn} is asked for as bytes; a checkpoint holds tensors alone")
            piece = read_piece(self.folder, self._piece(item.storage_index))
            for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths)):
                piece = piece.narrow(dim, start, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(piece)
            planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _piece(self, index: MetadataIndex) -> Piece:
        pieces = self.contents.tensors[index.fqn].pieces
        if index.offset is None:
            return pieces[0]
        return next(piece for piece in pieces if piece.offsets == tuple(index.offset))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def read_contents(folder: Path) -> Contents:
    """What the checkpoint in `folder` holds; raises ValueError where that is not to be told or not what was written."""
    path = folder / CONTENTS
    try:
        body, _, rest = path.read_text(encoding="utf-8").partition("\n")
        if rest.strip() != hashlib.sha256(body.encode()).hexdigest():
            raise ValueError("it is not what was written")
        read = json.loads(body)
        if read["version"] != _VERSION:
            raise ValueError(f"it is of version {read['version']}, and this program reads {_VERSION}")
        tensors = {name: _stored(tensor) for name, tensor in read["tensors"].items()}
        return Contents(tensors, read["progress"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not describe a checkpoint ({error})") from None


def _stored(tensor: Mapping[str, Any]) -> StoredTensor:
    pieces = []
    for piece in tensor["pieces"]:
        if Path(piece["file"]).name != piece["file"]:
            raise ValueError(f"it names the file {piece['file']!r}, which is not in its folder")
        offsets, sizes = tuple(piece["offsets"]), tuple(piece["sizes"])
        pieces.append(Piece(offsets, sizes, piece["file"], piece["key"], piece["sha256"]))
    dtype = getattr(torch, tensor["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{tensor['dtype']!r} is no type of tensor")
    return StoredTensor(dtype, tuple(tensor["shape"]), pieces)


def read_piece(folder: Path, piece: Piece) -> Tensor:
    """The tensor of one piece; raises ValueError where it is not what was written."""
    try:
        with safe_open(folder / piece.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(piece.key)
    except Exception as error:
        raise ValueError(f"{folder / piece.file} cannot be read ({error})") from None
    if _sha256(tensor) != piece.sha256 or tuple(tensor.shape) != piece.sizes:
        raise ValueError(f"{folder / piece.file}: {piece.key} is not what was written")
    return tensor


def read_tensor(folder: Path, tensor: StoredTensor) -> Tensor:
    """The whole of one tensor, put together out of its pieces; raises ValueError as `read_piece` does."""
    whole = torch.empty(tensor.shape, dtype=tensor.dtype)
    for piece in tensor.pieces:
        box = tuple(slice(start, start + size) for start, size in zip(piece.offsets, piece.sizes))
        whole[box] = read_piece(folder, piece)
    return whole
