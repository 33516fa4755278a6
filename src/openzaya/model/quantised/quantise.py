"""Quantise a checkpoint folder into a container, in memory for a few tensors: read, round, pack, hash, write in turn.

    any folder ─► open_source ─► rows in chunks ─► quantise ─► codes ─► the file, then scales
                                                                 └────► hashes ─► the header, at the end

The container appears whole or not at all: it is written beside its place and renamed. An interrupted run leaves
nothing; what a killed one left is removed by the next.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from openzaya.model.config import ZayaConfig
from openzaya.model.quantised.container import Container, bytes_of
from openzaya.model.quantised.header import HASH_BYTES, METHOD, VERSION, Header, architecture
from openzaya.model.quantised.matrices import Matrix, check_shapes, matrices, plain_tensors
from openzaya.model.quantised.packing import DTYPES, quantise
from openzaya.model.quantised.scheme import DEFAULT_SCHEME, Scheme
from openzaya.model.sources import Source, companions, open_source
from openzaya.model.storage import CONFIG, SINGLE, Outgoing, replace_metadata, replaced_folder, write_file, write_json

_CHUNK_ROWS = 4096
"""Rows that are rounded and packed at a time; a multiple of every block."""
ALIGNMENT = 64
"""The integers and scales of every matrix start at multiples of this many bytes: a line of the processor's cache."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a quantisation is, by bytes written."""

    done: int
    total: int
    seconds: float

    @property
    def seconds_left(self) -> float:
        return self.seconds * (self.total - self.done) / max(1, self.done)


def quantise_checkpoint(
    source: str | Path,
    destination: str | Path,
    scheme: Scheme = DEFAULT_SCHEME,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Write the checkpoint folder `source`, of any kind that loads, to the folder `destination` in `scheme`.

    Tokenizer, template and generation settings are copied along. `progress` is called after every chunk. Raises
    ValueError before anything is written for a source that cannot be read or is a container already, a shape that the
    scheme cannot hold, a destination that is the source or too full; and, leaving nothing, for weights that are not
    finite numbers.
    """
    folder = Path(destination)
    if folder.exists() and folder.samefile(source):
        raise ValueError(f"{folder} is the checkpoint itself; give another folder for the quantised model")
    weights = open_source(source)
    if isinstance(weights, Container):
        raise ValueError(f"{source} is quantised already ({weights.scheme}); give the checkpoint that it was made from")
    check_shapes(weights.config, scheme)
    outgoing = [tensor for unit in units_of(weights, scheme) for tensor in unit.tensors]
    write_container(folder, weights.config, scheme, outgoing, companions(source), progress)


def write_container(
    folder: Path,
    config: ZayaConfig,
    scheme: Scheme,
    outgoing: Iterable[Outgoing],
    copied: Iterable[Path] = (),
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Write the tensors of a container, hashing each on its way, with its header, config.json and the files `copied`.

    Raises ValueError where `folder` has too little room or holds something else.
    """
    began = time.monotonic()
    hashes: dict[str, str] = {}
    tensors = [hashed(tensor, hashes) for tensor in outgoing]
    total = sum(tensor.size for tensor in tensors)
    check_room(folder, total)
    # Hashes are known at the end but stand at the start, so zeros of the same length keep their place.
    header = Header(scheme, architecture(config), {tensor.name: "00" * HASH_BYTES for tensor in tensors})
    with replaced_folder(folder) as partial:
        write_json(partial / CONFIG, config_fields(config, scheme))
        for path in copied:
            shutil.copyfile(path, partial / path.name)
        done = 0
        for written in write_file(partial / SINGLE, tensors, header.to_metadata(), alignment=ALIGNMENT):
            done += written
            if progress is not None:
                progress(Progress(done, total, time.monotonic() - began))
        replace_metadata(partial / SINGLE, replace(header, hashes=hashes).to_metadata())


def config_fields(config: ZayaConfig, scheme: Scheme) -> dict[str, object]:
    """config.json of a container: the model's own, and a mark for loaders that know only plain weights."""
    kept = {"quant_method": METHOD, "version": VERSION, "scheme": scheme.name, "group": scheme.group}
    return config.to_dict() | {"quantization_config": kept}


@dataclass(frozen=True, slots=True)
class Unit:
    """Tensors of a container that are written together: integers and scales of a matrix, or one that stays plain."""

    tensors: tuple[Outgoing, ...]
    natives: tuple[str, ...]
    """The tensors of the model that they are made from."""


def units_of(weights: Source, scheme: Scheme) -> list[Unit]:
    """Every tensor of the container: matrices in the order of the forward, then the others, wide types first."""
    pairs = [
        Unit(_codes_and_scales(weights, matrix, scheme), tuple(part.native for part in matrix.parts))
        for matrix in matrices(weights.config)
    ]
    plain = []
    for tensor in plain_tensors(weights.config):
        stored = weights.dtype(tensor.native)
        kept = torch.float32 if tensor.float32 or stored == torch.float64 else stored
        outgoing = Outgoing(tensor.native, tensor.shape, kept, _pieces_of(weights, tensor.native))
        plain.append(Unit((outgoing,), (tensor.native,)))
    return [*pairs, *sorted(plain, key=lambda unit: -unit.tensors[0].dtype.itemsize)]


def _pieces_of(weights: Source, native: str) -> Callable[[], Iterable[Tensor]]:
    return lambda: weights.pieces(native)


def _codes_and_scales(weights: Source, matrix: Matrix, scheme: Scheme) -> tuple[Outgoing, Outgoing]:
    """Two tensors of one rounding: the scales wait in memory until the integers before them are written."""
    waiting: list[Tensor] = []

    def codes() -> Iterator[Tensor]:
        for expert in (None,) if matrix.experts is None else range(matrix.experts):
            pieces = chain.from_iterable(weights.pieces(part.native, expert) for part in matrix.parts)
            for chunk in _in_chunks(pieces, matrix.rows if matrix.interleaved else _CHUNK_ROWS):
                try:
                    rounded = quantise(chunk, scheme, interleaved=matrix.interleaved)
                except ValueError as error:
                    raise ValueError(f"{weights.folder}, {matrix.name}: {error}") from None
                waiting.append(rounded.scales)
                yield rounded.codes
        weights.release()

    def scales() -> Iterator[Tensor]:
        while waiting:
            yield waiting.pop(0)

    return (
        Outgoing(matrix.codes_name, matrix.codes_shape(scheme), DTYPES[scheme.code_type], codes),
        Outgoing(matrix.scales_name, matrix.scales_shape(scheme), DTYPES[scheme.scale_type], scales),
    )


def _in_chunks(pieces: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """The rows of `pieces` in chunks of `rows`, the last one with what is left."""
    waiting: list[Tensor] = []
    for piece in pieces:
        start = 0
        while start < len(piece):
            waiting.append(piece[start : start + rows - sum(map(len, waiting))])
            start += len(waiting[-1])
            if sum(map(len, waiting)) == rows:
                yield torch.cat(waiting)
                waiting.clear()
    if waiting:
        yield torch.cat(waiting)


def hashed(tensor: Outgoing, hashes: dict[str, str]) -> Outgoing:
    """The same tensor, which leaves the hash of its bytes in `hashes` once it is written."""

    def pieces() -> Iterator[Tensor]:
        digest = hashlib.blake2b(digest_size=HASH_BYTES)
        for piece in tensor.pieces():
            kept = piece.to(tensor.dtype).contiguous()
            digest.update(bytes_of(kept))
            yield kept
        hashes[tensor.name] = digest.hexdigest()

    return replace(tensor, pieces=pieces)


def check_room(folder: Path, total: int) -> None:
    """Raises ValueError where the disk of `folder` has fewer than `total` bytes free."""
    parent = next(path for path in folder.absolute().parents if path.exists())
    if (free := shutil.disk_usage(parent).free) < total:
        raise ValueError(
            f"{folder} needs {total / 1e9:.1f} GB of disk and {free / 1e9:.1f} GB are free there; make room, or give "
            "a folder on another disk"
        )
