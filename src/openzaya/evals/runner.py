"""Run every arm on every problem: many at once, in stages, each result kept as soon as it is there.

Stages, each for one model after another: Markovian RSA itself; what needs its results (controls) or nothing (single
rollouts); and last the majorities whose size follows from tokens that were measured by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from openzaya.backends.metered import MeteredBackend
from openzaya.backends.protocol import Backend, BackendError
from openzaya.evals.arms import Arm, Pool, RsaArm, SampledArm, first_samples, matched_samples, shares_round_zero
from openzaya.evals.progress import Meter
from openzaya.evals.questions import Question, cycles
from openzaya.evals.records import Result, Results
from openzaya.evals.rollouts import control_of, question_seed, sample, solve
from openzaya.evals.sources import Sources
from openzaya.evals.spec import EvalError
from openzaya.mrsa import Controls, MrsaError, Prompts
from openzaya.mrsa.candidate import Candidate, total_usage

_PATIENCE = 5
"""Problems in a row on which a source may fail before it counts as gone."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """One arm's work on one problem, which opens up to `width` rollouts at once and costs `rollouts`."""

    width: int
    rollouts: int
    work: Callable[[Backend], Awaitable[Result]]


class Runner:
    """The work of one evaluation, over the results that are there already."""

    def __init__(
        self,
        questions: Sequence[Question],
        arms: Sequence[Arm],
        results: Results,
        *,
        seed: int,
        concurrency: int,
        prompts: Prompts | None,
        meter: Meter,
    ) -> None:
        """Raises EvalError where shuffled tails are asked for and there is only one problem."""
        self._questions, self._arms, self._results = questions, arms, results
        self._seed, self._concurrency, self._prompts, self._meter = seed, concurrency, prompts, meter
        self._others = cycles(questions)
        self._pools = list({arm.pool.name: arm.pool for arm in arms if isinstance(arm, SampledArm)}.values())
        self._rsa = [arm for arm in arms if isinstance(arm, RsaArm)]
        if len(questions) < 2 and any(arm.tails == "shuffled" for arm in self._rsa):
            raise EvalError("shuffled tails come from another problem, but there is only one; give at least 2 problems")

    async def execute(self, sources: Sources) -> None:
        """Run what the results lack. Whatever a model's source or a run raises ends it; finished results are kept."""
        models = list(dict.fromkeys(arm.model for arm in self._arms))
        self._state_plan()
        for model in models:
            await self._stage(f"Markovian RSA, {model}", model, sources, self._own_units(model))
            await self._stage(f"single rollouts and controls, {model}", model, sources, self._second_units(model))
        # Backwards, because the last model is still open.
        for model in reversed(models):
            self._state_plan()
            await self._stage(f"majority, {model}", model, sources, self._majority_units(model))
        self._meter.finish()

    # ---- the units of each stage

    def _own_units(self, model: str) -> Iterator[_Unit]:
        for arm in self._rsa:
            if arm.model == model and arm.control_of is None:
                for question in self._lacking(arm):
                    yield _Unit(arm.config.candidates, arm.rollouts, partial(self._run_own, arm, question))

    def _second_units(self, model: str) -> Iterator[_Unit]:
        for arm in self._rsa:
            if arm.model == model and arm.control_of is not None:
                for question in self._lacking(arm):
                    shared = arm.config.width(0)
                    yield _Unit(arm.config.candidates, arm.rollouts - shared, partial(self._run_control, arm, question))
        for pool in self._pools:
            if pool.model == model:
                size = first_samples(pool, self._arms)
                yield from (unit for question in self._questions for unit in self._pool_units(pool, question, size))

    def _majority_units(self, model: str) -> Iterator[_Unit]:
        for pool in self._pools:
            if pool.model == model:
                sizes = self._pool_sizes(pool)
                for question in self._questions:
                    yield from self._pool_units(pool, question, sizes[question.benchmark])

    def _pool_units(self, pool: Pool, question: Question, size: int) -> Iterator[_Unit]:
        places = self._missing(pool, question, size)
        if places:
            yield _Unit(len(places), len(places), partial(self._extend, pool, question, places))

    def _lacking(self, arm: RsaArm) -> list[Question]:
        return [question for question in self._questions if self._results.get(arm.name, question.id) is None]

    def _missing(self, pool: Pool, question: Question, size: int) -> list[int]:
        kept = self._results.get(pool.name, question.id)
        there = {candidate.index for candidate in kept.candidates} if kept else set()
        return [place for place in range(size) if place not in there]

    def _pool_sizes(self, pool: Pool) -> dict[str, int]:
        """Rollouts of a pool for each problem, by benchmark, as far as tokens are measured by now."""
        users = [arm for arm in self._arms if isinstance(arm, SampledArm) and arm.pool == pool]
        benchmarks = dict.fromkeys(question.benchmark for question in self._questions)
        return {
            name: max(samples_for(arm, name, self._arms, self._questions, self._results) for arm in users)
            for name in benchmarks
        }

    # ---- one unit's work

    async def _run_own(self, arm: RsaArm, question: Question, backend: Backend) -> Result:
        return await self._run(arm, question, backend, Controls())

    async def _run_control(self, arm: RsaArm, question: Question, backend: Backend) -> Result:
        assert arm.control_of is not None
        own = self._kept(arm.control_of, question)
        others = [self._kept(arm.control_of, other) for other in self._others[question.id]]
        return await self._run(arm, question, backend, control_of(arm, own, others, question))

    async def _run(self, arm: RsaArm, question: Question, backend: Backend, controls: Controls) -> Result:
        seed = question_seed(self._seed, question)
        candidates, answer = await solve(question, arm, seed, backend, self._prompts, controls)
        return Result(arm=arm.name, problem=question.id, candidates=candidates, answer=answer)

    async def _extend(self, pool: Pool, question: Question, places: Sequence[int], backend: Backend) -> Result:
        shared = self._shared(pool, question)
        fresh = [place for place in places if place not in shared]
        sampled = await sample(question, pool.params, fresh, question_seed(self._seed, question), backend)
        found = {candidate.index: candidate for candidate in sampled} | shared
        return Result(arm=pool.name, problem=question.id, candidates=tuple(found[place] for place in places))

    def _shared(self, pool: Pool, question: Question) -> dict[int, Candidate]:
        """Candidates of a round 0 that was sampled exactly as the pool is."""
        for arm in self._rsa:
            if arm.control_of is None and arm.model == pool.model and shares_round_zero(pool, arm.config):
                return {each.index: each for each in self._kept(arm.name, question) if each.round == 0}
        return {}

    def _kept(self, arm: str, question: Question) -> tuple[Candidate, ...]:
        result = self._results.get(arm, question.id)
        assert result is not None, f"{arm} has not been run on {question.id}"
        return result.candidates

    # ---- carrying units out

    async def _stage(self, name: str, model: str, sources: Sources, units: Iterable[_Unit]) -> None:
        left = list(units)
        if not left:
            return
        self._meter.begin(name)
        backend: Any = MeteredBackend(await sources.get(model), self._concurrency, self._meter.count)
        await _carry_out(left, backend, 2 * self._concurrency, self._results.add)

    def _state_plan(self) -> None:
        """Tell the meter how many rollouts there are in all, and how many of them are done."""
        total = left = 0
        for arm in self._rsa:
            cost = arm.rollouts - (arm.config.width(0) if arm.control_of else 0)
            total += cost * len(self._questions)
            left += cost * len(self._lacking(arm))
        for pool in self._pools:
            sizes = self._pool_sizes(pool)
            for question in self._questions:
                total += sizes[question.benchmark]
                left += len(self._missing(pool, question, sizes[question.benchmark]))
        self._meter.plan(total - left, total)


async def _carry_out(units: Sequence[_Unit], backend: Backend, open_width: int, keep: Callable[[Result], None]) -> None:
    """Do all units, so many at once that `open_width` rollouts may be asked for.

    A unit whose source failed is tried once more after all others, because one problem that fails must not cost a
    night; several in a row mean that the source is gone. That, a second failure and any other error end everything.
    """
    failed = await _try_out(units, backend, open_width, keep, patience=_PATIENCE)
    await _try_out(failed, backend, open_width, keep, patience=1)


async def _try_out(
    units: Sequence[_Unit], backend: Backend, open_width: int, keep: Callable[[Result], None], patience: int
) -> list[_Unit]:
    """Do all units; returns those whose source failed, and raises the failure of the last of `patience` in a row."""
    waiting = iter(units)
    coming = next(waiting, None)
    running: dict[asyncio.Future[Result], _Unit] = {}
    failed: list[_Unit] = []
    in_a_row = 0
    try:
        while coming is not None or running:
            while coming is not None and (not running or _width(running) + coming.width <= open_width):
                running[asyncio.ensure_future(coming.work(backend))] = coming
                coming = next(waiting, None)
            ended, _pending = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(ended, key=lambda task: task.exception() is not None):
                unit = running.pop(task)
                try:
                    keep(task.result())
                    in_a_row = 0
                except (BackendError, MrsaError):
                    failed.append(unit)
                    in_a_row += 1
                    if in_a_row >= patience:
                        raise
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return failed


def _width(running: Mapping[asyncio.Future[Result], _Unit]) -> int:
    return sum(unit.width for unit in running.values())


def samples_for(
    arm: SampledArm, benchmark: str, arms: Sequence[Arm], questions: Sequence[Question], results: Results
) -> int:
    """Rollouts of an arm for each problem of a benchmark: as many as were asked for, or as cost the tokens to match.

    Both are measured on this benchmark alone. Where the tokens to match are not all there yet it is an estimate.
    """
    if arm.samples is not None:
        return arm.samples
    target = next(each for each in arms if isinstance(each, RsaArm) and each.name == arm.match)
    first = first_samples(arm.pool, arms)
    places = [question.id for question in questions if question.benchmark == benchmark]
    runs = [run for run in (results.get(target.name, place) for place in places) if run is not None]
    pools = [pool for pool in (results.get(arm.pool.name, place) for place in places) if pool is not None]
    singles = [candidate for pool in pools for candidate in pool.candidates if candidate.index < first]
    if not runs or not singles:
        return max(first, target.rollouts)
    return matched_samples(
        sum(total_usage(run.candidates).completion_tokens for run in runs),
        len(runs),
        total_usage(singles).completion_tokens,
        len(singles),
    )
