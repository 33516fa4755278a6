"""Counts of two threads, told to a journey one at a time."""

from __future__ import annotations

from threading import Lock

from openzaya.model.hub.journey import Journey, Progress


class Meter:
    """Bytes that came and bytes that were written."""

    def __init__(self, journey: Journey, to_download: int, written: int, to_write: int) -> None:
        self._journey, self._lock = journey, Lock()
        self._downloaded, self._to_download = 0, to_download
        self._written, self._to_write = written, to_write

    def came(self, count: int) -> None:
        with self._lock:
            self._downloaded += count
            self._tell()

    def wrote(self, count: int) -> None:
        with self._lock:
            self._written += count
            self._tell()

    def _tell(self) -> None:
        self._journey.progress(Progress(self._downloaded, self._to_download, self._written, self._to_write))
