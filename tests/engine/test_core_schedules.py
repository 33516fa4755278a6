"""Whatever the scheduler does with a sequence in the compiled core, its scores have the bits of the sequence alone.

Admission, chunks, forks, preemption, cancelling and forgetting are drawn at random; all scores are compared.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core_models import SHAPE, quantised
from engine_models import generation, prompt, small_model
from openzaya.engine.core.executor import CompiledExecutor
from openzaya.engine.core.products import Core
from openzaya.engine.executor import PromptChunk, StepBatch
from openzaya.engine.params import SamplingParams
from openzaya.engine.scheduler import Scheduler, slots_for
from openzaya.engine.state import StatePool

LONGEST, LIMIT = 70, 20
TYPES = (torch.float32, torch.float16, torch.int8)


@pytest.fixture(scope="module")
def cores(variants):
    with Core(threads=1, variant=variants[0]) as alone, Core(threads=3) as busy:
        yield alone, busy


@pytest.fixture(scope="module")
def weights():
    return {bits: quantised(small_model(SHAPE), bits) for bits in (4, 8)}


class Recorder:
    """An executor that notes the scores of every step, each with the tokens that led to them."""

    def __init__(self, weights, core, kv, pages, slots):
        sizes = StatePool(weights.config, memory=1 << 40, slots=slots, kv=kv)
        memory = pages * sizes.page_bytes + slots * sizes.slot_bytes
        self.pool = StatePool(weights.config, memory=memory, slots=slots, kv=kv)
        self._inner, self._held, self.forks = CompiledExecutor(weights, self.pool, core), {}, 0
        self.seen, self.sample, self.logprobs = [], self._inner.sample, self._inner.logprobs
        self._open, self._fork = self.pool.open, self.pool.fork
        self.pool.open, self.pool.fork = self.open, self.fork

    def open(self):
        slot = self._open()
        self._held[slot] = ()
        return slot

    def fork(self, slot):
        twin = self._fork(slot)
        if twin is not None:
            self._held[twin] = self._held[slot]
            self.forks += 1
        return twin

    def step(self, batch):
        result = self._inner.step(batch)
        for place, (slot, token) in enumerate(zip(batch.decode_slots.tolist(), batch.decode_ids.tolist())):
            self._held[slot] += (token,)
            self.seen.append((self._held[slot], result.decode_logits[place].numpy().copy()))
        for chunk, logits in zip(batch.chunks, result.chunk_logits):
            self._held[chunk.slot] += tuple(chunk.ids)
            if logits is not None:
                self.seen.append((self._held[chunk.slot], logits.numpy()))
        return result


def scores_alone(weights, core, kv, ids, first):
    """The scores after each beginning of `ids` of `first` tokens or more: one prompt, then token by token."""
    recorder = Recorder(weights, core, kv, 4, 1)
    slot = recorder.pool.open()
    assert recorder.pool.reserve(slot, len(ids))
    recorder.step(StepBatch(chunks=[PromptChunk(slot, ids[:first], True)]))
    for token in ids[first:]:
        recorder.step(StepBatch(np.array([slot]), np.array([token])))
    return dict(recorder.seen)


def expect_the_bits_of_each_alone(weights, core, kv, generations, seen):
    expected = {}
    for each in generations:
        expected |= scores_alone(weights, core, kv, each.prompt + tuple(each.generated), len(each.prompt))
    for ids, logits in seen:
        np.testing.assert_array_equal(logits.view(np.int32), expected[ids].view(np.int32))


@settings(max_examples=25)
@given(data=st.data())
def test_random_schedules_give_the_bits_of_each_sequence_alone(cores, weights, data):
    alone, busy = cores
    kv, bits = data.draw(st.sampled_from(TYPES), label="kv"), data.draw(st.sampled_from([4, 8]), label="bits")
    max_batch, chunk = data.draw(st.integers(1, 6), label="max_batch"), data.draw(st.integers(1, 80), label="chunk")
    pages = data.draw(st.integers(3, 12), label="pages")
    recorder = Recorder(weights[bits], busy, kv, pages, slots_for(max_batch))
    scheduler = Scheduler(recorder, max_batch=max_batch, prefill_chunk=chunk)
    base, generations = prompt(LONGEST), []
    lengths = st.integers(1, LONGEST)
    for number in range(data.draw(st.integers(1, 5), label="requests")):
        # All go on from beginnings of one text, which may be nothing; those that add nothing are forks.
        ids = base[: data.draw(st.integers(0, LONGEST))] + prompt(data.draw(lengths), number)
        ids = base[: data.draw(lengths)] if data.draw(st.booleans()) else ids[:LONGEST]
        limit, kept = data.draw(st.integers(1, LIMIT)), data.draw(st.booleans())
        generations.append(generation(ids, number, limit, keep_state=kept, params=SamplingParams(temperature=0.8)))
    waiting = list(generations)
    while waiting or scheduler.busy:
        event = data.draw(st.sampled_from(["submit", "step", "step", "step", "cancel", "forget"]))
        if event == "submit" and waiting:
            scheduler.submit(waiting.pop())
        elif event == "cancel" and generations[0] not in waiting and data.draw(st.integers(0, 9)) == 0:
            scheduler.cancel(generations[0])
        elif event == "forget":
            scheduler.drop_prefixes()
        elif scheduler.busy:
            scheduler.step()
    expect_the_bits_of_each_alone(weights[bits], alone, kv, generations, recorder.seen)


@pytest.mark.parametrize("kv", TYPES, ids=str)
def test_forked_and_preempted_sequences_have_the_bits_of_each_alone(cores, weights, kv):
    alone, busy = cores
    recorder = Recorder(weights[4], busy, kv, 5, slots_for(8))
    scheduler = Scheduler(recorder, max_batch=8, prefill_chunk=11)
    generations = [generation(prompt(30), seed, LIMIT) for seed in range(3)] + [generation(prompt(45), 9, LIMIT)]
    for each in generations:
        scheduler.submit(each)
    while scheduler.busy:
        scheduler.step()
    assert scheduler.preemptions > 0
    assert recorder.forks >= 3
    assert len({ids for ids, _ in recorder.seen}) > 3 * LIMIT
    expect_the_bits_of_each_alone(weights[4], alone, kv, generations, recorder.seen)
