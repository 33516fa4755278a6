"""Log probabilities of a prompt's own tokens: the model's, beside replies, in little memory, and given back."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

from core_models import SHAPE, decided_model, quantised
from engine_models import generation, prompt, run, scheduler_for, small_model, spoken_alone
from openzaya.engine.core.executor import CompiledExecutor
from openzaya.engine.core.products import Core
from openzaya.engine.engine import Engine
from openzaya.engine.executor import PromptChunk, StepBatch
from openzaya.engine.scoring import Scoring
from openzaya.engine.state import StatePool


@pytest.fixture(scope="module")
def model():
    return small_model()


def expected(model, ids):
    """The log probability of each token after the first, and the highest at its place."""
    with torch.inference_mode():
        scores = torch.log_softmax(model(torch.tensor([ids]))[0], dim=-1)[:-1]
    return scores[range(len(ids) - 1), ids[1:]].tolist(), scores.max(dim=-1).values.tolist()


@pytest.mark.parametrize("length", [1, 2, 64, 65, 200])
def test_every_token_is_as_likely_as_the_model_finds_it(model, length):
    ids = prompt(length)
    with Engine(model, memory="32MiB") as engine:
        records = asyncio.run(engine.score(ids, 3))
        again = asyncio.run(engine.score(ids))
    likely, best = expected(model, ids)
    assert [record.token_id for record in records] == list(ids[1:])
    assert [record.logprob for record in records] == pytest.approx(likely, abs=1e-4)
    assert [record.top[0][1] for record in records] == pytest.approx(best, abs=1e-4)
    assert all(len(record.top) == 3 for record in records)
    assert [record.logprob for record in again] == pytest.approx(likely, abs=1e-4)


def test_a_reply_starts_from_the_prompt_that_was_scored(model):
    scheduler, ids = scheduler_for(model), prompt(100)
    scoring = Scoring(ids, 0)
    assert [scoring.advance(scheduler) for _ in range(2)] == [False, True]
    reply = generation(ids, limit=5)
    scheduler.submit(reply)
    seen = []
    step = scheduler.executor.step
    scheduler.executor.step = lambda batch: seen.append(len(batch.chunks)) or step(batch)
    run(scheduler)
    assert not any(seen)
    assert reply.generated == spoken_alone(model, generation(ids, limit=5))


def test_replies_beside_it_say_the_same_and_it_begins_again_after_an_exchange(model):
    scheduler, ids = scheduler_for(model), prompt(150)
    beside = [generation(prompt(40, seed), seed, 12) for seed in range(3)]
    for reply in beside:
        scheduler.submit(reply)
    scoring = Scoring(ids, 0)
    for _ in range(2):
        scheduler.step()
        assert not scoring.advance(scheduler)
    scheduler.exchange(type(scheduler.executor)(model, scheduler.pool))
    while not scoring.advance(scheduler):
        scheduler.step()
    run(scheduler)
    assert [record.logprob for record in scoring.records] == pytest.approx(expected(model, ids)[0], abs=1e-4)
    assert [reply.generated for reply in beside] == [
        spoken_alone(model, generation(prompt(40, seed), seed, 12)) for seed in range(3)
    ]


def test_it_waits_while_replies_hold_the_memory_and_makes_kept_prompts_give_way(model):
    scheduler = scheduler_for(model, pages=6)
    scheduler.submit(generation(prompt(60), 0, 70))
    scheduler.step()
    scoring = Scoring(prompt(140, 1), 0)
    waited = 0
    while not scoring.advance(scheduler):
        waited += not scoring.records
        scheduler.step()
    assert waited > 0
    assert len(scoring.records) == 139
    scheduler.drop_prefixes()
    assert scheduler.pool.free_pages == 6


def test_what_is_given_up_gives_its_memory_back(model):
    scheduler = scheduler_for(model)
    scoring = Scoring(prompt(100), 0)
    assert not scoring.advance(scheduler)
    assert scheduler.pool.free_pages < scheduler.pool.pages
    scoring.release(scheduler)
    assert scheduler.pool.free_pages == scheduler.pool.pages
    with Engine(model, memory="32MiB") as engine:

        async def cancelled() -> None:
            asking = asyncio.create_task(engine.score(prompt(200)))
            await asyncio.sleep(0.001)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        asyncio.run(cancelled())
        engine.forget_prompts()
        assert engine._worker.between_steps(lambda scheduler: scheduler.pool.pages - scheduler.pool.free_pages) == 0


def test_the_core_scores_every_token_of_a_chunk_as_it_scores_its_end():
    model, ids = decided_model(SHAPE), prompt(40)
    with Core(threads=1) as core:
        executor = CompiledExecutor(quantised(model, 8), StatePool(model.config, memory=1 << 23, slots=48), core)

        def chunk(length, *, everywhere=False):
            slot = executor.pool.open()
            assert executor.pool.reserve(slot, len(ids))
            return PromptChunk(slot, ids[:length], wants_logits=True, everywhere=everywhere)

        every, end, none = chunk(40, everywhere=True), chunk(25), chunk(3)
        none = PromptChunk(none.slot, none.ids, wants_logits=False)
        scores, of_end, nothing = executor.step(StepBatch(chunks=[every, end, none])).chunk_logits
        kept = scores.numpy().copy()
        assert nothing is None
        np.testing.assert_array_equal(kept[24], of_end.numpy())
        for length in (1, 17, 40):
            (alone,) = executor.step(StepBatch(chunks=[chunk(length)])).chunk_logits
            np.testing.assert_array_equal(kept[length - 1], alone.numpy())
