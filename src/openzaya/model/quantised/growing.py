"""A container that is written a few tensors at a time, as the checkpoint's files arrive, over as many runs as it takes.

    a file arrives ─► the units that are whole now ─► rounded, at their place in the file ─► synced ─► done.jsonl
                                                                    last unit ─► hashes into the header

The whole size is reserved at the start, so a full disk shows then. What `done.jsonl` names is on the disk for good; a
run that is killed loses the matrix it was writing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from openzaya.model.quantised.header import HASH_BYTES, Header, architecture
from openzaya.model.quantised.matrices import check_shapes
from openzaya.model.quantised.quantise import ALIGNMENT, Unit, config_fields, hashed, units_of
from openzaya.model.quantised.scheme import Scheme
from openzaya.model.sources import PlainSource
from openzaya.model.storage import CONFIG, lay_out, replace_metadata, write_json, write_tensor

_HEAD = "lm_head.weight"
"""Recorded once it was compared; as a tensor of the file it only has a name with a suffix."""
_PLAIN_BYTES = 64 << 20
"""Bytes of small tensors that are written before the disk is waited for."""


class GrowingContainer:
    """The container in the file `path`; `record` says which of its tensors are done."""

    def __init__(self, path: Path, record: Path, weights: PlainSource, scheme: Scheme) -> None:
        """Writes nothing yet. Raises ValueError for a shape that the scheme cannot hold."""
        check_shapes(weights.config, scheme)
        self._path, self._record, self._weights, self._scheme = path, record, weights, scheme
        self.config = weights.config
        self._units = units_of(weights, scheme)
        tensors = [tensor for unit in self._units for tensor in unit.tensors]
        zeros = {tensor.name: "00" * HASH_BYTES for tensor in tensors}
        self._header = Header(scheme, architecture(weights.config), zeros)
        self._layout = lay_out(tensors, self._header.to_metadata(), alignment=ALIGNMENT)
        self._hashes = self._recorded()
        self._file: BinaryIO | None = None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._layout.size

    @property
    def done_bytes(self) -> int:
        return self.size - sum(tensor.size for unit in self._undone() for tensor in unit.tensors)

    @property
    def awaited(self) -> list[frozenset[Path]]:
        """For each unit that is still to be written or compared, the checkpoint's files that it is made from."""
        found = [self._files(unit) for unit in self._undone()]
        return [*found, self._weights.head_files] if self._head_unchecked else found

    def __enter__(self) -> GrowingContainer:
        """Reserves the disk; raises OSError where it is full."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and self._path.stat().st_size != self.size:
            self._path.unlink()
        self._file = self._path.open("r+b" if self._path.exists() else "w+b")
        if os.fstat(self._file.fileno()).st_size != self.size:
            self._record.unlink(missing_ok=True)
            self._hashes = {}
            try:
                _reserve(self._file, self.size)
            except OSError:
                self._file.close()
                self._path.unlink()
                raise
            self._file.write(self._layout.opening)
            self._file.flush()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def advance(self, on_bytes: Callable[[int], None]) -> None:
        """Write what can be made from the files that are there; `on_bytes` is told of every chunk.

        Raises ValueError for weights that are not finite numbers, or a head that its embedding contradicts.
        """
        waiting: dict[str, str] = {}
        # What can be read is asked of the weights, not of the disk: a file may come between the two.
        if self._head_unchecked and self._weights.head_files <= self._weights.here:
            self._weights.check_head()
            waiting[_HEAD] = "the embedding's"
        unsynced = 0
        for unit in self._undone():
            if not self._files(unit) <= self._weights.here:
                continue
            unsynced += self._write(unit, waiting, on_bytes)
            if len(unit.tensors) > 1 or unsynced > _PLAIN_BYTES:
                self._commit(waiting)
                unsynced = 0
        self._commit(waiting)

    def finish(self) -> None:
        """Put the hashes into the header, once every tensor is there."""
        assert not self._undone()
        hashes = {name: self._hashes[name] for name in self._header.hashes}
        replace_metadata(self._path, replace(self._header, hashes=hashes).to_metadata())

    def write_config(self, folder: Path) -> None:
        """config.json of the finished folder."""
        write_json(folder / CONFIG, config_fields(self.config, self._scheme))

    def release(self) -> None:
        """Map the checkpoint's files anew: those that came since are there then."""
        self._weights.release()

    def _write(self, unit: Unit, hashes: dict[str, str], on_bytes: Callable[[int], None]) -> int:
        assert self._file is not None
        for tensor in unit.tensors:
            self._file.seek(self._layout.starts[tensor.name])
            for written in write_tensor(self._file, hashed(tensor, hashes)):
                on_bytes(written)
        return sum(tensor.size for tensor in unit.tensors)

    def _commit(self, hashes: dict[str, str]) -> None:
        """Wait for the disk, then record what is on it."""
        if not hashes:
            return
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        with self._record.open("a", encoding="utf-8") as record:
            record.write(json.dumps(hashes) + "\n")
            record.flush()
            os.fsync(record.fileno())
        self._hashes |= hashes
        hashes.clear()

    @property
    def _head_unchecked(self) -> bool:
        return bool(self._weights.head_files) and _HEAD not in self._hashes

    def _undone(self) -> list[Unit]:
        return [unit for unit in self._units if any(tensor.name not in self._hashes for tensor in unit.tensors)]

    def _files(self, unit: Unit) -> frozenset[Path]:
        return frozenset().union(*(self._weights.files(native) for native in unit.natives))

    def _recorded(self) -> dict[str, str]:
        """Hashes by tensor, of the lines that were written whole."""
        if not self._record.is_file() or not self._path.is_file() or self._path.stat().st_size != self.size:
            return {}
        found: dict[str, str] = {}
        for line in _whole_lines(self._record):
            found |= json.loads(line)
        return found


def _whole_lines(path: Path) -> Iterable[str]:
    """The lines of a file but for a torn last one, which is cut off so that the next line does not join it."""
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        os.truncate(path, len(whole.encode()))
    return whole.splitlines()


def _reserve(file: BinaryIO, size: int) -> None:
    """Take the room of a file on the disk; raises OSError where there is none."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)
