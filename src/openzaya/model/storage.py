"""Safetensors folders on disk: read lazily through the memory map, written as a stream, replaced whole or not at all.

The writer lays out the format itself (an 8-byte length, a JSON header, then the tensors' bytes) because the library's
writer wants every tensor of a shard in memory at once, and a conversion should need room for one.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import secrets
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TYPE_NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_DTYPES: Mapping[str, torch.dtype] = {name: dtype for dtype, name in _TYPE_NAMES.items()}
_WRITTEN_NAMES: Mapping[torch.dtype, str] = {**_TYPE_NAMES, torch.uint8: "U8", torch.int8: "I8"}
"""With the integers of quantised matrices, which no plain checkpoint holds."""


# ---- reading ----


class Archive:
    """The tensors of a checkpoint folder by name; none is read before it is asked for.

    Raises ValueError, naming the file, for a missing, broken or truncated shard, an index that disagrees with its
    shards, a tensor held twice, and for pickled weights, which are never opened.
    """

    def __init__(self, folder: str | Path, awaited: Mapping[str, Any] = MappingProxyType({})) -> None:
        """`awaited` are shards that may not have come yet, by file name: what stands for each until `release` finds it,
        with names, shapes and types but no values."""
        self.folder = Path(folder)
        self._awaited = awaited
        self._shards: dict[Path, Any] = {}
        self._shard_of: dict[str, Path] = {}
        index = self.folder / INDEX
        weight_map = _weight_map(self.folder)
        for path in sorted({self.folder / shard for shard in weight_map.values()}) or [self.folder / SINGLE]:
            self._shards[path] = self._opened(path)
            for name in self._shards[path].keys():  # noqa: SIM118 (not a mapping)
                if name in self._shard_of:
                    raise ValueError(f"{path} and {self._shard_of[name].name} both hold {name}; keep one of the two")
                self._shard_of[name] = path
        for name, shard in weight_map.items():
            if self._shard_of.get(name) != self.folder / shard:
                raise ValueError(f"{index} places {name} in {shard}, which does not hold it; download the folder again")
        for name, path in self._shard_of.items():
            if weight_map and name not in weight_map:
                raise ValueError(f"{path} holds {name}, which {index.name} does not list; download the folder again")

    @property
    def names(self) -> Sequence[str]:
        return list(self._shard_of)

    def file(self, name: str) -> Path:
        return self._shard_of[name]

    def files(self, name: str) -> frozenset[Path]:
        """All the files that a tensor is read from."""
        return frozenset({self.file(name)})

    @property
    def here(self) -> frozenset[Path]:
        """The files that can be read: all but those that had not come when they were last looked for."""
        return frozenset(path for path, shard in self._shards.items() if shard is not self._awaited.get(path.name))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._shards[self.file(name)].get_slice(name).get_shape())

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the header of the only file says beside the tensors; nothing where there are shards."""
        return {} if len(self._shards) > 1 else next(iter(self._shards.values())).metadata() or {}

    def stored_type(self, name: str) -> str:
        """The type of a tensor as safetensors names it: "BF16", "U8"."""
        return self._shards[self.file(name)].get_slice(name).get_dtype()

    def dtype(self, name: str) -> torch.dtype:
        """Raises ValueError for a tensor that is not of a plain floating type."""
        stored = self.stored_type(name)
        if stored not in _DTYPES:
            raise ValueError(
                f"{self.file(name)}: {name} is stored as {stored}, and openzaya reads float32, bfloat16, float16 "
                "and float64; give it the checkpoint that this one was quantised from"
            )
        return _DTYPES[stored]

    def read(self, name: str) -> Tensor:
        """The tensor, a view of the mapped file."""
        return self._shards[self.file(name)].get_tensor(name)

    def read_slice(self, name: str, index: int) -> Tensor:
        """The tensor's part at `index` of its first axis, a view of the mapped file."""
        return self.read(name)[index]

    def release(self) -> None:
        """Map the files anew, so that pages read so far no longer count as this process's; views stay valid."""
        for path in self._shards:
            self._shards[path] = self._opened(path)

    def _opened(self, path: Path) -> Any:
        if path.name in self._awaited and not path.is_file():
            return self._awaited[path.name]
        return _open_shard(path)


def _weight_map(folder: Path) -> Mapping[str, str]:
    """Shard of each tensor as the index says, or nothing where the folder holds a single file."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder that holds config.json and model.safetensors")
    index, single = folder / INDEX, folder / SINGLE
    if index.is_file() and single.is_file():
        raise ValueError(f"{folder} holds both {SINGLE} and {INDEX}; remove the one that is out of date")
    if index.is_file():
        return _read_index(index)
    if single.is_file():
        return {}
    if pickles := sorted(path for pattern in _PICKLES for path in folder.glob(pattern)):
        raise ValueError(
            f"{pickles[0]} is a pickle, which can run code when it is read; convert it where you trust it, with "
            "transformers' save_pretrained, and give the folder of safetensors"
        )
    if shards := sorted(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds {shards[0].name} but no {INDEX} that says what is where; add that file")
    raise ValueError(f"{folder} holds no weights; {SINGLE} or {INDEX} with its shards must be there")


def _read_index(path: Path) -> Mapping[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not an index with a weight_map ({error})") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} has a weight_map without tensors; download the folder again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{path} places {name} in {shard!r}; a shard is a file name in the same folder")
    return weight_map


def _open_shard(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path} is missing, and the index names it; download the folder again")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is broken or cut short ({error}); download it again") from None


# ---- writing ----


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A tensor to be written, and where its bytes come from, in row-major pieces that are dropped one by one."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterable[Tensor]]

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_weights(
    folder: Path,
    tensors: Iterable[Outgoing],
    max_shard_bytes: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `tensors` into `folder` as one safetensors file, or as shards with an index.

    `progress` gets the bytes written so far and in all. Raises ValueError where `max_shard_bytes` is not positive; a
    single tensor larger than that has a shard to itself.
    """
    shards = _split(tensors, max_shard_bytes)
    total = sum(tensor.size for shard in shards for tensor in shard)
    done = 0
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map.update({tensor.name: name for tensor in shard})
        for written in _write_shard(folder / name, shard):
            done += written
            if progress is not None:
                progress(done, total)
    if len(shards) > 1:
        elements = sum(torch.Size(tensor.shape).numel() for shard in shards for tensor in shard)
        metadata = {"total_parameters": elements, "total_size": total}
        write_json(folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})


def _split(tensors: Iterable[Outgoing], max_shard_bytes: int) -> list[list[Outgoing]]:
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}; it must be at least 1")
    shards: list[list[Outgoing]] = []
    room = 0
    for tensor in tensors:
        if not shards or tensor.size > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.size
    # Wide types first, so that every tensor starts at a multiple of its own item size.
    return [sorted(shard, key=lambda tensor: -tensor.dtype.itemsize) for shard in shards]


def _write_shard(path: Path, tensors: Sequence[Outgoing]) -> Iterator[int]:
    return write_file(path, tensors, {"format": "pt"})


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Where everything is in a file that is to be written."""

    opening: bytes
    """Length and header."""
    starts: Mapping[str, int]
    """The first byte of each tensor, from the start of the file."""
    size: int


def lay_out(tensors: Sequence[Outgoing], metadata: Mapping[str, str], *, alignment: int = 8) -> FileLayout:
    """One file in the order of `tensors`, the first of which starts at a multiple of `alignment` bytes."""
    header: dict[str, Any] = {"__metadata__": metadata}
    starts: dict[str, int] = {}
    end = 0
    for tensor in tensors:
        starts[tensor.name], end = end, end + tensor.size
        header[tensor.name] = {
            "dtype": _WRITTEN_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [starts[tensor.name], end],
        }
    text = _header_text(header)
    text += b" " * (-(8 + len(text)) % alignment)
    opening = struct.pack("<Q", len(text)) + text
    return FileLayout(opening, {name: len(opening) + start for name, start in starts.items()}, len(opening) + end)


def write_file(
    path: Path, tensors: Sequence[Outgoing], metadata: Mapping[str, str], *, alignment: int = 8
) -> Iterator[int]:
    """Write one file in the order of `tensors`, yielding the bytes of each piece once it is handed to the system.

    The first tensor starts at a multiple of `alignment` bytes.
    """
    with path.open("wb") as file:
        file.write(lay_out(tensors, metadata, alignment=alignment).opening)
        for tensor in tensors:
            yield from write_tensor(file, tensor)
        file.flush()
        os.fsync(file.fileno())


def write_tensor(file: BinaryIO, tensor: Outgoing) -> Iterator[int]:
    """Write one tensor where `file` stands, yielding the bytes of each piece once it is handed to the system."""
    written = 0
    for piece in tensor.pieces():
        flat = piece.detach().to(device="cpu", dtype=tensor.dtype).contiguous().flatten()
        written += file.write(flat.view(torch.uint8).numpy().data)
        yield flat.nbytes
    if written != tensor.size:
        raise ValueError(f"{tensor.name} gave {written} bytes where its shape {tensor.shape} has {tensor.size}")


def replace_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Put other metadata into a file of `write_file`, for what is only known at the end; it must not be longer."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        text = _header_text(header | {"__metadata__": metadata})
        if len(text) > length:
            raise ValueError(f"{path} has no room for {len(text) - length} more bytes of metadata")
        file.seek(8)
        file.write(text.ljust(length))
        file.flush()
        os.fsync(file.fileno())


def _header_text(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` once the block ends without an exception.

    Until then `folder` is as it was. Weights and config.json of an older checkpoint there are replaced; its other files
    (tokenizer, card) stay. Raises ValueError where `folder` holds something that is not a checkpoint.
    """
    folder = folder.absolute()
    check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    mark = secrets.token_hex(4)
    partial = folder.with_name(f".{folder.name}.{mark}.partial")
    partial.mkdir()
    held = _hold(partial)
    try:
        yield partial
        put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if held is not None:
            os.close(held)


def check_replaceable(folder: Path) -> None:
    """Raises ValueError where `folder` holds something that is not a checkpoint."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the folder to write the checkpoint to")
    if folder.is_dir() and any(folder.iterdir()) and not _holds_model(folder):
        raise ValueError(f"{folder} has files in it but no model; give a new or an empty folder, or a model's own")


def put_in_place(new: Path, folder: Path) -> None:
    """Give the finished folder `new` the name `folder`, with what an older checkpoint there had beside its weights."""
    if folder.is_dir():
        _keep_other_files(folder, new)
    _sync_folder(new)
    _swap(new, folder, folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old"))


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left of their work on `folder`: partial folders that nobody holds any more."""
    for partial in folder.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * 8}.partial"):
        if (held := _hold(partial)) is not None:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(held)


def _hold(partial: Path) -> int | None:
    """A descriptor that locks a folder as long as it is open, or None where another process has it.

    The system gives the lock up when its process ends, however it ends. Systems without such locks hold nothing.
    """
    try:
        import fcntl

        descriptor = os.open(partial, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _swap(new: Path, folder: Path, aside: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        _sync_folder(folder.parent)
        return
    folder.rename(aside)
    try:
        new.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    _sync_folder(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _holds_model(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CONFIG, "tokenizer.json", SINGLE, INDEX))


def _is_weights(path: Path) -> bool:
    """Whether a file of a model folder is weights or their index."""
    return path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")


def _keep_other_files(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if _is_weights(path) or path.name == CONFIG or (target / path.name).exists():
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name, symlinks=True, copy_function=_link)
        else:
            _link(path, target / path.name)


def _link(source: str | Path, target: str | Path) -> None:
    """A hard link, or a copy where the file system has none; the old folder goes away, so nothing stays shared."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable, where the system lets a folder be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
