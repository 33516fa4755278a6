"""What a run tells whoever watches it, in order, as typed values handed to one callable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from openzaya.backends.protocol import ToolCallDelta
from openzaya.mrsa.config import MrsaConfig
from openzaya.mrsa.prompts import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    config: MrsaConfig
    task: Task
    model: str | None
    restored: int
    """Rollouts taken from a journal, which are not run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStarted:
    round: int
    width: int
    limit: int | None
    """Token limit of each candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateStarted:
    """The source has been asked (a rollout that waits for `concurrency` has not started)."""

    round: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateProgress:
    """At most ten a second of each candidate."""

    round: int
    index: int
    tokens: int
    """Generated so far; an estimate where the source does not count along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateFinished:
    round: int
    index: int
    answer: str | None
    tokens: int
    seconds: float
    finish_reason: str
    restored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateFailed:
    round: int
    index: int
    failure: str
    tokens: int
    seconds: float
    restored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFinished:
    round: int
    votes: Mapping[str, int]
    """Candidates by answer, the most first."""
    failed: int
    cut: int
    completion_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalStarted:
    """No answer won outright (or the policy asks for it): one more aggregation writes the reply."""

    limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalDelta:
    """A piece of the final call as it streams."""

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    answer: str | None
    finish_reason: str
    completion_tokens: int
    seconds: float


Event = (
    RunStarted
    | RoundStarted
    | CandidateStarted
    | CandidateProgress
    | CandidateFinished
    | CandidateFailed
    | RoundFinished
    | FinalStarted
    | FinalDelta
    | RunFinished
)
OnEvent = Callable[[Event], None]
