"""One request at work: its choices side by side, what they tell while they grow, and what they came to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from openzaya.backends.protocol import BackendError, ChatParams, Message, Reply, ToolCallDelta, Usage
from openzaya.backends.upstreams import same_beginning
from openzaya.grading import group_votes
from openzaya.mrsa import Solution, events, run
from openzaya.mrsa.candidate import INTERRUPTED, Candidate
from openzaya.mrsa.journal import JournalSink, hash_of
from openzaya.serve.errors import ApiError
from openzaya.serve.turns import SharedBackend
from openzaya.serve.work import Work

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A choice is under way: nothing about the request itself can be wrong any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How the rounds go, in a line for people."""

    choice: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of the reply itself, as its source gave it."""

    choice: int
    reasoning: str = ""
    content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()


Update = Started | Progress | Piece
Tell = Callable[[Update], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One whole reply."""

    finish_reason: str
    """In OpenAI's words."""
    reasoning: str = ""
    content: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] | None = None
    final_failed: str | None = None
    """Why the final call failed, where another reply stands in for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a request. `reports` has the figures of each run; a plain reply has none."""

    choices: tuple[Choice, ...]
    usage: Usage
    reports: tuple[Mapping[str, Any], ...] = ()
    final_usage: Usage = field(default_factory=Usage)
    """The part of `usage` that final calls cost, which may be another model's."""
    cost: float | None = None
    """Of `usage`, where prices are configured."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, for the store."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Outcome:
        """The inverse of `as_json`."""
        choices = tuple(
            Choice(**{**choice, "tool_calls": tuple(choice["tool_calls"]), "logprobs": _tuple(choice["logprobs"])})
            for choice in values["choices"]
        )
        usage, final = Usage(**values["usage"]), Usage(**values["final_usage"])
        reports = tuple(values["reports"])
        return cls(choices=choices, usage=usage, reports=reports, final_usage=final, cost=values["cost"])


def _tuple(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)


class Recorder(Protocol):
    """Who keeps a run besides its reply: its journal, its events and its solution."""

    @property
    def sink(self) -> JournalSink: ...

    def on_event(self, event: events.Event) -> None: ...

    def on_solution(self, solution: Solution) -> None: ...


Sinks = Callable[[int], JournalSink]
"""The journal of each choice."""


async def converse(
    work: Work,
    messages: Sequence[Message],
    backend: SharedBackend,
    tell: Tell,
    recorder: Recorder | None = None,
    sinks: Sinks | None = None,
) -> Outcome:
    """Do the work of one request; cancelling it stops every rollout at its source.

    A `recorder` follows the run of the first choice; a plain reply has none to follow. Other runs are kept in `sinks`,
    and go on from what these hold already. Raises ApiError, BackendError, ConfigError, PromptError, JournalError or
    MrsaError.
    """
    same_beginning.set(hash_of(_beginning(messages)))
    several = [
        _one_choice(
            work.of_choice(index), index, messages, backend.of_choice(), tell, _recorder(recorder, index, sinks)
        )
        for index in range(work.choices)
    ]
    return together(await all_or_none(several))


def _beginning(messages: Sequence[Message]) -> list[Message]:
    """The turns that every later request of the same conversation will begin with."""
    first = next((place for place, message in enumerate(messages) if message["role"] == "user"), 0)
    return list(messages[: first + 1])


def _recorder(recorder: Recorder | None, index: int, sinks: Sinks | None) -> Recorder | None:
    if recorder is not None and index == 0:
        return recorder
    return None if sinks is None else _KeptOnly(sinks(index))


@dataclass(frozen=True, slots=True)
class _KeptOnly:
    """A recorder that nobody watches."""

    sink: JournalSink

    def on_event(self, event: events.Event) -> None: ...

    def on_solution(self, solution: Solution) -> None: ...


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcomes of several choices as one."""
    usage = sum((outcome.usage for outcome in outcomes), Usage())
    final = sum((outcome.final_usage for outcome in outcomes), Usage())
    choices = tuple(choice for outcome in outcomes for choice in outcome.choices)
    reports = tuple(report for outcome in outcomes for report in outcome.reports)
    return Outcome(choices=choices, usage=usage, reports=reports, final_usage=final)


async def all_or_none(several: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all at once; the first failure stops the others before it leaves here."""
    tasks = [asyncio.ensure_future(one) for one in several]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one_choice(
    work: Work,
    index: int,
    messages: Sequence[Message],
    backend: SharedBackend,
    tell: Tell,
    recorder: Recorder | None,
) -> Outcome:
    if work.direct is None:
        return await _run(work, index, messages, backend, tell, recorder)
    try:
        async with asyncio.timeout(work.config.deadline):
            return await _reply(work.direct, index, messages, backend, tell)
    except TimeoutError:
        raise ApiError(
            504, f"the reply was not complete within {work.config.deadline:g} s", code="deadline_exceeded"
        ) from None


async def _reply(
    params: ChatParams, index: int, messages: Sequence[Message], backend: SharedBackend, tell: Tell
) -> Outcome:
    """One plain request to the source."""
    reply = Reply()
    async with aclosing(backend.chat(messages, params)) as deltas:
        async for delta in deltas:
            tell(Started())
            reply.add(delta)
            if delta.reasoning or delta.content or delta.tool_calls or delta.logprobs:
                tell(
                    Piece(
                        choice=index,
                        reasoning=delta.reasoning,
                        content=delta.content,
                        tool_calls=delta.tool_calls,
                        logprobs=delta.logprobs,
                    )
                )
    choice = Choice(
        finish_reason=reply.finish_reason or "stop",
        reasoning=reply.reasoning,
        content=reply.content,
        tool_calls=tuple(reply.tool_calls),
        logprobs=tuple(reply.logprobs) if params.logprobs is not None else None,
    )
    return Outcome(choices=(choice,), usage=reply.usage or await counted(reply, backend))


async def counted(reply: Reply, backend: SharedBackend) -> Usage:
    """The cost of a reply whose source counts nothing; its prompt is not known."""
    try:
        counts = [await backend.count(text) for text in (reply.reasoning, reply.content)]
    except BackendError:
        counts = [None]
    if None in counts:
        return Usage()
    reasoning, content = (count or 0 for count in counts)
    return Usage(completion_tokens=reasoning + content, reasoning_tokens=reasoning)


async def _run(
    work: Work,
    index: int,
    messages: Sequence[Message],
    backend: SharedBackend,
    tell: Tell,
    recorder: Recorder | None,
) -> Outcome:
    """A run of Markovian RSA."""
    following = _Following(work, index, backend, tell)

    def on_event(event: events.Event) -> None:
        following.on_event(event)
        if recorder is not None:
            recorder.on_event(event)

    source: Any = backend  # its capabilities are read-only, which the protocol's are not
    sink = None if recorder is None else recorder.sink
    lean = not work.every_candidate
    solution = await run(messages, work.config, source, final=work.final, sink=sink, on_event=on_event, lean=lean)
    if recorder is not None:
        recorder.on_solution(solution)
    interrupted = solution.finish_reason != "answered"
    if interrupted and not solution.text.strip():
        status, code = (504, "deadline_exceeded") if solution.finish_reason == "deadline" else (400, "budget_exceeded")
        raise ApiError(status, f"the {solution.finish_reason} ended the run before any candidate answered", code=code)
    if work.every_candidate and not interrupted:
        choices = tuple(choice_of(candidate) for candidate in solution.candidates[-1] if not candidate.failed)
    else:
        choices = (_choice(solution),)
    final = Usage() if solution.final is None else solution.final.usage
    return Outcome(choices=choices, usage=solution.usage, reports=(_report(work, solution),), final_usage=final)


def choice_of(candidate: Candidate) -> Choice:
    """A candidate as the whole reply."""
    return Choice(
        finish_reason=candidate.finish_reason if candidate.finish_reason in ("stop", "tool_calls") else "length",
        reasoning=candidate.reasoning,
        content=candidate.content,
        tool_calls=candidate.tool_calls,
    )


def _choice(solution: Solution) -> Choice:
    """The reply of a run. An answer that a budget or deadline brought about is one that was cut short."""
    final = solution.final
    if final is not None and not final.failed and final.finish_reason not in INTERRUPTED:
        return choice_of(final)
    reason = "stop" if solution.finish_reason == "answered" else "length"
    failure = final.failure if final is not None else None
    return Choice(finish_reason=reason, content=solution.text, tool_calls=solution.tool_calls, final_failed=failure)


def _report(work: Work, solution: Solution) -> dict[str, Any]:
    """The figures of a run: what `solve --json` prints, and the settings that led to it."""
    whole = solution.as_json()
    kept = ("answer", "votes", "rounds", "finish_reason", "exactness", "seconds")
    config = work.config
    failures = [
        c.failure for c in (*(c for round in solution.candidates for c in round), solution.final) if c and c.failure
    ]
    return {
        **{name: whole[name] for name in kept},
        "failed": len(failures),
        "failures": sorted(set(failures))[:3],
        "final": None if solution.final is None else asdict(solution.final.usage),
        "config": {
            "candidates": config.candidates,
            "tails": config.tails,
            "rounds": config.rounds,
            "beta": config.beta,
            "tau": config.tau,
            "final_tokens": work.final.max_tokens or config.final_tokens,
            "select": config.select,
            "seed": config.seed,
        },
    }


class _Following:
    """A run's events as updates of its choice."""

    def __init__(self, work: Work, index: int, backend: SharedBackend, tell: Tell) -> None:
        self._work = work
        self._index = index
        self._backend = backend
        self._tell = tell
        self._answers: list[str | None] = []
        self._width = 0

    def on_event(self, event: events.Event) -> None:
        match event:
            case events.RunStarted():
                self._tell(Started())
            case events.RoundStarted():
                self._answers, self._width = [], event.width
            case events.CandidateFinished() | events.CandidateFailed():
                if event.round <= self._work.config.rounds:
                    self._answers.append(event.answer if isinstance(event, events.CandidateFinished) else None)
                    self._say(self._standing(event.round))
            case events.FinalStarted():
                self._backend.share.urgent = self._work.choices == 1
                self._backend.at_final = True
                self._say("final aggregation")
            case events.FinalDelta():
                self._tell(
                    Piece(
                        choice=self._index,
                        reasoning=event.reasoning,
                        content=event.text,
                        tool_calls=event.tool_calls,
                    )
                )

    def _say(self, text: str) -> None:
        if self._work.progress:
            self._tell(Progress(choice=self._index, text=text))

    def _standing(self, round: int) -> str:
        standing = f"round {round} of {self._work.config.rounds}: {len(self._answers)} of {self._width} done"
        groups = group_votes(self._answers)
        if not groups:
            return standing
        leader = groups[0]
        votes = f"{len(leader.members)} vote" + ("s" if len(leader.members) > 1 else "")
        return f"{standing}, {leader.answer} leads with {votes}"
