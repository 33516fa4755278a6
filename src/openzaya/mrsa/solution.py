"""What a run gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from openzaya.backends.protocol import Usage
from openzaya.mrsa.candidate import CUT, INTERRUPTED, Candidate, total_usage

FinishReason = Literal["answered", "budget", "deadline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSummary:
    """One round in figures; `cut` counts stragglers that a quorum left behind and rollouts that a budget cut off."""

    round: int
    candidates: int
    failed: int
    cut: int
    completion_tokens: int
    seconds: float

    @classmethod
    def of(cls, candidates: tuple[Candidate, ...]) -> RoundSummary:
        """The figures of a round's candidates; there must be at least one."""
        ended = max(c.started + c.seconds for c in candidates)
        return cls(
            round=candidates[0].round,
            candidates=len(candidates),
            failed=sum(c.failed for c in candidates),
            cut=sum(c.finish_reason in (CUT, *INTERRUPTED) for c in candidates),
            completion_tokens=total_usage(candidates).completion_tokens,
            seconds=ended - min(c.started for c in candidates),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The answer, how it came about, and what it cost."""

    answer: str | None
    """The extracted answer; None where the text holds none."""
    text: str
    """The reply as a user reads it."""
    votes: Mapping[str, int]
    """Candidates of the deciding round by answer, the most first."""
    rounds: tuple[RoundSummary, ...]
    usage: Usage
    """Every token of every rollout: failed ones, cut ones, a final call, and attempts that a resumed run repeated."""
    finish_reason: FinishReason
    exactness: str
    """The least exact way in which a tail that was read had been counted; "none" where no tail was read."""
    seconds: float
    journal: str | None = None
    candidates: tuple[tuple[Candidate, ...], ...] = ()
    """All candidates, by round."""
    final: Candidate | None = None
    """The final call, where there was one."""
    chosen: Candidate | None = None
    """The candidate whose reply this is."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """Tool calls of the reply, where the final call made any."""

    def as_json(self) -> dict[str, Any]:
        """The object that `openzaya solve --json` prints."""
        return {
            "answer": self.answer,
            "text": self.text,
            "votes": dict(self.votes),
            "rounds": [asdict(summary) for summary in self.rounds],
            "usage": {
                "prompt_tokens": self.usage.prompt_tokens,
                "completion_tokens": self.usage.completion_tokens,
                "cached_tokens": self.usage.cached_tokens,
            },
            "finish_reason": self.finish_reason,
            "exactness": self.exactness,
            "seconds": self.seconds,
            "journal": self.journal,
        }
