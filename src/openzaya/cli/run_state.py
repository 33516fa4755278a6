"""What is known of a run while it goes on: the event stream of `openzaya.mrsa`, folded into one value.

Everything that is shown comes from here, and nothing here draws or prints. Times are in seconds of any steady clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from openzaya.grading.equivalence import equivalent
from openzaya.mrsa import events
from openzaya.mrsa.candidate import CUT, INTERRUPTED
from openzaya.mrsa.config import MrsaConfig

_RATE_WINDOW = 10.0
"""Seconds over which the speed is measured: long enough to be steady, short enough to follow a change of rounds."""


class Stage(Enum):
    """Where a candidate is."""

    WAITING = "waiting"
    WRITING = "writing"
    ANSWERED = "answered"
    SILENT = "finished without an answer"
    CUT = "cut"
    FAILED = "failed"


@dataclass(slots=True)
class Place:
    """One candidate of the grid."""

    stage: Stage = Stage.WAITING
    tokens: int = 0
    answer: int | None = None
    """Its place in `RunState.answers`."""

    @property
    def ended(self) -> bool:
        return self.stage not in (Stage.WAITING, Stage.WRITING)


@dataclass(slots=True)
class RoundState:
    """One row of the grid; the final call is a row of one place."""

    places: list[Place]
    limit: int | None
    """Token limit of a candidate."""
    seconds: float | None = None
    """How long it took, once it is over."""

    @property
    def tokens(self) -> int:
        return sum(place.tokens for place in self.places)

    @property
    def ended(self) -> int:
        return sum(place.ended for place in self.places)

    def count(self, stage: Stage) -> int:
        return sum(place.stage is stage for place in self.places)

    def votes(self) -> list[tuple[int, int]]:
        """(place in `RunState.answers`, candidates that hold it), the most first."""
        held: dict[int, int] = {}
        for place in self.places:
            if place.answer is not None:
                held[place.answer] = held.get(place.answer, 0) + 1
        return sorted(held.items(), key=lambda item: (-item[1], item[0]))

    def typical_length(self) -> float | None:
        """Mean tokens of the candidates that came to an end of their own, None before the first."""
        lengths = [place.tokens for place in self.places if place.stage in (Stage.ANSWERED, Stage.SILENT)]
        return sum(lengths) / len(lengths) if lengths else None


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is still to come."""

    tokens: float
    seconds: float | None
    """None until the speed is known."""
    at_most: bool
    """No candidate has finished yet, so that the token limits are all there is to go by."""


@dataclass(slots=True)
class RunState:
    """A run so far. `observe` takes every event in order, with the time at which it came."""

    config: MrsaConfig | None = None
    """None until the source is ready and the run has started."""
    task: str = ""
    model: str | None = None
    restored: int = 0
    rounds: list[RoundState] = field(default_factory=list)
    final: RoundState | None = None
    final_text: str = ""
    answers: list[str] = field(default_factory=list)
    """The different answers in the order in which they appeared, equivalent ones once."""
    failures: list[str] = field(default_factory=list)
    ended: events.RunFinished | None = None
    _started: float | None = None
    _restored_tokens: int = 0
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def observe(self, event: events.Event, now: float) -> None:
        """Take one event."""
        match event:
            case events.RunStarted():
                self.config, self.task, self.model = event.config, event.task, event.model
                self.restored, self._started = event.restored, now
            case events.RoundStarted():
                self.rounds.append(RoundState([Place() for _ in range(event.width)], event.limit))
            case events.FinalStarted():
                self.final = RoundState([Place()], event.limit)
            case events.CandidateStarted():
                self._place(event.round, event.index).stage = Stage.WRITING
            case events.CandidateProgress():
                place = self._place(event.round, event.index)
                place.stage, place.tokens = Stage.WRITING, event.tokens
            case events.CandidateFinished():
                self._finish(event)
            case events.CandidateFailed():
                place = self._place(event.round, event.index)
                place.stage, place.tokens = Stage.FAILED, event.tokens
                self._restored_tokens += event.tokens if event.restored else 0
                self.failures.append(event.failure)
            case events.RoundFinished():
                self.rounds[event.round].seconds = event.seconds
            case events.FinalDelta():
                self.final_text += event.text
            case events.RunFinished():
                self.ended = event
        self._sample(now)

    def _finish(self, event: events.CandidateFinished) -> None:
        place = self._place(event.round, event.index)
        place.tokens = event.tokens
        self._restored_tokens += event.tokens if event.restored else 0
        if event.answer is not None:
            place.answer = self._answer(event.answer)
        if event.finish_reason in (CUT, *INTERRUPTED):
            place.stage = Stage.CUT
        else:
            place.stage = Stage.SILENT if event.answer is None else Stage.ANSWERED

    def _answer(self, text: str) -> int:
        for index, known in enumerate(self.answers):
            if known == text or equivalent(known, text):
                return index
        self.answers.append(text)
        return len(self.answers) - 1

    def _place(self, round: int, index: int) -> Place:
        if round < len(self.rounds):
            return self.rounds[round].places[index]
        if self.final is None:
            raise ValueError(f"candidate {index} belongs to round {round}, which has not started")
        return self.final.places[index]

    # ---- figures ----

    @property
    def rows(self) -> Iterator[RoundState]:
        """All rounds that have started, the final call last."""
        yield from self.rounds
        if self.final is not None:
            yield self.final

    @property
    def tokens(self) -> int:
        """Generated so far, those of a resumed journal included."""
        return sum(row.tokens for row in self.rows)

    def seconds(self, now: float) -> float:
        """Since the run started in this process."""
        return 0.0 if self._started is None else now - self._started

    def tokens_per_second(self, now: float) -> float | None:
        """Over the last seconds, None before anything was generated."""
        self._sample(now)
        (first, before), (last, after) = self._samples[0], self._samples[-1]
        return (after - before) / (last - first) if last > first and after > before else None

    def _sample(self, now: float) -> None:
        tokens = self.tokens - self._restored_tokens
        if self._samples and now - self._samples[-1][0] < _RATE_WINDOW / 100:
            return
        self._samples.append((now, tokens))
        while len(self._samples) > 2 and now - self._samples[1][0] >= _RATE_WINDOW:
            self._samples.popleft()

    def outlook(self, now: float) -> Outlook | None:
        """What is left, going by the lengths of finished candidates; None where neither they nor a limit tell, or all
        that is left has run longer than that.

        A final call that may yet be needed is not counted, and neither is what a deadline will leave undone.
        """
        if self.config is None or self.ended is not None:
            return None
        left, typical = 0.0, None
        for row in self.rows:
            typical = row.typical_length() or typical
            length = _at_most(typical, row.limit)
            if length is None:
                return None
            left += sum(max(length - place.tokens, 0.0) for place in row.places if not place.ended)
        if self.final is None:
            for number in range(len(self.rounds), self.config.rounds + 1):
                length = _at_most(typical, self.config.limit(number))
                if length is None:
                    return None
                left += self.config.width(number) * length
        if not left:
            return None
        speed = self.tokens_per_second(now)
        return Outlook(left, left / speed if speed else None, typical is None)


def _at_most(typical: float | None, limit: int | None) -> float | None:
    """What to expect of a candidate: what others took, within its limit."""
    if typical is None:
        return limit
    return typical if limit is None else min(typical, limit)
