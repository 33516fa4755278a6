"""One rollout and what became of it: what the rounds pass on, what selection votes with, what the journal keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from openzaya.backends.protocol import Usage
from openzaya.mrsa.tails import Tail

CUT = "cut"
"""Finish reason of a straggler that a quorum did not wait for."""
FAILED = "failed"
INTERRUPTED = ("budget", "deadline")
"""Finish reasons of rollouts that the end of the run cut off; resuming runs them again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A rollout of one round (the final call counts as round T + 1).

    `finish_reason` is the source's own ("stop", "length", "tool_calls"), or "cut", "budget", "deadline" or "failed". A
    failed candidate has a `failure` and never an answer or a tail. `started` is in seconds since the run began.
    """

    round: int
    index: int
    seed: int
    tails_read: tuple[int, ...] = ()
    """Places of the previous round whose tails it was shown, in the order of the prompt."""
    finish_reason: str
    usage: Usage
    started: float
    seconds: float
    tail: Tail | None = None
    reasoning: str = ""
    content: str = ""
    answer: str | None = None
    failure: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()

    @property
    def failed(self) -> bool:
        return self.finish_reason == FAILED

    @property
    def interrupted(self) -> bool:
        return self.finish_reason in INTERRUPTED

    @property
    def written(self) -> bool:
        """Whether it got as far as text that a user could read."""
        return bool(self.content.strip())

    @property
    def readable(self) -> bool:
        """Whether its tail can be shown to the next round."""
        return self.tail is not None and self.tail.usable

    def without_reasoning(self) -> Candidate:
        """What the next round and selection need of it: its tail and its answer."""
        return replace(self, reasoning="") if self.reasoning else self

    def in_figures(self) -> Candidate:
        """What the figures of a run need of it, and no text."""
        return replace(self, reasoning="", content="", tail=self.tail and replace(self.tail, text=""))

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a journal."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Candidate:
        """The inverse of `as_json`; raises TypeError or KeyError on values of another shape."""
        tail = values["tail"]
        return cls(
            **{
                **values,
                "usage": Usage(**values["usage"]),
                "tail": None if tail is None else Tail(**tail),
                "tails_read": tuple(values["tails_read"]),
                "tool_calls": tuple(values["tool_calls"]),
            }
        )


def total_usage(candidates: Iterable[Candidate]) -> Usage:
    """What these rollouts cost together."""
    return sum((candidate.usage for candidate in candidates), Usage())
