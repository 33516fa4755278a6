"""What one arm does with one problem: independent rollouts, or a run of Markovian RSA with or without a control."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace

from openzaya.backends.protocol import Backend, BackendError, ChatParams, Message
from openzaya.evals.arms import RsaArm
from openzaya.evals.questions import Question
from openzaya.mrsa import Controls, Prompts, run
from openzaya.mrsa.candidate import Candidate
from openzaya.mrsa.draws import derive_seed
from openzaya.mrsa.rollout import Plan, Watch, run_rollout, usage_of
from openzaya.mrsa.selection import read_answer


def question_seed(seed: int, question: Question) -> int:
    """The seed of a problem, equal for every arm, so that arms are paired rollout by rollout."""
    digest = hashlib.sha256(f"question/{seed}/{question.id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def messages_of(question: Question) -> list[Message]:
    return [{"role": "user", "content": question.text}]


async def sample(
    question: Question, params: ChatParams, places: Sequence[int], seed: int, backend: Backend
) -> tuple[Candidate, ...]:
    """Independent rollouts with the seeds that round 0 of a run would give these places.

    Failures come back as failed candidates; where every rollout failed, which says nothing of the model, the first
    failure is raised instead.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    watch = Watch(lambda: clock() - began, *(lambda *_: None,) * 4)
    tasks = [asyncio.create_task(_rollout(question, params, place, seed, backend, watch)) for place in places]
    try:
        candidates = tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if candidates and all(candidate.failed for candidate in candidates):
        raise BackendError(f"no rollout of {question.id} succeeded; the first failure was: {candidates[0].failure}")
    return candidates


async def _rollout(
    question: Question, params: ChatParams, place: int, seed: int, backend: Backend, watch: Watch
) -> Candidate:
    own_seed = derive_seed(seed, 0, place)
    plan = Plan(0, place, own_seed, (), messages_of(question), replace(params, seed=own_seed))
    outcome = await run_rollout(plan, backend, None, watch)
    failed = outcome.error is not None
    return Candidate(
        round=0,
        index=place,
        seed=own_seed,
        finish_reason=outcome.finish_reason,
        usage=await usage_of(outcome, backend, None),
        started=outcome.started,
        seconds=outcome.seconds,
        reasoning=outcome.reply.reasoning,
        content=outcome.reply.content,
        answer=None if failed else read_answer(outcome.reply.content, outcome.finish_reason, question.task),
        failure=str(outcome.error) if failed else None,
    )


async def solve(
    question: Question, arm: RsaArm, seed: int, backend: Backend, prompts: Prompts | None, controls: Controls
) -> tuple[tuple[Candidate, ...], str | None]:
    """A run of Markovian RSA, the same code as `openzaya solve`: all its candidates, and the answer it returned."""
    config = arm.config.model_copy(update={"seed": seed, "task": question.task})
    solution = await run(messages_of(question), config, backend, prompts=prompts, controls=controls)
    candidates = [candidate for round in solution.candidates for candidate in round]
    if solution.final is not None:
        candidates.append(solution.final)
    return tuple(candidates), solution.answer


def control_of(
    arm: RsaArm, own: Sequence[Candidate], others: Sequence[Sequence[Candidate]], question: Question
) -> Controls:
    """The control of one problem, from the own arm's candidates for it, and for other problems in order of preference.

    Round 0 is shared. Shuffled tails are, round by round, those of the first other problem that has any. Raises
    BackendError where no other problem has.
    """
    first_round = [candidate for candidate in own if candidate.round == 0]
    if arm.tails != "shuffled":
        return Controls(tail_source=arm.tails, first_round=first_round)
    foreign = []
    for round in range(arm.config.rounds + 1):
        tails = next(filter(None, (_tails(candidates, round) for candidates in others)), None)
        if tails is None:
            raise BackendError(f"no other problem has a tail of round {round} to show to {question.id}")
        foreign.append(tails)
    return Controls(tail_source="shuffled", foreign_tails=foreign, first_round=first_round)


def _tails(candidates: Sequence[Candidate], round: int) -> list[str]:
    return [
        candidate.tail.text
        for candidate in candidates
        if candidate.round == round and candidate.tail is not None and candidate.readable
    ]
