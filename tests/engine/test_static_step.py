"""Decoding with static shapes: what it computes on any device, and on a GPU that graphs are captured and replayed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models import SAMPLING, SHAPES, SMALL, generation, prompt, run, small_model, spoken_alone
from openzaya.engine.engine import Engine
from openzaya.engine.executor import PromptChunk, StepBatch, TorchExecutor
from openzaya.engine.params import SamplingParams
from openzaya.engine.sampling import sample
from openzaya.engine.scheduler import Scheduler, slots_for
from openzaya.engine.state import StatePool
from openzaya.engine.static_step import BUCKETS, StaticDecode, bucket

PROMPTS = [prompt(length) for length in (1, 5, 31, 32, 33, 63, 90)]


def scheduler_with(model, *, filler, device="cpu", pages=64, max_batch=16):
    options = {"slots": slots_for(max_batch), "device": device, "numerics": model.numerics, "filler": filler}
    size = StatePool(model.config, memory=1 << 32, **options)
    memory = (pages + filler) * size.page_bytes + (slots_for(max_batch) + filler) * size.slot_bytes
    pool = StatePool(model.config, memory=memory, **options)
    assert pool.pages == pages
    return Scheduler(TorchExecutor(model, pool), max_batch=max_batch)


def said(scheduler, wanted):
    for each in wanted:
        scheduler.submit(each)
    run(scheduler)
    return [each.generated for each in wanted]


@pytest.mark.parametrize("shape", SHAPES)
def test_static_shapes_say_token_for_token_what_dynamic_ones_say(shape):
    model = small_model(SHAPES[shape])
    sampled = [
        [generation(ids, seed, 12, params=SAMPLING[seed % len(SAMPLING)]) for seed, ids in enumerate(PROMPTS)]
        for _ in range(2)
    ]
    static = scheduler_with(model, filler=True)
    assert said(static, sampled[0]) == said(scheduler_with(model, filler=False), sampled[1])
    assert isinstance(static.executor.static, StaticDecode)


def test_a_batch_with_static_shapes_says_what_each_says_alone():
    model = small_model()
    rows = [generation(ids, seed, 12) for seed, ids in enumerate(PROMPTS)]
    assert said(scheduler_with(model, filler=True), rows) == [
        spoken_alone(model, generation(ids, seed, 12)) for seed, ids in enumerate(PROMPTS)
    ]


def test_static_shapes_survive_preemption_and_pages_handed_on():
    model = small_model()
    wanted = [[generation(prompt(40, seed), seed, 60) for seed in range(4)] for _ in range(2)]
    tight, roomy = scheduler_with(model, filler=True, pages=9), scheduler_with(model, filler=False)
    assert said(tight, wanted[0]) == said(roomy, wanted[1])
    assert tight.preemptions


def test_rows_that_fill_up_a_batch_touch_no_sequence():
    scheduler = scheduler_with(small_model(), filler=True, pages=4, max_batch=3)
    pool = scheduler.pool
    slots = [pool.open() for _ in range(3)]
    assert all(pool.reserve(slot, 20) for slot in slots)
    assert pool.free_pages == 1
    scheduler.executor.step(StepBatch(chunks=[PromptChunk(slot, prompt(9, slot), True) for slot in slots]))
    before = [tensor.clone() for tensor in (pool.keys, pool.values, pool.columns, pool.delayed)]
    held = pool.tables[slots[2], 0]
    # Two rows fill no bucket of three: the other sequence stays as it is.
    scheduler.executor.step(StepBatch(np.array(slots), np.array([1, 2, 3])))
    pool.lengths[slots[2]] = 9
    for tensor, old in zip((pool.keys, pool.values), before):
        tensor[:, held] = old[:, held]
    pool.columns[:, slots[2]], pool.delayed[:, slots[2]] = before[2][:, slots[2]], before[3][:, slots[2]]
    scheduler.executor.step(StepBatch(np.array(slots[:2]), np.array([4, 5])))
    assert torch.equal(pool.keys[:, held], before[0][:, held])
    assert torch.equal(pool.columns[:, slots[2]], before[2][:, slots[2]])
    free = [page for page in range(pool.pages) if page not in pool.tables[slots, 0]]
    assert torch.equal(pool.keys[:, free], before[0][:, free])


def test_a_step_is_filled_up_to_a_bucket_and_none_is_too_small():
    assert [bucket(rows) for rows in (1, 3, 17, 256, 257, 384)] == [1, 4, 24, 256, 384, 384]
    assert list(BUCKETS) == sorted(set(BUCKETS))


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_tokens_are_those_of_sampling_whatever_their_parameters(data):
    model = small_model()
    pool = StatePool(SMALL, memory=1 << 22, slots=8, filler=True)
    static = StaticDecode(model, pool)
    rows = data.draw(st.integers(1, 6))
    slots = np.array([pool.open() for _ in range(rows)])
    assert all(pool.reserve(slot, 4) for slot in slots)
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    logits = static.logits(slots, random.integers(0, SMALL.vocab_size, rows))
    if data.draw(st.booleans()):
        with torch.inference_mode():
            logits.copy_((logits * 2).round())  # many equal scores
    params = [data.draw(st.sampled_from(SAMPLING)) for _ in range(rows)]
    seeds = random.integers(0, 1 << 60, rows).astype(np.uint64)
    places = random.integers(0, 100, rows)
    expected = sample(logits.clone(), params, seeds, places)
    assert static.sample(logits, params, seeds, places).tolist() == expected.tolist()


def test_rows_that_need_more_candidates_than_are_sorted_at_once_are_drawn_from_all(monkeypatch):
    monkeypatch.setattr("openzaya.engine.sampling.FIRST_CANDIDATES", 4)
    pool = StatePool(SMALL, memory=1 << 22, slots=8, filler=True)
    static = StaticDecode(small_model(), pool)
    slots = np.array([pool.open() for _ in range(4)])
    assert all(pool.reserve(slot, 4) for slot in slots)
    logits = static.logits(slots, np.arange(4))
    params = [SamplingParams(top_p=0.99), SamplingParams(top_k=2), SamplingParams(), SamplingParams(top_k=50)]
    for place in range(50):
        places, seeds = np.full(4, place), np.arange(4, dtype=np.uint64)
        expected = sample(logits.clone(), params, seeds, places)
        assert static.sample(logits, params, seeds, places).tolist() == expected.tolist()


def test_nothing_in_a_static_step_waits_for_the_device(monkeypatch):
    """Whatever asks a tensor for its value would end the capture of a graph."""
    pool = StatePool(SMALL, memory=1 << 22, slots=4, filler=True)
    static = StaticDecode(small_model(), pool)
    slot = pool.open()
    assert pool.reserve(slot, 4)

    def refuse(*_args, **_options):
        raise AssertionError("a step asked for a value")

    for name in ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    static.logits(np.array([slot]), np.array([3]))


# ---- on a GPU ----


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ["plain", "sliding", "wide heads"])
def test_graphs_on_a_gpu_are_captured_and_say_what_the_dynamic_path_says(shape, dtype):
    model = small_model(SHAPES[shape]).to("cuda", getattr(torch, dtype))
    with Engine(model, memory="64MiB", max_batch=16) as engine:
        first = engine.generate(PROMPTS, max_tokens=24, seed=0)
        again = engine.generate(PROMPTS, max_tokens=24, seed=0)
        executor = engine._worker.scheduler.executor
        assert executor.static is not None
        assert not executor.static.graphs.refused
        assert all(step.run != step._forward for step in executor.static._steps.values())
    assert [out[0].token_ids for out in first] == [out[0].token_ids for out in again]
    if dtype == "float32":
        dynamic = scheduler_with(model, filler=False, device="cuda")
        assert dynamic.executor.static is None
        with Engine(small_model(SHAPES[shape]), memory="64MiB") as engine:
            expected = engine.generate(PROMPTS, max_tokens=24, seed=0)
        assert [out[0].token_ids for out in first] == [out[0].token_ids for out in expected]


@pytest.mark.gpu
def test_a_function_that_cannot_be_captured_is_run_and_the_log_says_so(caplog):
    from openzaya.engine.static_step import Graphs

    number = torch.ones(3, device="cuda")
    before = torch.cuda.current_stream()

    def waits():
        number.add_(1)
        number.cpu()

    graphs = Graphs(number.device)
    run_it = graphs.captured(waits)
    assert graphs.refused
    assert "goes on without graphs" in caplog.text
    assert torch.cuda.current_stream() == before
    now = number.clone()
    run_it()
    assert torch.equal(number, now + 1)
