"""The checkpoints of a phase: written while training goes on, kept by policy, taken up the newest good one first."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse

from openzaya.train.checkpoints.storage import PARTIAL, Contents, PieceReader, PieceWriter, read_contents, read_piece
from openzaya.train.state import Progress, not_written

_DAMAGED = ".damaged"

# One process that saves and loads alone is meant here.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint on disk whose every byte has been verified."""

    folder: Path
    contents: Contents
    group: dist.ProcessGroup | None

    def load_into(self, state: Mapping[str, Tensor]) -> None:
        """Fill the tensors of `state` in place, each rank its own parts; all ranks call this together.

        Raises ValueError where a tensor has another name or shape than in the checkpoint.
        """
        stored = {name: tensor.shape for name, tensor in self.contents.tensors.items()}
        wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if different := sorted(name for name in stored | wanted if stored.get(name) != wanted.get(name)):
            name = different[0]
            raise ValueError(
                f"{self.folder} is of another run: {name} is {stored.get(name, 'missing')} there and "
                f"{wanted.get(name, 'missing')} here; give the recipe that it was written with"
            )
        reader = PieceReader(self.folder, self.contents)
        dcp.load(dict(state), storage_reader=reader, process_group=self.group, no_dist=self.group is None)


@dataclass(slots=True)
class Checkpoints:
    """The checkpoints in `folder`, one subfolder each; all ranks call every method together.

    A checkpoint is written into a folder aside and renamed when all of it is on the disk, so that what has its name is
    whole. The last `keep_last` stay, and those of steps that `keep_every` divides.
    """

    folder: Path
    keep_last: int = 2
    keep_every: int | None = None
    group: dist.ProcessGroup | None = field(init=False)
    """Of checkpoints alone: their messages run beside those of the training."""
    _writing: tuple[Future[Any], Path, int] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    @property
    def rank(self) -> int:
        return 0 if self.group is None else self.group.rank()

    # ---- writing ----

    def save(self, state: Mapping[str, Tensor], progress: Progress) -> None:
        """Copy `state` and go on; it is written meanwhile. Waits for an earlier one that is still being written.

        Raises ValueError where that one could not be written; what was saved before it is whole.
        """
        self.wait()
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f"*{PARTIAL}"):
                shutil.rmtree(left)
        self._barrier()
        writer = PieceWriter(self._path(progress.step), self.rank, asdict(progress))
        response = dcp.async_save(
            dict(state), storage_writer=writer, process_group=self.group, no_dist=self.group is None
        )
        future = response.upload_completion if isinstance(response, AsyncSaveResponse) else response
        size = sum(_nbytes(tensor) for tensor in state.values())
        self._writing = (future, self._path(progress.step), size)

    def wait(self) -> None:
        """Until what is being written is on the disk under its name; raises ValueError where that failed."""
        if self._writing is None:
            return
        (future, path, size), self._writing = self._writing, None
        partial = path.with_suffix(PARTIAL)
        try:
            future.result()
        except (CheckpointException, OSError, ValueError) as error:
            self._barrier()
            if self.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise ValueError(not_written(path, size, _first_cause(error))) from None
        if self.rank == 0:
            self._remove_old()
        self._barrier()

    def _remove_old(self) -> None:
        for path in self._newest_first()[self.keep_last :]:
            if self._is_kept_for_good(path):
                continue
            # Without its name first: half a checkpoint must not look like one.
            doomed = path.with_suffix(PARTIAL)
            path.rename(doomed)
            shutil.rmtree(doomed)

    # ---- reading ----

    def read(self, report: Callable[[str], None]) -> Iterator[tuple[Stored, Progress]]:
        """Checkpoints, the newest first, each verified; a damaged one is set aside with a sentence to `report`."""
        self.wait()
        self._barrier()
        for path in self._newest_first():
            error, contents = self._verified(path)
            if contents is not None and error is None:
                yield Stored(path, contents, self.group), Progress(**contents.progress)
                continue
            self._barrier()
            if self.rank == 0:
                path.rename(path.with_suffix(_DAMAGED))
            self._barrier()
            report(f"{error} (set aside); going back to the checkpoint before it")

    def _verified(self, path: Path) -> tuple[str | None, Contents | None]:
        """The first fault that any rank finds, and what is in it. Each rank reads its share of the bytes."""
        fault, contents = None, None
        try:
            contents = read_contents(path)
            pieces = [piece for tensor in contents.tensors.values() for piece in tensor.pieces]
            for piece in pieces[self.rank :: 1 if self.group is None else self.group.size()]:
                read_piece(path, piece)
        except ValueError as error:
            fault = str(error)
        faults: list[str | None] = [fault]
        if self.group is not None:
            faults = [None] * self.group.size()
            dist.all_gather_object(faults, fault, group=self.group)
        return next((found for found in faults if found is not None), None), contents

    def close(self) -> None:
        """Finish writing, and remove what is not kept for good: the phase is finished."""
        self.wait()
        if self.rank == 0 and self.folder.is_dir():
            for path in self.folder.iterdir():
                if not (path.suffix == "" and self._is_kept_for_good(path)):
                    shutil.rmtree(path)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
        self._barrier()

    def remove(self, step: int) -> None:
        """Remove the checkpoint of a step, unless it is kept for good; one that is being written is waited for."""
        self.wait()
        path = self._path(step)
        if self.rank == 0 and path.is_dir() and not self._is_kept_for_good(path):
            shutil.rmtree(path)
        self._barrier()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _newest_first(self) -> list[Path]:
        return sorted((path for path in self.folder.glob("step-*") if path.suffix == ""), reverse=True)

    def _is_kept_for_good(self, path: Path) -> bool:
        step = int(path.name.removeprefix("step-"))
        return self.keep_every is not None and step > 0 and step % self.keep_every == 0

    def _barrier(self) -> None:
        if self.group is not None:
            dist.barrier(self.group)


def _nbytes(tensor: Tensor) -> int:
    """Of the whole tensor, were it sharded."""
    return tensor.numel() * tensor.element_size()


def _first_cause(error: BaseException) -> Exception:
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return error if isinstance(error, Exception) else ValueError(str(error))
