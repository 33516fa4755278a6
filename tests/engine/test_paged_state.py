from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models import SHAPES, SMALL, prompt, small_model
from openzaya.engine.executor import PromptChunk, StepBatch, TorchExecutor
from openzaya.engine.paged import segments_of
from openzaya.engine.state import PAGE, StatePool
from openzaya.model.numerics import REPORT


def executor_for(config=SMALL, *, numerics="hf", slots=12, pages=200):
    model = small_model(config, numerics=numerics)
    pool = StatePool(config, memory=1 << 28, slots=slots, numerics=model.numerics)
    pool = StatePool(
        config, memory=pages * pool.page_bytes + slots * pool.slot_bytes, slots=slots, numerics=model.numerics
    )
    return TorchExecutor(model, pool)


def prefill(executor, ids, *cuts):
    """Slots of whole prompts, each computed in chunks that end at `cuts`, and the scores after each."""
    slots = [executor.pool.open() for _ in ids]
    for slot, row in zip(slots, ids):
        assert executor.pool.reserve(slot, len(row))
    scores = {}
    start = 0
    for end in (*cuts, max(map(len, ids))):
        chosen = [place for place, row in enumerate(ids) if start < len(row)]
        chunks = [PromptChunk(slots[place], ids[place][start:end], end >= len(ids[place])) for place in chosen]
        for place, logits in zip(chosen, executor.step(StepBatch(chunks=chunks)).chunk_logits):
            if logits is not None:
                scores[place] = logits
        start = end
    return slots, [scores[place] for place in range(len(ids))]


def decode(executor, slots, ids):
    for slot in slots:
        assert executor.pool.reserve(slot, int(executor.pool.lengths[slot]) + 1)
    return executor.step(StepBatch(np.array(slots), np.array(ids))).decode_logits


def alone(executor, ids):
    with torch.inference_mode():
        return executor.model(torch.tensor([list(ids)]))[0, -1]


def assert_close(scores, expected):
    assert (scores - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cuts", [(), (1,), (31, 32, 33), (50, 90)], ids=str)
def test_scores_of_chunks_and_decoding_are_those_of_the_whole_forward(shape, cuts):
    executor = executor_for(SHAPES[shape])
    rows = [list(prompt(length)) for length in (5, 33, 90, 127)]
    slots, scores = prefill(executor, rows, *cuts)
    for step in range(8):
        for row, logits in zip(rows, scores):
            assert_close(logits, alone(executor, row))
        new = [17 * (step + 1) + place for place in range(len(rows))]
        for row, token in zip(rows, new):
            row.append(token)
        scores = decode(executor, slots, new)


def test_the_report_numerics_keep_their_state_in_float32():
    executor = executor_for(numerics="report")
    assert executor.model.numerics is REPORT
    slots, _ = prefill(executor, [prompt(40)], 20)
    assert_close(decode(executor, slots, [7])[0], alone(executor, [*prompt(40), 7]))


@pytest.mark.parametrize("length", [32, 45])
@pytest.mark.parametrize("shape", ["plain", "sliding"])
def test_forks_share_full_pages_and_then_go_their_own_ways(length, shape):
    executor = executor_for(SHAPES[shape])
    pool = executor.pool
    (slot,), _ = prefill(executor, [prompt(length)])
    (other,), _ = prefill(executor, [prompt(70)])
    before = pool.free_pages
    twins = [slot, *(pool.fork(slot) for _ in range(4))]
    assert before - pool.free_pages == (0 if length % PAGE == 0 else 4)
    rows = [list(prompt(length)) for _ in twins] + [list(prompt(70))]
    for step in range(3):
        new = [10 * place + step for place in range(len(rows))]
        for row, token in zip(rows, new):
            row.append(token)
        for row, logits in zip(rows, decode(executor, [*twins, other], new)):
            assert_close(logits, alone(executor, row))


def test_a_page_is_free_only_after_its_last_holder_is_closed():
    executor = executor_for()
    pool = executor.pool
    (slot,), _ = prefill(executor, [prompt(64)])
    twin = pool.fork(slot)
    assert pool.pages - pool.free_pages == 2
    pool.close(slot)
    assert pool.pages - pool.free_pages == 2
    assert_close(decode(executor, [twin], [3])[0], alone(executor, [*prompt(64), 3]))
    pool.close(twin)
    assert (pool.free_pages, pool.free_slots) == (pool.pages, pool.slots)


def test_rows_far_apart_in_the_pool_are_read_page_by_page_with_the_same_scores():
    executor = executor_for()
    first, _ = prefill(executor, [prompt(20)])
    between, _ = prefill(executor, [prompt(200, seed) for seed in range(4)])
    last, _ = prefill(executor, [prompt(40, 9)])
    for slot in between:
        executor.pool.close(slot)
    scores = decode(executor, [*first, *last], [1, 2])
    assert_close(scores[0], alone(executor, [*prompt(20), 1]))
    assert_close(scores[1], alone(executor, [*prompt(40, 9), 2]))
    tables = executor.pool.tables[[*first, *last]]
    (segment,) = segments_of(tables, executor.pool.lengths[[*first, *last]])
    assert not isinstance(segment.pages_N, slice)


def test_a_freed_slot_starts_without_the_state_of_its_last_sequence():
    executor = executor_for(slots=1)
    (slot,), _ = prefill(executor, [prompt(50)])
    executor.pool.close(slot)
    _, (scores,) = prefill(executor, [prompt(10)])
    assert_close(scores, alone(executor, prompt(10)))


def test_reserving_too_much_changes_nothing():
    pool = StatePool(SMALL, memory=1 << 28, slots=2)
    pool = StatePool(SMALL, memory=3 * pool.page_bytes + 2 * pool.slot_bytes, slots=2)
    slot = pool.open()
    assert pool.reserve(slot, 2 * PAGE)
    assert not pool.reserve(slot, 3 * PAGE + 1)
    assert pool.free_pages == 1
    assert pool.page_counts[slot] == 2


def test_memory_for_less_than_a_page_is_refused_with_the_sizes():
    with pytest.raises(ValueError, match="one page of 32 tokens"):
        StatePool(SMALL, memory=1000, slots=4)


def test_the_stated_memory_covers_every_tensor_of_the_pool():
    pool = StatePool(SMALL, memory=3 << 20, slots=7)
    tensors = (pool.keys, pool.values, pool.columns, pool.delayed)
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) <= 3 << 20


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6 * PAGE), st.integers(0, 3)), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_segments_hold_every_page_of_every_row_once(rows, random):
    """Rows of random lengths; each group of rows shares as many first pages as it can."""
    free = list(range(200))
    random.shuffle(free)
    shared = {group: [free.pop() for _ in range(3)] for group in range(4)}
    tables = np.zeros((len(rows), 8), dtype=np.int32)
    lengths = np.array([length for length, _ in rows])
    expected = set()
    for row, (length, group) in enumerate(rows):
        count = -(-length // PAGE)
        sharing = min(random.randint(0, 3), length // PAGE)
        tables[row, :count] = shared[group][:sharing] + [free.pop() for _ in range(count - sharing)]
        expected |= {(row, place * PAGE, int(tables[row, place])) for place in range(count)}
    found = []
    for segment in segments_of(tables, lengths):
        pages = np.arange(200)[segment.pages_N] if isinstance(segment.pages_N, slice) else segment.pages_N
        for page, first, readers in zip(pages, segment.firsts_N, segment.rows_NW):
            found += [(int(row), int(first), int(page)) for row in readers if row >= 0]
    assert len(found) == len(set(found))
    assert set(found) == expected
