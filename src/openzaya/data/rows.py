"""The rows of a corpus at one context length: which documents, trimmed how, lie in which row.

Conversations longer than a row are trimmed, cut or left out, plain texts longer than a row become consecutive pieces
(as in Ding et al. 2024), and whole examples are packed by best-fit decreasing, shard by shard. All of that follows from
the lengths in the shards. It is worked out once, kept beside them, and read through memory maps.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openzaya.data.examples import Example
from openzaya.data.packing import PackingReport, best_fit_decreasing
from openzaya.data.shards import Shard, Shards, Split, hash_file, whole, write_array
from openzaya.data.trimming import Fit, Overlong, TurnLengths, example_of, fit, trim
from openzaya.data.trimming_report import TrimmingReport
from openzaya.locks import alone

_FIGURES = "rows.json"
_TOLD_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class LaidOut:
    """How one shard's documents lie in rows.

    `pieces` (P, 2) are documents and the token at which the piece begins, row by row; `ends` (R + 1) are the first
    piece of each row, and the end.
    """

    pieces: NDArray[np.uint32]
    ends: NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """The rows of one split of a corpus; `trimming` and `packing` say what they kept and how full they are."""

    shards: Shards
    split: Split
    row: int
    overlong: Overlong
    folder: Path
    trimming: TrimmingReport
    packing: PackingReport
    counts: tuple[int, ...]
    """Rows of each shard."""
    _maps: dict[int, LaidOut] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        shards: Shards,
        split: Split,
        row: int,
        overlong: Overlong = "trim",
        *,
        report: Callable[[str], None] = lambda line: None,
    ) -> Rows:
        """The rows of `row` tokens of a split: read if they were laid out before, else laid out and kept.

        Raises ValueError as `fit` does, and for a row too short to predict anything.
        """
        if row < 2:
            raise ValueError(f"a row of {row} tokens predicts nothing; give at least 2")
        folder = shards.folder / f"{split}-rows-{row}-{overlong}"
        vouched = hash_file(shards.folder / "manifest.json")
        with alone(shards.folder):
            figures = _read_figures(folder, vouched)
            if figures is None:
                figures = _lay_out(shards, split, row, overlong, folder, vouched, report)
        return cls(
            shards,
            split,
            row,
            overlong,
            folder,
            TrimmingReport(**figures["trimming"]),
            PackingReport(**figures["packing"]),
            tuple(figures["counts"]),
        )

    def __len__(self) -> int:
        return sum(self.counts)

    def examples(self, number: int) -> list[Example]:
        """The examples of a row. Raises ValueError for a row that there is not."""
        if not 0 <= number < len(self):
            raise ValueError(f"row {number} does not exist; there are {len(self)}")
        place = int(np.searchsorted(self._ends, number, side="right"))
        first = number - (int(self._ends[place - 1]) if place else 0)
        shard, laid_out = self.shards.split(self.split)[place], self._laid_out(place)
        pieces = laid_out.pieces[laid_out.ends[first] : laid_out.ends[first + 1]].tolist()
        return [self._example(shard, document, start) for document, start in pieces]

    def _example(self, shard: Shard, document: int, start: int) -> Example:
        ids = shard.ids(document)
        if start or len(ids) <= self.row or shard.texts[document] or self.overlong == "truncate":
            end = start + self.row
            return Example(ids[start:end].astype(np.int32), shard.learned(document)[start:end])
        turns = trim(shard.read(document), self.row, line_break=self.shards.manifest.line_break).turns
        assert turns is not None, "a document that was dropped is in no row"
        return example_of(turns)

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(np.asarray(self.counts, dtype=np.int64))

    def _laid_out(self, place: int) -> LaidOut:
        if place not in self._maps:
            name = self.shards.split(self.split)[place].entry.name
            try:
                pieces, ends = (
                    np.load(self.folder / f"{name}.{array}.npy", mmap_mode="r", allow_pickle=False)
                    for array in ("pieces", "ends")
                )
                if (len(ends), int(ends[-1])) != (self.counts[place] + 1, len(pieces)):
                    raise ValueError("it has another length")
            except (OSError, ValueError, IndexError) as error:
                raise ValueError(f"the rows in {self.folder} are damaged ({error}); remove that folder") from error
            self._maps[place] = LaidOut(pieces, ends)
        return self._maps[place]


def trimming_report(shards: Shards, row: int, overlong: Overlong, split: Split = "train") -> TrimmingReport:
    """What rows of `row` tokens would do to the conversations of a corpus, without laying them out."""
    report = TrimmingReport(budget=row, overlong=overlong)
    for shard in shards.split(split):
        for _document, turns, decided in _fitted(shard, row, overlong, len(shards.manifest.line_break)):
            report.count(turns, decided)
    return report


def _fitted(
    shard: Shard, row: int, overlong: Overlong, line_break: int
) -> Iterator[tuple[int, Sequence[TurnLengths], Fit]]:
    """The conversations of a shard, and how each comes to fit a row."""
    for document in np.flatnonzero(~shard.texts).tolist():
        turns = shard.lengths(document)
        yield document, turns, fit(turns, row, overlong, line_break=line_break)


def _pieces(
    shard: Shard, row: int, overlong: Overlong, line_break: int, report: TrimmingReport
) -> Iterator[tuple[int, int, int]]:
    """Document, first token and length of every piece of a shard."""
    lengths = np.diff(shard.documents[:, 0]).tolist()
    for document, turns, decided in _fitted(shard, row, overlong, line_break):
        report.count(turns, decided)
        if decided.tokens > 1:
            yield document, 0, decided.tokens
    for document in np.flatnonzero(shard.texts).tolist():
        for start in range(0, lengths[document], row):
            # Of a single token nothing is predicted.
            if lengths[document] - start > 1:
                yield document, start, min(row, lengths[document] - start)


def _lay_out(
    shards: Shards,
    split: Split,
    row: int,
    overlong: Overlong,
    folder: Path,
    vouched: str,
    report: Callable[[str], None],
) -> dict[str, Any]:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    trimming, packing, counts = TrimmingReport(budget=row, overlong=overlong), PackingReport(0, 0, 0, row), []
    began = told = time.monotonic()
    found = shards.split(split)
    for number, shard in enumerate(found, 1):
        pieces = list(_pieces(shard, row, overlong, len(shards.manifest.line_break), trimming))
        packed = best_fit_decreasing([length for _document, _start, length in pieces], row)
        ends = np.cumsum([0, *map(len, packed)], dtype=np.int64)
        laid = np.asarray([pieces[place][:2] for places in packed for place in places], dtype=np.uint32).reshape(-1, 2)
        write_array(partial / f"{shard.entry.name}.pieces.npy", laid)
        write_array(partial / f"{shard.entry.name}.ends.npy", ends)
        counts.append(len(packed))
        tokens = sum(length for _document, _start, length in pieces)
        packing = PackingReport(packing.examples + len(pieces), packing.tokens + tokens, sum(counts), row)
        if time.monotonic() - told > _TOLD_SECONDS:
            told = time.monotonic()
            left = (told - began) / number * (len(found) - number)
            report(
                f"{shards.manifest.corpus}: rows of {row:,} tokens, {number} of {len(found)} shards laid out, "
                f"about {left:.0f} s left"
            )
    figures = {
        "manifest": vouched,
        "trimming": trimming.model_dump(),
        "packing": asdict(packing),
        "counts": counts,
    }
    with whole(partial / _FIGURES) as path:
        path.write_text(json.dumps(figures), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return figures


def _read_figures(folder: Path, vouched: str) -> dict[str, Any] | None:
    """What is kept of rows that were laid out from these shards, or None."""
    try:
        figures: dict[str, Any] = json.loads((folder / _FIGURES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return figures if figures.get("manifest") == vouched else None
