"""The raw results: one JSON line for each problem and arm, written as soon as it is there and read again on resuming.

A candidate has the shape of the Markovian RSA journal's, less what is empty. A line is appended by a single write under
a lock of the file: processes may share it, and a killed one leaves at most one torn line, the last, which is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from openzaya.evals.spec import EvalError
from openzaya.locks import alone
from openzaya.mrsa.candidate import Candidate

VERSION = 1
_FREE = frozenset({"models", "out", "concurrency", "keep_text", "thorough", "resamples"})
"""Settings that change neither what is asked nor what is generated; models are told apart by their identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the results belong to; only an evaluation that asks for the same may add to them."""

    digest: str
    """SHA-256 of questions, arms, seed and wordings."""
    models: Mapping[str, Mapping[str, str]]
    """Identity of each model: the hash of its weights, or its name at a server."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    commit: str | None = None
    version: int = VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What an arm (or the pool behind some) gave for a problem; several results of a pool add up."""

    arm: str
    problem: str
    candidates: tuple[Candidate, ...]
    answer: str | None = None
    """What selection returned; of a pool always None."""


class Results:
    """All results so far, in memory and, with a path, in a file."""

    def __init__(
        self, path: Path | None, header: Header, *, tails_of: Collection[str] = (), keep_text: bool = False
    ) -> None:
        """Read what the file holds. Raises EvalError where it belongs to another evaluation or cannot be used.

        The tails of the arms `tails_of` are kept, for the controls that read them.
        """
        self._header, self._tails_of, self._keep_text = header, tails_of, keep_text
        self._found: dict[tuple[str, str], Result] = {}
        self._path = path
        self._descriptor: int | None = None
        if path is not None:
            self._descriptor = _open(path)
            try:
                with alone(path):
                    kept = self._read(path)
                    os.ftruncate(self._descriptor, kept)
                    if kept == 0:
                        self._write({"kind": "header", **asdict(header)})
            except BaseException:
                self.close()
                raise

    def get(self, arm: str, problem: str) -> Result | None:
        """What is there for an arm and a problem."""
        return self._found.get((arm, problem))

    def __len__(self) -> int:
        return len(self._found)

    def add(self, result: Result) -> None:
        """Keep a result; it survives the death of the process once this returns."""
        tails = result.arm in self._tails_of
        lean = [_lean(candidate, text=self._keep_text, tails=tails) for candidate in result.candidates]
        self._merge(replace(result, candidates=tuple(lean)))
        if self._path is not None:
            values: dict[str, Any] = {"kind": "result", "arm": result.arm, "problem": result.problem}
            if result.answer is not None:
                values["answer"] = result.answer
            with alone(self._path):
                self._write({**values, "candidates": [_compact(candidate) for candidate in lean]})

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _merge(self, result: Result) -> None:
        key = (result.arm, result.problem)
        before = self._found.get(key)
        if before is not None:
            places = {(each.round, each.index): each for each in (*before.candidates, *result.candidates)}
            result = replace(result, candidates=tuple(places[place] for place in sorted(places)))
        self._found[key] = result

    def _write(self, values: Mapping[str, Any]) -> None:
        assert self._descriptor is not None
        data = (json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8", errors="surrogatepass")
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _read(self, path: Path) -> int:
        """Take in all whole lines; returns how many bytes they are."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise EvalError(f"cannot read the results {path}: {error.strerror}") from error
        lines = data.split(b"\n")[:-1]
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line.decode("utf-8", errors="surrogatepass"))
                kind = values.pop("kind")
                if (number == 1) != (kind == "header"):
                    raise ValueError(kind)
                if number == 1:
                    self._check(values, path)
                else:
                    self._merge(_result(values))
            except EvalError:
                raise
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise EvalError(
                    f"line {number} of {path} is no result of an evaluation; the file is damaged or another's, so give "
                    "a new folder"
                ) from error
        return sum(len(line) + 1 for line in lines)

    def _check(self, values: Mapping[str, Any], path: Path) -> None:
        if values["version"] != VERSION:
            raise EvalError(
                f"the results {path} have version {values['version']} and this program writes {VERSION}; give a new "
                "folder"
            )
        for name, identity in self._header.models.items():
            before = values["models"].get(name, {})
            if _without_source(before) != _without_source(identity):
                raise EvalError(
                    f"the results {path} were measured with another model as {name!r} "
                    f"({dict(before)}, now {dict(identity)}); give a new folder"
                )
        if values["digest"] != self._header.digest:
            before, now = values["spec"], self._header.spec
            differ = [key for key in now if before.get(key) != now[key] and key not in _FREE]
            what = ", ".join(differ) or "wordings, presets or generated problems"
            raise EvalError(f"the results {path} belong to another evaluation ({what} differ); give a new folder")


def _open(path: Path) -> int:
    """Open for appending."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise EvalError(f"cannot write the results {path}: {error.strerror}") from error


def _without_source(identity: Mapping[str, str]) -> dict[str, str]:
    """Weights are the same wherever they lie."""
    return {name: value for name, value in identity.items() if name != "source"}


_PLAIN = {each.name: each.default for each in fields(Candidate) if each.default is not MISSING}
_TIMES = ("started", "seconds")


def _lean(candidate: Candidate, *, text: bool, tails: bool) -> Candidate:
    """A candidate without what the results are not to keep."""
    if not text:
        candidate = replace(candidate, reasoning="", content="", tool_calls=())
    return candidate if tails else replace(candidate, tail=None)


def _compact(candidate: Candidate) -> dict[str, Any]:
    values = candidate.as_json()
    values["usage"] = {name: count for name, count in values["usage"].items() if count}
    values.update({name: round(values[name], 3) for name in _TIMES})
    return {name: value for name, value in values.items() if name not in _PLAIN or value != _PLAIN[name]}


def _result(values: Mapping[str, Any]) -> Result:
    candidates = tuple(Candidate.from_json({**_PLAIN, **each}) for each in values["candidates"])
    return Result(arm=values["arm"], problem=values["problem"], candidates=candidates, answer=values.get("answer"))
