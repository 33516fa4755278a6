"""What making a model ready will take, said before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from openzaya.model.config import ZayaConfig

QUESTION_BYTES = 1_000_000_000
"""A download beyond this is worth a question to a person."""
_LEAST_STATE = 500_000_000
"""Bytes beside the weights without which nothing runs."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes of memory that running a model takes."""

    weights: int
    state: int
    """The most that sequences may take."""
    remark: str = ""

    @property
    def least(self) -> int:
        return self.weights + min(self.state, _LEAST_STATE)

    def words(self, available: int | None) -> str:
        here = "" if available is None else f"; {gigabytes(available)} are available"
        remark = f" ({self.remark})" if self.remark else ""
        return f"{gigabytes(self.weights)} of weights{remark} and up to {gigabytes(self.state)} of state{here}"


NeedOf = Callable[[ZayaConfig, int], MemoryNeed]
"""What running takes, of a model's shape and the bytes of its quantised file."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The figures; `seconds` is an estimate, None where nothing could be measured."""

    name: str
    commit: str
    hub: str
    folder: Path
    scheme: str | None
    """What weights are quantised to; None where they are quantised on the hub already."""
    download_bytes: int
    """Still to come."""
    here_bytes: int
    """Of the download, what an earlier run or another program left on this machine."""
    shards: int
    disk_bytes: int
    """The most that is taken at once, beyond what is taken already."""
    kept_bytes: int
    disk_free: int
    memory: MemoryNeed | None
    memory_available: int | None
    bytes_per_second: float | None
    seconds: float | None

    @property
    def asks(self) -> bool:
        """Whether a person should be asked."""
        return self.download_bytes > QUESTION_BYTES or self.short_of_memory

    @property
    def short_of_memory(self) -> bool:
        return self.memory is not None and self.memory_available is not None and (
            self.memory_available < self.memory.least
        )  # fmt: skip

    def require_memory(self) -> None:
        """Raises ValueError where the memory that is available does not hold the weights."""
        if self.short_of_memory:
            assert self.memory is not None
            raise ValueError(
                f"{self.name} needs {self.memory.words(self.memory_available)}; close other programs, or use a server "
                "(--backend)"
            )

    def lines(self) -> list[str]:
        """For people, a heading first."""
        download = f"{gigabytes(self.download_bytes)} from {self.hub} in {self.shards} file{'s'[: self.shards != 1]}"
        if self.here_bytes:
            download += f"; {gigabytes(self.here_bytes)} are here already"
        scheme = f" in {self.scheme}" if self.scheme else ""
        found = [
            f"{self.name} (revision {self.commit[:7]}) is made ready for this machine, once:",
            f"  download  {download}",
            f"  disk      {gigabytes(self.disk_bytes)} at most, {gigabytes(self.kept_bytes)} in the end{scheme}; "
            f"{gigabytes(self.disk_free)} are free",
        ]
        if self.memory is not None:
            short = " - NOT ENOUGH, it would run from the disk, very slowly" if self.short_of_memory else ""
            found.append(f"  memory    {self.memory.words(self.memory_available)}{short}")
        if self.seconds is not None:
            at = f" at the {self.bytes_per_second / 1e6:.1f} MB/s of just now" if self.bytes_per_second else ""
            found.append(f"  time      about {_minutes(self.seconds)}{at} (an estimate)")
        return [*found, f"  kept in   {self.folder}"]


def disk_free(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not exist."""
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(parent).free


def most_at_once(
    order: Sequence[str], sizes: dict[str, int], awaited: Sequence[frozenset[str]], here: set[str], *, ahead: bool
) -> int:
    """The most bytes of shards that lie on the disk at once, when they come in `order`, one `ahead` or not.

    `awaited` are the shards that each unfinished piece of work is made from; a shard goes when none awaits it.
    """
    most = sum(sizes[name] for name in here)
    held, waiting = set(here), list(awaited)
    for place, name in enumerate(order):
        held.add(name)
        coming = {order[place + 1]} if ahead and place + 1 < len(order) else set()
        most = max(most, sum(sizes[each] for each in held | coming))
        waiting = [files for files in waiting if not files <= held]
        held &= frozenset().union(*waiting)
    return most


def gigabytes(size: float) -> str:
    """ "17.7 GB", and MB or kB where it is little."""
    for unit, bytes_of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.95 * bytes_of:
            return f"{size / bytes_of:.1f} {unit}"
    return f"{size:.0f} B"


def _minutes(seconds: float) -> str:
    if seconds < 50:
        return "a minute at most"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} hours"
