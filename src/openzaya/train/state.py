"""The state of a run on disk: written whole or not at all, without pickle, verified when it is read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_ENDING = ".safetensors"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. The next thing it does is `step` of `phase`."""

    recipe_hash: str
    phase: str
    step: int
    optimizer_steps: int
    balancing_steps: int
    refreshes: int
    seconds: float
    """Working time so far, over all relaunches."""
    returned_to: int | None = None
    """The step whose weights these are, where the run went back to them and has taken no step since."""


def recipe_hash(text: str) -> str:
    """Identity of a recipe, kept with its state so that a changed recipe is not continued by mistake."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_state(path: Path, tensors: Mapping[str, Tensor], progress: Progress) -> None:
    """Replace the state at `path`; a kill at any moment leaves the old one or the new one.

    Raises ValueError where the disk does not take it, with whatever was there before untouched.
    """
    partial = path.with_suffix(".partial")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"progress": json.dumps(asdict(progress)), "checksums": json.dumps(_checksums(contiguous))}
    try:
        save_file(contiguous, partial, metadata=metadata)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise ValueError(not_written(path, sum(tensor.nbytes for tensor in contiguous.values()), error)) from None


def not_written(path: Path, size: int, error: Exception) -> str:
    """The sentence about something of `size` bytes that the disk did not take."""
    free = shutil.disk_usage(path.parent).free
    return (
        f"{path} cannot be written ({error}); it needs {size / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free. "
        "What was saved before is whole: make room, and the same command goes on"
    )


def read_state(path: Path) -> tuple[dict[str, Tensor], Progress]:
    """Read a state; raises ValueError where the file is not one, or not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        progress, checksums = Progress(**json.loads(metadata["progress"])), json.loads(metadata["checksums"])
        if damaged := [name for name, checksum in _checksums(tensors).items() if checksums[name] != checksum]:
            raise ValueError(f"{damaged[0]} is not what was written")
        return tensors, progress
    except Exception as error:
        raise ValueError(f"{path} is not a training state ({error}); remove it to start the phase anew") from None


def _checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data) for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class States:
    """The states of a phase that runs, one file each, named by their step."""

    folder: Path
    keep_last: int
    keep_every: int | None = None

    def write(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Add a state, and remove those that are no longer kept; raises ValueError as `write_state` does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_state(self._path(progress.step), tensors, progress)
        passing = [path for path in self._newest_first() if not self._is_kept_for_good(path)]
        for path in passing[self.keep_last :]:
            path.unlink()

    def read(self, report: Callable[[str], None]) -> Iterator[tuple[dict[str, Tensor], Progress]]:
        """States, the newest first; one that is damaged is set aside with a sentence, and the one before it comes."""
        for path in self._newest_first():
            try:
                yield read_state(path)
            except ValueError as error:
                path.rename(path.with_suffix(".damaged"))
                report(f"{error} (set aside); going back to the state before it")

    def remove(self, step: int) -> None:
        """Remove the state of a step, unless it is kept for good."""
        if not self._is_kept_for_good(path := self._path(step)):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove what is not kept for good: the phase is finished."""
        for path in self.folder.glob("*"):
            if path.suffix != _ENDING or not self._is_kept_for_good(path):
                path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:09d}{_ENDING}"

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{_ENDING}"), reverse=True)

    def _is_kept_for_good(self, path: Path) -> bool:
        return self.keep_every is not None and int(path.stem) > 0 and int(path.stem) % self.keep_every == 0
