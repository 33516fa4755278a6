"""What a context length does to the conversations of a corpus: figures for each way with those that are too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field

from openzaya.data.trimming import Fit, Outcome, Overlong, TurnLengths


class TrimmingReport(BaseModel):
    """What one way did to the conversations of a corpus at one budget of tokens."""

    model_config = ConfigDict(extra="forbid")

    budget: int
    overlong: Overlong
    outcomes: dict[str, int] = Field(default_factory=dict)
    """Conversations by what became of them."""
    emptied: int = 0
    """Conversations of which no reasoning is left in a last reply that had some."""
    answers_cut: int = 0
    """Conversations that are learned though their last answer is not whole."""
    tokens_given: int = 0
    tokens_left: int = 0
    reasoning_given: int = 0
    """Tokens of last reasonings."""
    reasoning_left: int = 0

    def count(self, turns: Sequence[TurnLengths], decided: Fit) -> None:
        """Take in one conversation."""
        self.outcomes[decided.outcome] = self.outcomes.get(decided.outcome, 0) + 1
        last = turns[-1].reasoning
        kept = decided.outcome != "dropped"
        self.emptied += kept and last > 0 and decided.reasoning == 0
        self.answers_cut += decided.outcome == "truncated"
        self.tokens_given += sum(map(sum, turns))
        self.tokens_left += decided.tokens
        self.reasoning_given += last
        self.reasoning_left += decided.reasoning

    @property
    def conversations(self) -> int:
        return sum(self.outcomes.values())

    def __add__(self, other: TrimmingReport) -> TrimmingReport:
        """Both together; they must have one budget and one way."""
        mine, others = self.model_dump(), other.model_dump()
        sums: dict[str, Any] = {name: value + others[name] for name, value in mine.items() if isinstance(value, int)}
        sums |= {"budget": self.budget, "outcomes": dict(Counter(self.outcomes) + Counter(other.outcomes))}
        return TrimmingReport(overlong=self.overlong, **sums)

    def __str__(self) -> str:
        counts = [f"{self.outcomes[name]:,} {name}" for name in get_args(Outcome) if self.outcomes.get(name)]
        line = f"{self.overlong} to {self.budget:,} tokens: {self.conversations:,} conversations"
        line += f", {', '.join(counts) or 'none'}; "
        line += f"{_share(self.tokens_left, self.tokens_given)} of {self.tokens_given:,} tokens left"
        if self.emptied:
            line += f"; {self.emptied:,} without any reasoning left"
        if self.answers_cut:
            line += f"; {self.answers_cut:,} answers cut"
        return line


def trimming_table(reports: Sequence[TrimmingReport]) -> str:
    """The reports beside each other as lines of text, one a report."""
    head = ["context", "overlong", *get_args(Outcome), "emptied", "answers cut", "tokens left", "reasoning left"]
    rows = [head, *map(_cells, reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def _cells(report: TrimmingReport) -> list[str]:
    outcomes = [f"{report.outcomes.get(name, 0):,}" for name in get_args(Outcome)]
    return [
        f"{report.budget:,}",
        report.overlong,
        *outcomes,
        f"{report.emptied:,}",
        f"{report.answers_cut:,}",
        _share(report.tokens_left, report.tokens_given),
        _share(report.reasoning_left, report.reasoning_given),
    ]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
