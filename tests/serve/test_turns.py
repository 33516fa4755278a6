"""Fair turns between requests."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from openzaya.serve.turns import Share, Turns


def test_a_large_request_does_not_starve_a_small_one_and_final_calls_go_first() -> None:
    order: list[str] = []

    async def rollout(turns: Turns, share: Share, name: str, all_wait: asyncio.Event) -> None:
        async with turns.turn(share):
            order.append(name)
            await all_wait.wait()
            await asyncio.sleep(0)

    async def use() -> None:
        turns = Turns(2)
        all_wait = asyncio.Event()
        large, small, final = Share(), Share(), Share(urgent=True)
        tasks = [asyncio.create_task(rollout(turns, large, "large", all_wait)) for _ in range(8)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(rollout(turns, small, "small", all_wait)) for _ in range(2)]
        tasks.append(asyncio.create_task(rollout(turns, final, "final", all_wait)))
        await asyncio.sleep(0)
        all_wait.set()
        await asyncio.gather(*tasks)

    asyncio.run(use())
    assert order[:2] == ["large", "large"]
    assert order[2] == "final"
    assert order[3:7].count("small") == 2
    assert len(order) == 11


def test_places_of_cancelled_waiters_and_holders_come_back() -> None:
    async def use() -> tuple[int, int]:
        turns = Turns(1)
        share = Share()
        entered = 0

        async def hold(seconds: float) -> None:
            nonlocal entered
            async with turns.turn(share):
                entered += 1
                await asyncio.sleep(seconds)

        holding = asyncio.create_task(hold(60))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(hold(60)) for _ in range(3)]
        await asyncio.sleep(0)
        before = turns.waiting
        holding.cancel()
        await asyncio.sleep(0)
        waiting[0].cancel()  # it has been given the place but has not woken up
        waiting[1].cancel()
        for task in (holding, *waiting[:2]):
            with suppress(asyncio.CancelledError):
                await task
        waiting[2].cancel()
        with suppress(asyncio.CancelledError):
            await waiting[2]
        await asyncio.wait_for(hold(0), 1)
        return before, share.held

    assert asyncio.run(use()) == (3, 0)


def test_a_final_call_goes_before_a_request_that_holds_less() -> None:
    order: list[str] = []

    async def rollout(turns: Turns, share: Share, name: str) -> None:
        async with turns.turn(share):
            order.append(name)
            await asyncio.sleep(0)

    async def use() -> None:
        turns = Turns(2)
        late, early = Share(), Share()
        async with turns.turn(late):
            async with turns.turn(late):
                tasks = [asyncio.create_task(rollout(turns, early, "early"))]
                await asyncio.sleep(0)
                late.urgent = True
                tasks.append(asyncio.create_task(rollout(turns, late, "final")))
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)

    asyncio.run(use())
    assert order == ["final", "early"]
