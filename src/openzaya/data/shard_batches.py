"""What a training step reads of corpora: batches of packed rows, as a pure function of (seed, step, rank)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from openzaya.data.examples import Example
from openzaya.data.order import Interleaving, rank_places, shuffled
from openzaya.data.packing import Batch, make_batch
from openzaya.data.rows import Rows
from openzaya.data.shards import Shards
from openzaya.data.trimming import Overlong


@dataclass(frozen=True)
class ShardBatches:
    """The batches of one phase from a mixture of corpora; a source of batches for the training loop.

    Each row holds documents of one corpus, and rows are taken by weight, so weights are shares of the tokens read. Each
    corpus goes through all its rows, in an order of its own for each pass, before it begins again. `batches` is the
    same for every world size: the ranks of any world together read what one rank alone would.
    """

    rows: Mapping[str, Rows]
    held_out_rows: Mapping[str, Rows]
    weights: Mapping[str, float]
    row: int
    """Tokens of a row, the context."""
    rows_a_step: int
    """Rows that the whole world reads in a step."""
    seed: int = 0
    rank: int = 0
    ranks: int = 1
    microbatch_tokens: int = 16_384
    """Most tokens of one batch, though never less than a row."""
    read_before: Mapping[str, int] = field(default_factory=dict)
    """Rows of each corpus that earlier phases of the same row, overlong and seed have read (`rows_read`), so that this
    phase goes on after them instead of beginning the pass again."""

    @classmethod
    def open(
        cls,
        shards: Mapping[str, Shards],
        weights: Mapping[str, float],
        *,
        row: int,
        batch_tokens: int,
        overlong: Overlong = "trim",
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        microbatch_tokens: int = 16_384,
        read_before: Mapping[str, int] | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> Self:
        """The batches of the corpora named in `weights`, whose rows are laid out here if they were not before.

        `batch_tokens` are those of a step of the whole world: as many rows as fill them, and at least one. Raises
        ValueError for a corpus that has no shards or nothing to train on at this row.
        """
        missing = [name for name in weights if name not in shards]
        if missing:
            raise ValueError(f"the corpus {missing[0]!r} has no shards; there are {', '.join(shards) or 'none'}")
        rows = {name: Rows.of(shards[name], "train", row, overlong, report=report) for name in weights}
        # Always trimmed, so that the held-out loss of runs that differ in `overlong` is over the same tokens.
        held_out = {name: Rows.of(shards[name], "held_out", row, "trim", report=report) for name in weights}
        for name, found in rows.items():
            if not len(found):
                raise ValueError(f"the corpus {name!r} has nothing to train on in rows of {row}; {found.trimming}")
        Interleaving(weights)
        return cls(
            rows,
            held_out,
            weights,
            row,
            max(1, batch_tokens // row),
            seed,
            rank,
            ranks,
            microbatch_tokens,
            read_before or {},
        )

    def batches(self, step: int) -> list[Batch]:
        """The batches of this rank at a step, every row padded to `row`; none where ranks outnumber rows."""
        mixture = Interleaving(self.weights)
        places = rank_places(self.rows_a_step, self.seed, step, self.rank, self.ranks)
        return self._batches([self._row(*mixture.at(place)) for place in places])

    def held_out(self, tokens: int) -> dict[str, list[Batch]]:
        """About `tokens` of each corpus that are never trained on, always the same, divided among the ranks."""
        found = {}
        for name, rows in self.held_out_rows.items():
            places = range(self.rank, min(len(rows), max(1, tokens // self.row)), self.ranks)
            if len(rows):
                order = [shuffled(place, len(rows), "held out", 0) for place in places]
                found[name] = self._batches([rows.examples(place) for place in order])
        return found

    def rows_read(self, steps: int) -> dict[str, int]:
        """Rows of each corpus that have been read after so many steps, those of earlier phases included."""
        counts = Interleaving(self.weights).counts(steps * self.rows_a_step)
        return {name: self.read_before.get(name, 0) + count for name, count in counts.items()}

    def passes(self, steps: int) -> dict[str, float]:
        """Passes over each corpus that so many steps make, those of earlier phases included."""
        return {name: count / len(self.rows[name]) for name, count in self.rows_read(steps).items()}

    def __str__(self) -> str:
        """One line a corpus: what trimming left of it, and how full its rows are."""
        return "\n".join(f"{name}: {rows.trimming}; {rows.packing}" for name, rows in self.rows.items())

    def _row(self, name: str, place: int) -> list[Example]:
        rows, place = self.rows[name], place + self.read_before.get(name, 0)
        return rows.examples(shuffled(place % len(rows), len(rows), f"{self.seed}/{name}", place // len(rows)))

    def _batches(self, rows: Sequence[list[Example]]) -> list[Batch]:
        size = max(1, self.microbatch_tokens // self.row)
        return [make_batch(rows[first : first + size], self.row) for first in range(0, len(rows), size)]
