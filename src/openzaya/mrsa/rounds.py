"""Markovian RSA: rounds of candidates, each reading the tails of the round before (ZAYA1 technical report, VI-A)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from openzaya.backends.protocol import Backend, BackendError, Delta, Message
from openzaya.mrsa import events
from openzaya.mrsa.candidate import CUT, FAILED, INTERRUPTED, Candidate, total_usage
from openzaya.mrsa.config import ConfigError, MrsaConfig
from openzaya.mrsa.context import FinalRequest, measure_room
from openzaya.mrsa.controls import Controls
from openzaya.mrsa.course import Course, retell
from openzaya.mrsa.dispatch import dispatch
from openzaya.mrsa.journal import End, Journal, JournalSink
from openzaya.mrsa.plans import Job
from openzaya.mrsa.prompts import Prompts, bundled_prompts, detect_task, question_text
from openzaya.mrsa.rollout import Outcome, Plan, Watch, usage_of
from openzaya.mrsa.selection import read_answer
from openzaya.mrsa.solution import Solution
from openzaya.mrsa.stopping import Stopping
from openzaya.mrsa.tails import TailCutter, Tokenizer


async def run(
    problem: str | Sequence[Message],
    config: MrsaConfig,
    backend: Backend,
    *,
    prompts: Prompts | None = None,
    tokenizer: Tokenizer | None = None,
    sink: JournalSink | None = None,
    on_event: events.OnEvent | None = None,
    final: FinalRequest | None = None,
    controls: Controls | None = None,
    lean: bool = False,
) -> Solution:
    """Solve one problem, or reply to one conversation, under Markovian RSA.

    A `sink` that already holds the beginning of this run is resumed from, and no finished rollout is run again. With
    `lean` only the sink keeps what no later round reads, so that memory is that of N tails and answers. A budget or a
    deadline ends in the best answer so far. Cancelling the call closes every open stream. Raises ConfigError,
    PromptError or JournalError before anything is generated, and MrsaError where too many rollouts fail.
    """
    messages: Sequence[Message] = [{"role": "user", "content": problem}] if isinstance(problem, str) else problem
    question = question_text(messages)
    if isinstance(problem, str) and not problem.strip():
        raise ConfigError("the problem is empty; give the text of a problem")
    prompts = prompts or bundled_prompts()
    final = final or FinalRequest()
    controls = controls or Controls()
    controls.check(config)
    task = detect_task(question) if config.task == "auto" else config.task
    room = await measure_room(config, messages, task, prompts, final, backend, tokenizer)
    job = Job(messages, config, task, prompts, final, controls, room)
    journal = await _open(sink, job, backend.capabilities.model)
    if journal is not None and journal.end is not None and journal.end.finish_reason == "answered":
        return await retell(journal, sink, on_event)
    cutter = TailCutter(config, backend, tokenizer)
    return await LiveRun(job, sink, journal, on_event, backend, cutter, lean=lean and sink is not None).execute()


async def _open(sink: JournalSink | None, job: Job, model: str | None) -> Journal | None:
    if sink is None:
        return None
    header = job.header(model)
    journal = await sink.read()
    if journal is None:
        await sink.write(header)
    else:
        journal.header.check(header, sink.name)
    return journal


class LiveRun(Course):
    """A run that generates what its journal lacks."""

    def __init__(
        self,
        job: Job,
        sink: JournalSink | None,
        journal: Journal | None,
        on_event: events.OnEvent | None,
        backend: Backend,
        cutter: TailCutter,
        *,
        lean: bool,
    ) -> None:
        super().__init__(job, sink, journal, on_event, lean=lean)
        self.backend = backend
        self.model = backend.capabilities.model
        self.cutter = cutter
        self.stopping = Stopping(self.config.max_total_tokens, self.config.deadline)
        self.gate = asyncio.Semaphore(self.config.concurrency) if self.config.concurrency else None
        self.watch = Watch(self.seconds, self._on_start, self._on_delta, self._on_progress, self.stopping.count)
        self.attempts += [given for given in job.controls.first_round if (0, given.index) not in self.restored]
        elapsed = max((attempt.started + attempt.seconds for attempt in self.attempts), default=0.0)
        self._origin = asyncio.get_running_loop().time() - elapsed
        # Characters of the replies whose tokens their source reported, and those tokens.
        self._written = 0
        self._reported = 0

    async def execute(self) -> Solution:
        self.stopping.count(total_usage(self.attempts).completion_tokens)
        self.stopping.start()
        try:
            return await super().execute()
        finally:
            self.stopping.close()

    async def _conclude(self) -> Solution:
        solution = await super()._conclude()
        await self._record(End(finish_reason=solution.finish_reason, seconds=solution.seconds))
        return solution

    def seconds(self) -> float:
        return asyncio.get_running_loop().time() - self._origin

    async def candidates_of(self, round: int) -> tuple[Candidate, ...]:
        kept = await self._kept(round)
        if not kept and self.stopping.reason is not None:
            self.ending = self.stopping.reason
            return ()
        self._tell_started(round)
        for candidate in kept.values():
            self._tell_settled(candidate, restored=True)

        async def settle(plan: Plan, outcome: Outcome) -> bool:
            candidate = kept[plan.index] = await self._settle(plan, outcome)
            return _counts(candidate)

        previous = self.rounds[-1] if self.rounds else ()
        plans = [plan for plan in self.job.plans(round, previous) if plan.index not in kept]
        needed = self.config.quorum_of(round) - sum(_counts(candidate) for candidate in kept.values())
        await dispatch(plans, needed, self.backend, self.gate, self.watch, self.stopping, settle)
        self.ending = self.stopping.reason
        return tuple(kept[index] for index in sorted(kept))

    async def _kept(self, round: int) -> dict[int, Candidate]:
        """Candidates of this round that need not be run: from the journal, or given by the caller.

        A rollout that the end of an earlier run cut off is run again, unless this run is at its end as well. A failure
        stays one, unless its round had too few good candidates to go on: then nothing has read its tails yet.
        """
        width = self.job.width(round)
        found = {index: self.restored[round, index] for index in range(width) if (round, index) in self.restored}
        if round == 0:
            for given in self.job.controls.first_round:
                if given.index not in found:
                    found[given.index] = given
                    await self._record(given)
        good = sum(not candidate.failed for candidate in found.values())
        collapsed = len(found) == width and good < min(self.config.minimum, width)
        return {
            index: candidate
            for index, candidate in found.items()
            if not (candidate.failed and collapsed) and not (candidate.interrupted and self.stopping.reason is None)
        }

    async def _settle(self, plan: Plan, outcome: Outcome) -> Candidate:
        """Make a candidate of what came of a plan, on record before anyone hears of it."""
        reply = outcome.reply
        ratio = self._written / self._reported if self._reported else None
        usage = await usage_of(outcome, self.backend, ratio)
        self.stopping.count(usage.completion_tokens - outcome.counted)
        if reply.usage is not None:
            self._written += len(reply.reasoning) + len(reply.content)
            self._reported += usage.completion_tokens
        failed = outcome.error is not None
        if outcome.error is not None:
            self.statuses[plan.round, plan.index] = outcome.error.status
        reply.finish_reason = outcome.finish_reason
        tail = None
        if not failed and outcome.finish_reason not in INTERRUPTED and plan.round < self.job.final_round:
            counted = usage.completion_tokens if outcome.exact else None
            tail = await self.cutter.cut(reply, completion_tokens=counted, characters_per_token=ratio)
        candidate = Candidate(
            round=plan.round,
            index=plan.index,
            seed=plan.seed,
            tails_read=plan.tails_read,
            finish_reason=outcome.finish_reason,
            usage=usage,
            started=outcome.started,
            seconds=outcome.seconds,
            tail=tail,
            reasoning=reply.reasoning,
            content=reply.content,
            answer=None if failed else read_answer(reply.content, outcome.finish_reason, self.job.task),
            failure=_describe(outcome.error) if outcome.error is not None else None,
            tool_calls=tuple(reply.tool_calls),
        )
        await self._record(candidate)
        self._tell_settled(candidate)
        self.attempts.append(candidate.in_figures() if self.lean else candidate)
        return candidate.without_reasoning() if self.lean and plan.round < self.job.final_round else candidate

    async def _record(self, entry: Candidate | End) -> None:
        if self.sink is not None:
            await self.sink.write(entry)

    def _on_start(self, plan: Plan) -> None:
        self.tell(events.CandidateStarted(round=plan.round, index=plan.index))

    def _on_delta(self, plan: Plan, delta: Delta) -> None:
        if plan.round == self.job.final_round and (delta.content or delta.reasoning or delta.tool_calls):
            self.tell(events.FinalDelta(text=delta.content, reasoning=delta.reasoning, tool_calls=delta.tool_calls))

    def _on_progress(self, plan: Plan, tokens: int) -> None:
        self.tell(events.CandidateProgress(round=plan.round, index=plan.index, tokens=tokens))


def _counts(candidate: Candidate) -> bool:
    """Whether a candidate counts towards a quorum: it came to its own end."""
    return candidate.finish_reason not in (FAILED, CUT, *INTERRUPTED)


def _describe(error: BackendError) -> str:
    return str(error) or type(error).__name__
