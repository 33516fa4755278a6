"""What a step reads of problems: a function of (seed, phase, step) and, for aggregation, of the pool in force."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from zlib import crc32

from openzaya.data.examples import Example, plain_example
from openzaya.data.mixture import Mixture, draw_problem
from openzaya.data.packing import Batch, best_fit_decreasing, make_batch
from openzaya.data.rollouts import PoolEntry, Speaker, draw_aggregation, draw_slipped
from openzaya.problems import generate
from openzaya.train.config import AggregationRecipe, PhaseRecipe

_MOST_PADDING = 0.2
"""Of the aggregation tokens of a step, in one microbatch."""

_INDICES_A_STEP = 4096
"""Problem numbers set aside for each step, more than any step draws, so that steps never share a problem."""

_INDICES_A_PHASE = 1 << 44
_SLIPPED = 1 << 36
"""Problem numbers from here on get slipped tails, so that no step reads a problem both ways."""

_LOOKED_AT = 32
"""Problems of a family that `check_rows` looks at."""


def check_rows(mixture: Mixture, speaker: Speaker, row: int) -> None:
    """Raises ValueError where more than a straggler of a family's hardest problems is longer than a row.

    Plain steps leave out what does not fit, aggregation examples fill a row of their own whatever its length: a model
    would learn such problems in one mode only, and the difference would look like a gain of aggregation.
    """
    for name, share in mixture.items():
        hardest = share.difficulty[1]
        problems = [generate(name, seed, hardest, split="train") for seed in range(_LOOKED_AT)]
        *_, second, longest = sorted(
            len(plain_example(problem, speaker.tokenizer, speaker.template)) for problem in problems
        )
        if second > row:
            raise ValueError(
                f"{name} at difficulty {hardest} has examples of {longest} tokens, which a row of {row} would leave "
                "out; make the row longer or the difficulty lower"
            )


@dataclass(slots=True)
class ProblemSource:
    """Draws the batches of one phase from a mixture of problems."""

    mixture: Mixture
    speaker: Speaker
    phase: PhaseRecipe
    seed: int
    rank: int = 0
    ranks: int = 1
    """Every step's rows are dealt out to so many."""
    pool: Sequence[PoolEntry] = ()
    """Rollouts in force; a phase that refreshes them sets this."""

    def batches(self, step: int) -> list[Batch]:
        """The microbatches of a step: packed rows of plain problems, then rows of one aggregation example each."""
        aggregation, tokens = self.phase.aggregation, self.phase.batch_tokens * self.phase.problem_share
        share = aggregation.share if aggregation and (self.pool or aggregation.refreshes == 0) else 0.0
        rows = self._plain_rows(step, int(tokens * (1 - share)))
        learned = sum(int(example.learned[1:].sum()) for row in rows for example in row)
        examples = self._aggregations(step, int(tokens * share), learned)
        return list(self._packed(rows[self.rank :: self.ranks])) + list(
            self._apart(examples[self.rank :: self.ranks], int(tokens * share))
        )

    def held_out(self, tokens: int) -> dict[str, list[Batch]]:
        """Held-out problems of the mixture, packed like those of a step."""
        draw = Random(f"held out/{self.seed}")
        examples: list[Example] = []
        for _draw in range(tokens):
            if sum(map(len, examples)) >= tokens:
                break
            name = draw.choices(list(self.mixture), [share.weight for share in self.mixture.values()])[0]
            difficulty = draw.randint(*self.mixture[name].difficulty)
            try:
                problem = generate(name, draw.getrandbits(48), difficulty, split="held_out")
            except ValueError:
                continue  # a difficulty of few instances, none of them held out
            example = plain_example(problem, self.speaker.tokenizer, self.speaker.template)
            if len(example) <= self.phase.row:
                examples.append(example)
        places = best_fit_decreasing([len(example) for example in examples], self.phase.row)
        rows = [[examples[place] for place in row] for row in places]
        return {"problems": list(self._packed(rows[self.rank :: self.ranks]))}

    def _plain_rows(self, step: int, tokens: int) -> list[list[Example]]:
        row, wanted = self.phase.row, max(1, tokens // self.phase.row)
        examples: list[Example] = []
        index, total = self._first_index(step), 0
        # A little more than fits, so that best-fit packing has small pieces left to fill its rows with.
        while total < wanted * row * 1.02:
            problem = draw_problem(self.mixture, self.seed, index)
            index += 1
            example = plain_example(problem, self.speaker.tokenizer, self.speaker.template)
            if len(example) <= row:
                examples.append(example)
                total += len(example)
        packed = best_fit_decreasing([len(example) for example in examples], row)
        packed.sort(key=lambda places: -sum(len(examples[place]) for place in places))
        return [[examples[place] for place in places] for places in packed[:wanted]]

    def _packed(self, rows: Sequence[list[Example]]) -> Iterator[Batch]:
        """Rows of several examples, in as few microbatches as hold them, each with as many."""
        batches = -(-len(rows) * self.phase.row // self.phase.microbatch_tokens)
        for part in range(batches):
            if rows[part::batches]:
                yield make_batch(rows[part::batches])

    def _aggregations(self, step: int, tokens: int, learned: int) -> list[Example]:
        """Examples of about `tokens` in all, with at most `learned` learned ones: plain problems keep half of those."""
        aggregation = self.phase.aggregation
        if aggregation is None or tokens < 1:
            return []
        examples: list[Example] = []
        while sum(len(example) for example in examples) < tokens:
            index = self._first_index(step) + len(examples)
            drawn = self._aggregation(aggregation, index)
            learned -= int(drawn.learned.sum())
            if learned < 0 and examples:
                break
            examples.append(drawn)
        return sorted(examples, key=len)

    def _apart(self, examples: Sequence[Example], tokens: int) -> Iterator[Batch]:
        """Rows of one example each, beside others about as long."""
        batch: list[list[Example]] = []
        for example in examples:
            # Attention to a long row costs more than padding.
            padding = sum(len(example) - len(row[0]) for row in batch)
            wide = (len(batch) + 1) * len(example) > self.phase.microbatch_tokens
            if batch and (padding > _MOST_PADDING * tokens or wide):
                yield make_batch(batch)
                batch = []
            batch.append([example])
        if batch:
            yield make_batch(batch)

    def _first_index(self, step: int) -> int:
        return crc32(self.phase.name.encode()) * _INDICES_A_PHASE + step * _INDICES_A_STEP

    def _aggregation(self, recipe: AggregationRecipe, index: int) -> Example:
        if Random(f"slipped or own/{self.seed}/{index}").random() < recipe.slipped:
            return draw_slipped(
                self.mixture,
                self.speaker,
                recipe.tail_range(),
                recipe.tau,
                recipe.slip_rate,
                self.seed,
                _SLIPPED + index,
                undecided=recipe.undecided,
            )
        return draw_aggregation(
            self.pool, self.mixture, self.speaker, recipe.tail_range(), self.seed, index, undecided=recipe.undecided
        )
