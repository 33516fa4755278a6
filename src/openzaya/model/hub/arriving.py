"""A container that lies on the hub as it is to be used: it only has to come, and to be whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from openzaya.model.config import ZayaConfig
from openzaya.model.quantised.container import Container
from openzaya.model.storage import CONFIG, SINGLE


class ArrivingContainer:
    """A quantised file of the hub, with the face of a `GrowingContainer`."""

    def __init__(self, source: Path, target: Path) -> None:
        """`source` is the folder that it comes to, `target` the file that it becomes."""
        self._source, self._target = source, target
        self.config = ZayaConfig.from_folder(source)
        self.size = 0
        self.done_bytes = 0

    @property
    def awaited(self) -> list[frozenset[Path]]:
        return [] if self._target.is_file() else [frozenset({self._source / SINGLE})]

    def __enter__(self) -> ArrivingContainer:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def advance(self, on_bytes: Callable[[int], None]) -> None:
        """Take the file over once it is there. Raises ValueError where it is damaged or of another architecture."""
        Container(self._source).verify()
        self._target.parent.mkdir(parents=True, exist_ok=True)
        came = self._source / SINGLE
        if came.is_symlink():  # Into the cache of another program, which keeps it.
            shutil.copyfile(came, came.with_suffix(".copy"))
            came.with_suffix(".copy").replace(self._target)
        else:
            came.replace(self._target)

    def finish(self) -> None:
        """Nothing is left to do."""

    def write_config(self, folder: Path) -> None:
        """config.json of the finished folder."""
        shutil.copyfile(self._source / CONFIG, folder / CONFIG)

    def release(self) -> None:
        """Nothing is held."""
