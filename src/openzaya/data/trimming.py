"""Conversations brought under a limit of tokens without losing an answer (ZAYA1-8B report, section III-A).

Answer-preserving trimming cuts the end of the last reply's reasoning, the tokens right before its answer. Where that
is not enough, the reasoning of earlier replies goes too, and where prompts and answers alone are too long, the example.
It is done anew from the whole conversation for each context length: what one length cut, a longer one may keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from openzaya.data.examples import Example

Overlong = Literal["trim", "truncate", "drop"]
"""What becomes of a conversation longer than a row: answer-preserving trimming, or one of the alternatives that it is
measured against: the end of the whole conversation is cut off, or it is left out."""

Outcome = Literal["kept", "cut", "earlier removed", "truncated", "dropped"]
"""`cut`: the last reasoning lost its end. `earlier removed`: earlier reasoning is gone, and the last may be cut too."""


class TurnLengths(NamedTuple):
    """Tokens of each part of a turn; all that trimming decides by."""

    prompt: int
    opening: int
    reasoning: int
    closing: int
    answer: int

    @property
    def thought(self) -> int:
        """Tokens that go where a reasoning goes with its frame."""
        return self.opening + self.reasoning + self.closing


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
        return sum(self.lengths)

    @property
    def lengths(self) -> TurnLengths:
        return TurnLengths(
            len(self.prompt), len(self.opening), len(self.reasoning), len(self.closing), len(self.answer)
        )

    def without_reasoning(self) -> Turn:
        """The same turn with neither reasoning nor its frame."""
        return replace(self, opening=(), reasoning=(), closing=())


@dataclass(frozen=True, slots=True)
class Fit:
    """What is to become of a conversation; `tokens` are left of it in all, and `reasoning` of its last reasoning."""

    outcome: Outcome
    tokens: int
    reasoning: int


def fit(turns: Sequence[TurnLengths], budget: int, overlong: Overlong = "trim", *, line_break: int = 0) -> Fit:
    """How a conversation comes to at most `budget` tokens.

    `line_break` is the length of what ends a reasoning that was cut. Raises ValueError for a conversation without a
    reply, a budget below one and a way of `overlong` that does not exist.
    """
    if budget < 1:
        raise ValueError(f"a budget of {budget} tokens holds nothing; give at least 1")
    if not turns:
        raise ValueError("the conversation has no reply to learn; give at least one assistant turn")
    if overlong not in get_args(Overlong):
        raise ValueError(f"overlong is {overlong!r}; it must be one of {', '.join(get_args(Overlong))}")
    total, last = sum(map(sum, turns)), turns[-1].reasoning
    if total <= budget:
        return Fit("kept", total, last)
    if overlong == "truncate":
        left = budget - (total - turns[-1].closing - turns[-1].answer - last)
        return Fit("truncated", budget, min(last, max(0, left)))
    outcomes: tuple[tuple[Outcome, int], ...] = (
        ("cut", total),
        ("earlier removed", total - sum(turn.thought for turn in turns[:-1])),
    )
    for outcome, tokens in outcomes if overlong == "trim" else ():
        room = budget - (tokens - last)
        if room >= 0:
            # A line break alone would be no reasoning.
            left = last if room >= last else room if room > line_break else 0
            return Fit(outcome, tokens - last + left, left)
    return Fit("dropped", 0, 0)


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What became of a conversation; `turns` is None where nothing is left of it."""

    turns: tuple[Turn, ...] | None
    outcome: Outcome


def trim(turns: Sequence[Turn], budget: int, *, line_break: Sequence[int] = ()) -> Trimmed:
    """Answer-preserving trimming to at most `budget` tokens; no prompt and no answer ever loses a token.

    `line_break` ends a reasoning that was cut, so that the reply keeps the form that the template gives it. The
    shortest reasoning left is not published: here it may be empty, which `TrimmingReport.emptied` counts. Raises
    ValueError as `fit` does.
    """
    decided = fit([turn.lengths for turn in turns], budget, line_break=len(line_break))
    if decided.outcome == "dropped":
        return Trimmed(None, "dropped")
    *earlier, last = turns
    if decided.outcome == "earlier removed":
        earlier = [turn.without_reasoning() for turn in earlier]
    if decided.reasoning < len(last.reasoning):
        kept = max(0, decided.reasoning - len(line_break))
        last = replace(last, reasoning=(*last.reasoning[:kept], *line_break) if kept else ())
    return Trimmed((*earlier, last), decided.outcome)


def example_of(turns: Sequence[Turn]) -> Example:
    """The turns one behind the other; what the model says in learned turns is learned, prompts never are."""
    ids: list[int] = []
    learned: list[bool] = []
    for turn in turns:
        ids += (*turn.prompt, *turn.opening, *turn.reasoning, *turn.closing, *turn.answer)
        learned += [False] * len(turn.prompt) + [turn.learned] * (len(turn) - len(turn.prompt))
    return Example(np.asarray(ids, dtype=np.int32), np.asarray(learned, dtype=np.bool_))
