"""A folder of quantised weights, opened through the memory map: nothing is read before it is used.

Opening checks what is cheap: the header, config.json against it, the name, type and shape of every tensor, the size of
the file (by the safetensors library), and the hashes of the small tensors. `verify` checks every byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from openzaya.model.config import ZayaConfig
from openzaya.model.quantised.header import HASH_BYTES, read_header
from openzaya.model.quantised.matrices import Matrix, check_shapes, matrices, plain_tensors
from openzaya.model.quantised.packing import QuantisedMatrix, dequantise
from openzaya.model.quantised.scheme import Scheme
from openzaya.model.storage import SINGLE, Archive

_PLAIN_TYPES = ("F32", "BF16", "F16")
_HASHED_ON_OPENING = 1 << 16
"""Bytes up to which a tensor is hashed on opening: norms, scales and biases, two megabytes of the 8B in all."""
_CHUNK_ROWS = 2048
"""Rows that are dequantised at a time; a multiple of every block."""


class Container:
    """The quantised weights of a ZAYA in `folder`.

    Raises ValueError, in one sentence that names the file and a way out, for a file that is cut short, damaged, of a
    newer version or of another architecture than config.json.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / SINGLE
        self._archive = Archive(folder)
        self.config = _read_config(self.folder)
        try:
            self.header = read_header(self._archive.metadata)
            self.header.check_architecture(self.config)
            check_shapes(self.config, self.header.scheme)
            self._check_tensors()
            for name in self._archive.names:
                if self._archive.read(name).nbytes <= _HASHED_ON_OPENING:
                    self._check_hash(name)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        self.matrices: Mapping[str, Matrix] = {matrix.name: matrix for matrix in matrices(self.config)}
        self._holder = {part.native: matrix for matrix in self.matrices.values() for part in matrix.parts}

    @property
    def scheme(self) -> Scheme:
        return self.header.scheme

    @property
    def nbytes(self) -> int:
        return self.path.stat().st_size

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compare every tensor with its hash; raises ValueError, naming the first that differs.

        `progress` gets bytes done and bytes in all.
        """
        sizes = {name: self._archive.read(name).nbytes for name in self._archive.names}
        done = 0
        for name, size in sizes.items():
            try:
                self._check_hash(name)
            except ValueError as error:
                raise ValueError(f"{self.path}: {error}") from None
            done += size
            if progress is not None:
                progress(done, sum(sizes.values()))

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is stored, a view of the mapped file."""
        return self._archive.read(name)

    def matrix(self, name: str, expert: int | None = None) -> QuantisedMatrix:
        """A quantised matrix, of one expert where there are several; its tensors are views of the mapped file."""
        entry = self.matrices[name]
        codes, scales = self.tensor(entry.codes_name), self.tensor(entry.scales_name)
        if expert is not None:
            codes, scales = codes[expert], scales[expert]
        return QuantisedMatrix(codes, scales, self.scheme, entry.rows, entry.interleaved)

    # ---- the weights by their native names, as a Source ----

    def dtype(self, native: str) -> torch.dtype:
        """What a tensor is stored in; of a quantised one, what the model was before."""
        if native not in self._holder:
            return self._archive.dtype(native)
        return torch.bfloat16 if self.config.dtype == "bfloat16" else torch.float32

    def pieces(self, native: str, expert: int | None = None) -> Iterator[Tensor]:
        """A tensor of the model, or one expert's slice of it, dequantised to float32, in row-major pieces."""
        entry = self._holder.get(native)
        if entry is None:
            yield self.tensor(native)
            return
        if entry.experts is not None:
            for each in range(entry.experts) if expert is None else (expert,):
                yield dequantise(self.matrix(entry.name, each))
            return
        first = entry.first_row(native)
        rows = next(part.shape[0] for part in entry.parts if part.native == native)
        for chunk_start, chunk in self._row_chunks(entry, first, first + rows):
            yield chunk[max(0, first - chunk_start) : first + rows - chunk_start]

    def release(self) -> None:
        """Give back the memory of what was read, as far as no view is held any more."""
        self._archive.release()

    def _row_chunks(self, entry: Matrix, first: int, last: int) -> Iterator[tuple[int, Tensor]]:
        """Dequantised rows in chunks that begin at a block and cover `first` to `last`."""
        whole = self.matrix(entry.name)
        block = self.scheme.block
        for start in range(first - first % block, last, _CHUNK_ROWS):
            rows = min(_CHUNK_ROWS, entry.rows - start)
            blocks = slice(start // block, start // block + self.scheme.blocks(rows))
            yield start, dequantise(QuantisedMatrix(whole.codes[blocks], whole.scales[blocks], self.scheme, rows))

    # ---- checks ----

    def _check_tensors(self) -> None:
        expected = _expected(self.config, self.scheme)
        present = set(self._archive.names)
        if missing := sorted(expected.keys() - present):
            raise ValueError(f"{missing[0]} is missing; the file is damaged, quantise the model again")
        if unknown := sorted(present - expected.keys()):
            raise ValueError(f"{unknown[0]} is no tensor of this model; the file is damaged, quantise it again")
        if self.header.hashes.keys() != present:
            raise ValueError("its header does not have a hash of every tensor; the file is damaged, quantise it again")
        for name, (shape, types) in expected.items():
            found = self._archive.shape(name), self._archive.stored_type(name)
            if found[0] != shape or found[1] not in types:
                raise ValueError(
                    f"{name} is stored as {found[1]} {list(found[0])}, not as {types[0]} {list(shape)}; the file is "
                    "damaged, quantise the model again"
                )

    def _check_hash(self, name: str) -> None:
        if hash_of(self.tensor(name)) != self.header.hashes[name]:
            raise ValueError(f"{name} is damaged (its hash differs); copy the file again or quantise the model again")


def hash_of(tensor: Tensor) -> str:
    """The hash of a tensor's bytes, in hex."""
    return hashlib.blake2b(bytes_of(tensor), digest_size=HASH_BYTES).hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, without a copy where it lies so already."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data


def _read_config(folder: Path) -> ZayaConfig:
    try:
        return ZayaConfig.from_folder(folder)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{folder / 'config.json'} cannot be read ({type(error).__name__}: {error})") from None


def _expected(config: ZayaConfig, scheme: Scheme) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Shape and possible types of every tensor of a container."""
    expected: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}
    for matrix in matrices(config):
        expected[matrix.codes_name] = matrix.codes_shape(scheme), (scheme.code_type,)
        expected[matrix.scales_name] = matrix.scales_shape(scheme), (scheme.scale_type,)
    for tensor in plain_tensors(config):
        expected[tensor.native] = tensor.shape, ("F32",) if tensor.float32 else _PLAIN_TYPES
    return expected
