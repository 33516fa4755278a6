"""Conversations brought under a limit of tokens without losing an answer (ZAYA1-8B report, section III-A).

Answer-preserving trimming cuts the end of the last reply's reasoning, the tokens right before its answer. Where that
is not enough, the reasoning of earlier replies goes too, and where prompts and answers alone are too long, the example.
It is done anew from the whole conversation for each context length: what one length cut, a longer one may keep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from openzaya.data.examples import Example

Overlong = Literal["trim", "truncate", "drop"]
"""What becomes of a conversation longer than a row: answer-preserving trimming, or one of its alternatives."""
Outcome = Literal["kept", "cut", "earlier removed", "truncated", "dropped"]
"""`cut`: the last reasoning lost its end. `earlier removed`: earlier reasoning is gone, and the last may be cut too."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One reply and what was read since the reply before it, as token ids.

    `opening` and `closing` frame the reasoning and stay when it is cut to nothing; all three are empty for a reply
    without reasoning. What follows the answer, such as the end of the turn, is part of it.
    """

    prompt: tuple[int, ...]
    opening: tuple[int, ...]
    reasoning: tuple[int, ...]
    closing: tuple[int, ...]
    answer: tuple[int, ...]
    learned: bool = True

    def __len__(self) -> int:
        return sum(map(len, (self.prompt, self.opening, self.reasoning, self.closing, self.answer)))

    def without_reasoning(self) -> Turn:
        """The same turn with neither reasoning nor its frame."""
        return replace(self, opening=(), reasoning=(), closing=())


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What became of a conversation; `turns` is None where nothing is left of it."""

    turns: tuple[Turn, ...] | None
    outcome: Outcome


def trim(turns: Sequence[Turn], budget: int, *, line_break: Sequence[int] = ()) -> Trimmed:
    """Answer-preserving trimming to at most `budget` tokens; no prompt and no answer ever loses a token.

    `line_break` ends a reasoning that was cut, so that the reply keeps the form that the template gives it. The
    shortest reasoning left is not published: here it may be empty, which `TrimmingReport.emptied` counts. Raises
    ValueError for a conversation without a reply and for a budget below one.
    """
    _check(turns, budget)
    whole = tuple(turns)
    if sum(map(len, whole)) <= budget:
        return Trimmed(whole, "kept")
    found = _with_last_cut(whole, budget, line_break)
    if found is not None:
        return Trimmed(found, "cut")
    found = _with_last_cut((*(turn.without_reasoning() for turn in whole[:-1]), whole[-1]), budget, line_break)
    return Trimmed(found, "dropped" if found is None else "earlier removed")


def example_of(turns: Sequence[Turn]) -> Example:
    """The turns one behind the other; what the model says in learned turns is learned, prompts never are."""
    ids: list[int] = []
    learned: list[bool] = []
    for turn in turns:
        ids += (*turn.prompt, *turn.opening, *turn.reasoning, *turn.closing, *turn.answer)
        learned += [False] * len(turn.prompt) + [turn.learned] * (len(turn) - len(turn.prompt))
    return Example(np.asarray(ids, dtype=np.int32), np.asarray(learned, dtype=np.bool_))


@dataclass(slots=True)
class TrimmingReport:
    """What a budget did to a set of conversations."""

    budget: int
    method: Overlong
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    emptied: int = 0
    """Examples of which no reasoning is left in a last reply that had some."""
    tokens_given: int = 0
    tokens_left: int = 0

    def __str__(self) -> str:
        examples = self.outcomes.total()
        counts = [f"{self.outcomes[name]} {name}" for name in get_args(Outcome) if self.outcomes[name]]
        left = self.tokens_left / self.tokens_given if self.tokens_given else 0.0
        line = f"{self.method} to {self.budget} tokens: {examples} examples, {', '.join(counts) or 'none'}; "
        line += f"{left:.1%} of {self.tokens_given} tokens left"
        if self.emptied:
            line += f"; {self.emptied} without any reasoning left"
        return line


def fit_examples(
    conversations: Iterable[Sequence[Turn]],
    budget: int,
    method: Overlong = "trim",
    *,
    line_break: Sequence[int] = (),
) -> tuple[list[Example], TrimmingReport]:
    """Examples of at most `budget` tokens, and what became of those that were longer.

    `truncate` cuts the end of the whole conversation and `drop` leaves long ones out: the alternatives that
    answer-preserving trimming is measured against. A truncated example has lost at least the end of its answer. Raises
    ValueError as `trim` does, and for a method that does not exist.
    """
    if method not in get_args(Overlong):
        raise ValueError(f"the method {method!r} does not exist; there are {', '.join(get_args(Overlong))}")
    report, examples = TrimmingReport(budget, method), []
    for turns in conversations:
        _check(turns, budget)
        example, outcome = _fit(turns, budget, method, report, line_break)
        report.outcomes[outcome] += 1
        report.tokens_given += sum(map(len, turns))
        if example is not None:
            report.tokens_left += len(example)
            examples.append(example)
    return examples, report


def _fit(
    turns: Sequence[Turn], budget: int, method: Overlong, report: TrimmingReport, line_break: Sequence[int]
) -> tuple[Example | None, Outcome]:
    if method == "trim":
        trimmed = trim(turns, budget, line_break=line_break)
        if trimmed.turns is None:
            return None, "dropped"
        report.emptied += bool(turns[-1].reasoning) and not trimmed.turns[-1].reasoning
        return example_of(trimmed.turns), trimmed.outcome
    example = example_of(turns)
    if len(example) <= budget:
        return example, "kept"
    if method == "drop":
        return None, "dropped"
    return Example(example.ids[:budget], example.learned[:budget]), "truncated"


def _with_last_cut(turns: tuple[Turn, ...], budget: int, line_break: Sequence[int]) -> tuple[Turn, ...] | None:
    """The turns with as much of the last reasoning as fits, from its beginning; None where even none of it fits."""
    last = turns[-1]
    room = budget - sum(map(len, turns)) + len(last.reasoning)
    if room < 0:
        return None
    if room >= len(last.reasoning):
        return turns
    kept = room - len(line_break)
    reasoning = (*last.reasoning[:kept], *line_break) if kept > 0 else ()
    return (*turns[:-1], replace(last, reasoning=reasoning))


def _check(turns: Sequence[Turn], budget: int) -> None:
    if budget < 1:
        raise ValueError(f"a budget of {budget} tokens holds nothing; give at least 1")
    if not turns:
        raise ValueError("the conversation has no reply to learn; give at least one assistant turn")
