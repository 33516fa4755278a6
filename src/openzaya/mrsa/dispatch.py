"""Many rollouts at once, until all have ended, enough have, or the run has to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from openzaya.backends.protocol import Backend
from openzaya.mrsa.candidate import CUT
from openzaya.mrsa.rollout import Outcome, Plan, Watch, run_rollout
from openzaya.mrsa.stopping import Stopping

Settle = Callable[[Plan, Outcome], Awaitable[bool]]
"""Takes what came of a plan and says whether it counts towards the quorum."""


async def dispatch(
    plans: Sequence[Plan],
    needed: int,
    backend: Backend,
    gate: asyncio.Semaphore | None,
    watch: Watch,
    stopping: Stopping,
    settle: Settle,
) -> None:
    """Run all plans, and cut those still going once `needed` have counted or `stopping` is reached.

    Each outcome is settled as soon as it is there, one at a time. An error other than the source's own, or a
    cancellation from outside, closes every stream before it leaves here.
    """
    reason = stopping.reason or (CUT if needed <= 0 else None)
    if reason is not None:
        for plan in plans:
            await settle(plan, Outcome(finish_reason=reason, started=watch.clock()))
        return
    reached = asyncio.create_task(stopping.reached.wait())
    running = {asyncio.create_task(run_rollout(plan, backend, gate, watch)): plan for plan in plans}
    try:
        pending = set(running)
        while pending:
            waiting = pending if reached.done() else {*pending, reached}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            ended = sorted((task for task in pending if task.done()), key=lambda task: running[task].index)
            pending.difference_update(ended)
            for task in ended:
                needed -= await settle(running[task], _outcome(task, running[task], watch))
            ending = stopping.reason or (CUT if needed <= 0 else None)
            if ending is not None and reason is None:
                reason = ending
                for task in pending:
                    running[task].cut = reason
                    task.cancel()
    finally:
        for task in running:
            task.cancel()
        reached.cancel()
        await asyncio.gather(reached, *running, return_exceptions=True)


def _outcome(task: asyncio.Task[Outcome], plan: Plan, watch: Watch) -> Outcome:
    if task.cancelled() and plan.cut is not None:
        # It was cancelled before its first step, so nothing of it ever ran.
        return Outcome(finish_reason=plan.cut, started=watch.clock())
    return task.result()
