"""The course of a run, from round 0 to the answer, as its candidates decide it; and runs retold from a journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openzaya.mrsa import events
from openzaya.mrsa.candidate import Candidate, total_usage
from openzaya.mrsa.config import MrsaConfig
from openzaya.mrsa.context import FinalRequest, Room
from openzaya.mrsa.controls import Controls
from openzaya.mrsa.journal import Journal, JournalSink
from openzaya.mrsa.plans import Job
from openzaya.mrsa.prompts import bundled_prompts
from openzaya.mrsa.selection import best_so_far, choose, count_votes, unanimous
from openzaya.mrsa.solution import FinishReason, RoundSummary, Solution
from openzaya.mrsa.tails import LADDER


class MrsaError(RuntimeError):
    """The run cannot go on; its journal is whole, and resuming it tries rollouts that failed again."""


async def replay(sink: JournalSink, *, on_event: events.OnEvent | None = None) -> Solution:
    """The Solution of a finished run from its journal alone, without a backend.

    Raises JournalError where the journal cannot be read and MrsaError where it is missing or its run had not ended.
    """
    journal = await sink.read()
    if journal is None:
        raise MrsaError(f"there is no journal at {sink.name}")
    if journal.end is None:
        raise MrsaError(f"the journal {sink.name} stops before the end of its run; resume it first")
    return await retell(journal, sink, on_event)


async def retell(journal: Journal, sink: JournalSink | None, on_event: events.OnEvent | None) -> Solution:
    """The Solution of an ended run from what its journal holds; raises MrsaError where rollouts are missing."""
    header = journal.header
    # Of the demands on a final call only this is needed here: whether there were any.
    final = FinalRequest(stop=("",) if header.controls["forces_final"] else ())
    task: Any = header.task
    config = MrsaConfig(**header.config)
    job = Job(header.messages, config, task, bundled_prompts(), final, Controls(), Room(None, 0, 0))
    return await Course(job, sink, journal, on_event).execute()


class Course:
    """The course of a run, told from its journal alone; `LiveRun` adds the rollouts that the journal lacks."""

    def __init__(
        self, job: Job, sink: JournalSink | None, journal: Journal | None, on_event: events.OnEvent | None
    ) -> None:
        self.job = job
        self.config = job.config
        self.sink = sink
        self.journal = journal
        self.on_event = on_event
        self.model = journal.header.model if journal else None
        self.attempts: list[Candidate] = list(journal.attempts) if journal else []
        """Every rollout that cost something, repeated ones included."""
        self.restored = journal.latest() if journal else {}
        self.rounds: list[tuple[Candidate, ...]] = []
        self.final: Candidate | None = None
        self.ending: FinishReason | None = None
        """Why the run has to end now; None while it may go on."""

    # ---- what a run from a backend does otherwise

    async def candidates_of(self, round: int) -> tuple[Candidate, ...]:
        """All candidates of a round (of the final call, the one); none where the run ended before it."""
        assert self.journal is not None
        assert self.journal.end is not None
        places = [(round, index) for index in range(self.job.width(round))]
        found = tuple(self.restored[place] for place in places if place in self.restored)
        if found:
            self._tell_started(round)
        for candidate in found:
            self._tell_settled(candidate, restored=True)
        if len(found) < len(places) or any(candidate.interrupted for candidate in found):
            reason = self.journal.end.finish_reason
            if reason == "answered":
                raise MrsaError(f"the journal lacks rollouts of round {round}, which its run had; it is damaged")
            self.ending = "budget" if reason == "budget" else "deadline"
        return found

    def seconds(self) -> float:
        """How long the run took."""
        assert self.journal is not None
        assert self.journal.end is not None
        return self.journal.end.seconds

    # ---- the course of a run

    async def execute(self) -> Solution:
        self.tell(
            events.RunStarted(
                config=self.config,
                task=self.job.task,
                model=self.model,
                restored=len(self.restored),
            )
        )
        for round in range(self.config.rounds + 1):
            candidates = await self.candidates_of(round)
            if not candidates:
                break
            self.rounds.append(candidates)
            self._tell_round(candidates)
            if any(candidate.interrupted for candidate in candidates):
                break
            self._require_minimum(candidates)
            if self.config.stop_on_unanimity and unanimous(candidates):
                break
        solution = await self._conclude()
        self.tell(
            events.RunFinished(
                answer=solution.answer,
                finish_reason=solution.finish_reason,
                completion_tokens=solution.usage.completion_tokens,
                seconds=solution.seconds,
            )
        )
        return solution

    async def _conclude(self) -> Solution:
        last = self.rounds[-1] if self.rounds else ()
        if self._rounds_are_done(last):
            chosen = None if self.job.final.forces_final else choose(last, self.config.select, self.config.seed)
            if chosen is not None:
                return self._solution(chosen, last, "answered")
            for final in await self.candidates_of(self.job.final_round):
                self.final = final
                if not final.interrupted:
                    return self._solution(self._stand_in(final, last) if final.failed else final, last, "answered")
        assert self.ending is not None
        voters, best = best_so_far(self.rounds)
        if self.final is not None and (best is None or not best.content):
            best = self.final
        return self._solution(best, voters, self.ending)

    def _rounds_are_done(self, last: Sequence[Candidate]) -> bool:
        if not last or any(candidate.interrupted for candidate in last):
            return False
        return last[0].round == self.config.rounds or (self.config.stop_on_unanimity and unanimous(last))

    def _stand_in(self, final: Candidate, last: Sequence[Candidate]) -> Candidate:
        """Who answers where the final call failed: the largest group, unless there are demands that no vote meets."""
        _, best = best_so_far([last])
        if self.job.final.forces_final or best is None or best.answer is None:
            raise MrsaError(f"the final aggregation failed: {final.failure}")
        return best

    def _require_minimum(self, candidates: Sequence[Candidate]) -> None:
        failed = [candidate for candidate in candidates if candidate.failed]
        good = len(candidates) - len(failed)
        minimum = min(self.config.minimum, len(candidates))
        if good < minimum:
            first = min(failed, key=lambda candidate: candidate.started + candidate.seconds)
            raise MrsaError(
                f"only {good} of {len(candidates)} candidates of round {first.round} succeeded and at least {minimum} "
                f"must; the first failure was: {first.failure}"
            )

    def _solution(self, chosen: Candidate | None, voters: Sequence[Candidate], reason: FinishReason) -> Solution:
        return Solution(
            answer=chosen.answer if chosen else None,
            text=chosen.content if chosen else "",
            votes=count_votes(voters),
            rounds=tuple(RoundSummary.of(candidates) for candidates in self.rounds),
            usage=total_usage(self.attempts),
            finish_reason=reason,
            exactness=self._exactness(),
            seconds=self.seconds(),
            journal=self.sink.name if self.sink else None,
            candidates=tuple(self.rounds),
            final=self.final,
            chosen=chosen,
            tool_calls=chosen.tool_calls if chosen else (),
        )

    def _exactness(self) -> str:
        readers = [*zip(self.rounds[1:], self.rounds, strict=False)]
        if self.final is not None:
            readers.append(((self.final,), self.rounds[-1]))
        tails = [previous[place].tail for round, previous in readers for reader in round for place in reader.tails_read]
        return max((tail.exactness for tail in tails if tail is not None), key=LADDER.index, default="none")

    # ---- what is told

    def tell(self, event: events.Event) -> None:
        if self.on_event is not None:
            self.on_event(event)

    def _tell_started(self, round: int) -> None:
        limit = self.job.limit(round)
        if round == self.job.final_round:
            self.tell(events.FinalStarted(limit=limit))
        else:
            self.tell(events.RoundStarted(round=round, width=self.job.width(round), limit=limit))

    def _tell_settled(self, candidate: Candidate, *, restored: bool = False) -> None:
        if candidate.failure is not None:
            self.tell(
                events.CandidateFailed(
                    round=candidate.round,
                    index=candidate.index,
                    failure=candidate.failure,
                    tokens=candidate.usage.completion_tokens,
                    seconds=candidate.seconds,
                    restored=restored,
                )
            )
            return
        self.tell(
            events.CandidateFinished(
                round=candidate.round,
                index=candidate.index,
                answer=candidate.answer,
                tokens=candidate.usage.completion_tokens,
                seconds=candidate.seconds,
                finish_reason=candidate.finish_reason,
                restored=restored,
            )
        )

    def _tell_round(self, candidates: tuple[Candidate, ...]) -> None:
        summary = RoundSummary.of(candidates)
        self.tell(
            events.RoundFinished(
                round=summary.round,
                votes=count_votes(candidates),
                failed=summary.failed,
                cut=summary.cut,
                completion_tokens=summary.completion_tokens,
                seconds=summary.seconds,
            )
        )
