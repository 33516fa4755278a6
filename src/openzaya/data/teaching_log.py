"""What a teacher has finished, question by question, as it comes: a file of JSON lines that survives any end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openzaya.locks import alone


class TeachingLog:
    """The finished questions of one run; `found` are those by id, in the order in which they were finished."""

    def __init__(self, path: Path, descriptor: int, found: dict[str, Any]) -> None:
        self._path, self._descriptor, self.found = path, descriptor, found

    @classmethod
    @contextmanager
    def open(cls, path: Path, digest: str) -> Iterator[TeachingLog]:
        """The log at `path`, begun where there is none; other processes wait until this one has closed it.

        A last line that was torn is cut off. Raises ValueError for a log of other questions or settings, which
        `digest` tells, and for a file that is no log.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            with alone(path) as same:
                if not same:
                    raise ValueError(f"another process has just finished what {path} was kept for; look at its output")
                found, length = _read(path, digest)
                os.ftruncate(descriptor, length)
                log = cls(path, descriptor, found)
                if not length:
                    log._write({"digest": digest})
                yield log
        finally:
            os.close(descriptor)

    def add(self, question: str, result: Mapping[str, Any]) -> None:
        """Keep the result of a question, which survives the death of the process once this returns."""
        self._write({"id": question, **result})
        self.found[question] = result

    def examples(self) -> Iterator[Mapping[str, Any]]:
        """All examples in the order of their questions in the corpus."""
        places = sorted(self.found, key=lambda question: tuple(map(int, question.split(":"))))
        return (example for question in places for example in self.found[question]["examples"])

    def remove(self) -> None:
        self._path.unlink()

    def _write(self, values: Mapping[str, Any]) -> None:
        data = (json.dumps(values, ensure_ascii=True) + "\n").encode()
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)


def _read(path: Path, digest: str) -> tuple[dict[str, Any], int]:
    """Results by question, and how many bytes of the file are whole lines."""
    lines = path.read_bytes().split(b"\n")[:-1]
    found: dict[str, Any] = {}
    try:
        values = [json.loads(line) for line in lines]
        if values and values[0]["digest"] != digest:
            raise ValueError(f"{path} was begun with another corpus, model or settings; remove it or give another name")
        for each in values[1:]:
            found[each.pop("id")] = {"examples": each["examples"], "left_out": each["left_out"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no log of aggregation examples; remove it or give another name") from error
    return found, sum(len(line) + 1 for line in lines)
