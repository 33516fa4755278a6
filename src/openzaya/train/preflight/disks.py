"""How fast the folder of a run takes and gives bytes, and whether all hosts see the same one."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from openzaya.train.launch import Place
from openzaya.train.preflight.ranks import DiskFigures, barrier

_CHUNK = 8 << 20
_FSYNCS = 5


def measure_disk(place: Place, folder: Path, size: int) -> DiskFigures | None:
    """Write and read `size` bytes in `folder` from one rank of each host, all hosts at once; None on other ranks.

    Leaves nothing behind. Raises OSError where the folder cannot be written.
    """
    seen = folder / ".preflight-shared"
    folder.mkdir(parents=True, exist_ok=True)
    if place.rank == 0:
        seen.touch()
    barrier(place)
    try:
        if not place.first_of_host:
            return None
        write, read, fsync = _speeds(folder / f".preflight-{place.rank}", size)
        return DiskFigures(write, read, fsync, shutil.disk_usage(folder).free, _sees(seen))
    finally:
        barrier(place)
        if place.rank == 0:
            seen.unlink(missing_ok=True)


def _sees(path: Path) -> bool:
    """Whether a file is there; looking at its folder first makes network file systems look again."""
    return path.name in os.listdir(path.parent)


def _speeds(path: Path, size: int) -> tuple[float, float, float]:
    chunk, count = os.urandom(min(_CHUNK, size)), max(1, size // _CHUNK)
    total = len(chunk) * count
    try:
        with path.open("wb", buffering=0) as file:
            began = time.perf_counter()
            for _ in range(count):
                file.write(chunk)
            os.fsync(file.fileno())
            write = total / (time.perf_counter() - began)
            fsync = min(_fsync_seconds(file.fileno()) for _ in range(_FSYNCS))
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            while file.read(_CHUNK):
                pass
            read = total / (time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)
    return write, read, fsync


def _fsync_seconds(descriptor: int) -> float:
    os.write(descriptor, b"x" * 4096)
    began = time.perf_counter()
    os.fsync(descriptor)
    return time.perf_counter() - began
