from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models import (
    SHAPES,
    generation,
    pages_held,
    prompt,
    run,
    scheduler_for,
    small_model,
    spoken_alone,
)
from openzaya.engine.params import SamplingParams
from openzaya.engine.scheduler import Scheduler
from openzaya.engine.state import PAGE, StatePool

PLAIN = small_model()


def mixed_generations(count=6):
    """Different lengths, parameters and limits."""
    kinds = [SamplingParams(), SamplingParams(temperature=0), SamplingParams(temperature=0.8, top_p=0.9, top_k=30)]
    return [
        generation(prompt(7 + 23 * place % 80, place), seed=place, limit=10 + 7 * place, params=kinds[place % 3])
        for place in range(count)
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_says_token_for_token_what_each_says_alone(shape):
    model = small_model(SHAPES[shape])
    scheduler = scheduler_for(model, prefill_chunk=16)
    generations = mixed_generations()
    for one in generations:
        scheduler.submit(one)
    run(scheduler)
    for one in generations:
        assert one.generated == spoken_alone(model, one)
        assert one.finish_reason == "length"
    assert pages_held(scheduler) == 0


def test_replies_that_join_and_leave_at_any_step_change_no_other():
    scheduler = scheduler_for(PLAIN, prefill_chunk=16)
    generations = mixed_generations(8)
    cancelled = generations[2]
    for step, one in enumerate(generations):
        scheduler.submit(one)
        for _ in range(step):
            scheduler.step()
        if step == 4:
            scheduler.cancel(cancelled)
    run(scheduler)
    for one in generations:
        expected = spoken_alone(PLAIN, one)
        assert one.generated == (expected[: len(one.generated)] if one is cancelled else expected)
    assert cancelled.finish_reason == "cancelled"


@pytest.mark.parametrize("chunk", [1, 7, 33, 1000])
def test_a_prompt_in_chunks_gives_what_the_whole_prompt_gives(chunk):
    scheduler = scheduler_for(PLAIN, prefill_chunk=chunk)
    scheduler.submit(generation(prompt(10), limit=40))
    scheduler.step()
    one = generation(prompt(150), seed=3)
    scheduler.submit(one)
    run(scheduler)
    assert one.generated == spoken_alone(PLAIN, one)


class CountingExecutor:
    """Counts the prompt tokens that really are computed, and the most in one step that also decodes."""

    def __init__(self, executor):
        self._executor, self.pool, self.sample = executor, executor.pool, executor.sample
        self.prompt_tokens = self.most_beside_decoding = self.steps_with_prompts = 0

    def step(self, batch):
        tokens = sum(len(chunk.ids) for chunk in batch.chunks)
        self.prompt_tokens += tokens
        self.steps_with_prompts += tokens > 0
        if len(batch.decode_slots):
            self.most_beside_decoding = max(self.most_beside_decoding, tokens)
        return self._executor.step(batch)


def counting(scheduler):
    scheduler.executor = CountingExecutor(scheduler.executor)
    return scheduler.executor


@pytest.mark.parametrize("length", [5, 2 * PAGE, 2 * PAGE + 9])
def test_one_prefill_serves_all_rollouts_of_a_prompt(length):
    scheduler = scheduler_for(PLAIN)
    executor = counting(scheduler)
    rollouts = [generation(prompt(length), seed=seed) for seed in range(8)]
    for one in rollouts[:5]:
        scheduler.submit(one)
    scheduler.step()
    for one in rollouts[5:]:
        scheduler.submit(one)
    run(scheduler)
    assert executor.prompt_tokens == length
    assert [one.cached_tokens for one in rollouts] == [0] + 7 * [length]
    for one in rollouts:
        assert one.generated == spoken_alone(PLAIN, one)


def test_a_prompt_that_begins_with_a_kept_one_goes_on_from_there():
    scheduler = scheduler_for(PLAIN)
    executor = counting(scheduler)
    first = generation(prompt(50), limit=10, keep_state=True)
    scheduler.submit(first)
    run(scheduler)
    second = generation([*first.prompt, *first.generated, 5, 6, 7], seed=9)
    scheduler.submit(second)
    run(scheduler)
    # The last token of the first reply was never fed to the model.
    assert executor.prompt_tokens == 50 + 4
    assert second.cached_tokens == 59
    assert second.generated == spoken_alone(PLAIN, second)


def tokens_once(prompts):
    """Tokens to compute where what several begin with is computed once."""
    return len({ids[:length] for ids in prompts for length in range(1, len(ids) + 1)})


QUESTION = prompt(45)
TAILS = [prompt(PAGE + 5 * place, seed=place) for place in range(4)]
ENDING = prompt(3, seed=99)


def reading(*places):
    """A prompt of a question and some tails."""
    return QUESTION + tuple(token for place in places for token in TAILS[place]) + ENDING


ROUND = [reading(*places) for places in [(0, 1, 2), (0, 1, 3), (0, 2), (3, 1), (0, 1), (3, 1)]]


@pytest.mark.parametrize("chunk", [9, 64, 4000])
def test_what_prompts_begin_with_is_computed_once_whatever_is_asked_first(chunk):
    for turn in range(3):
        scheduler = scheduler_for(PLAIN, prefill_chunk=chunk, pages=128)
        executor = counting(scheduler)
        generations = [generation(ids, seed) for seed, ids in enumerate(ROUND[2 * turn :] + ROUND[: 2 * turn])]
        for one in generations:
            scheduler.submit(one)
        run(scheduler)
        assert executor.prompt_tokens == tokens_once(ROUND)
        assert sum(len(one.prompt) - one.cached_tokens for one in generations) == executor.prompt_tokens
        for one in generations:
            assert one.generated == spoken_alone(PLAIN, one)
        assert pages_held(scheduler) == 0


def test_prompts_that_come_while_another_is_computed_wait_for_what_they_share():
    scheduler = scheduler_for(PLAIN, prefill_chunk=1)
    executor = counting(scheduler)
    generations = [generation(ids, seed) for seed, ids in enumerate(ROUND)]
    for one in generations:
        scheduler.submit(one)
        scheduler.step()
    run(scheduler)
    assert executor.prompt_tokens == tokens_once(ROUND)
    assert [one.generated for one in generations] == [spoken_alone(PLAIN, one) for one in generations]


def test_a_beginning_seen_twice_is_kept_for_the_third():
    scheduler = scheduler_for(PLAIN)
    generations = [generation(QUESTION + prompt(20, seed=seed), seed) for seed in range(3)]
    for one in generations:
        scheduler.submit(one)
        run(scheduler)
        assert one.generated == spoken_alone(PLAIN, one)
    assert [one.cached_tokens for one in generations] == [0, 0, len(QUESTION)]


def test_a_beginning_shorter_than_a_page_is_not_worth_a_state():
    scheduler = scheduler_for(PLAIN)
    executor = counting(scheduler)
    for seed in range(3):
        scheduler.submit(generation(QUESTION[: PAGE - 1] + prompt(20, seed=seed), seed))
    run(scheduler)
    assert executor.prompt_tokens == 3 * (PAGE - 1 + 20)
    assert executor.steps_with_prompts == 1


def test_a_prompt_that_another_goes_beyond_starts_as_soon_as_that_one_has_passed_its_end():
    scheduler = scheduler_for(PLAIN, prefill_chunk=8)
    executor = counting(scheduler)
    longer, shorter = generation(prompt(200), 1), generation(prompt(200)[:80], 2)
    scheduler.submit(longer)
    scheduler.step()
    scheduler.submit(shorter)
    while not shorter.generated:
        scheduler.step()
    assert not longer.generated
    assert shorter.cached_tokens == 80
    run(scheduler)
    assert executor.prompt_tokens == 200
    for one in (longer, shorter):
        assert one.generated == spoken_alone(PLAIN, one)


def test_a_prompt_whose_fellow_is_cancelled_half_way_is_computed_all_the_same():
    scheduler = scheduler_for(PLAIN, prefill_chunk=4)
    first, second = generation(reading(0, 1), 1), generation(reading(0, 2), 2)
    for one in (first, second):
        scheduler.submit(one)
    scheduler.step()
    scheduler.cancel(first)
    run(scheduler)
    assert second.generated == spoken_alone(PLAIN, second)
    assert second.cached_tokens == 0
    assert pages_held(scheduler) == 0


def test_decoding_waits_for_no_more_prompt_tokens_than_the_chunk():
    scheduler = scheduler_for(PLAIN, prefill_chunk=20)
    executor = counting(scheduler)
    decoding = generation(prompt(5), limit=60)
    scheduler.submit(decoding)
    scheduler.step()
    for seed in range(3):
        scheduler.submit(generation(prompt(90, seed + 1)))
    spoken = len(decoding.generated)
    for _ in range(10):
        scheduler.step()
    assert len(decoding.generated) == spoken + 10
    assert 0 < executor.most_beside_decoding <= 20
    run(scheduler)


def test_when_pages_run_out_the_youngest_is_put_back_and_says_the_same_later():
    scheduler = scheduler_for(PLAIN, pages=9)
    generations = [generation(prompt(40, seed), seed=seed, limit=90) for seed in range(4)]
    for one in generations:
        scheduler.submit(one)
    run(scheduler)
    assert scheduler.preemptions > 0
    for one in generations:
        assert one.generated == spoken_alone(PLAIN, one)
    assert generations[0].finish_reason == "length"
    assert pages_held(scheduler) == 0


def test_a_request_that_needs_every_page_runs_alone_to_its_end():
    scheduler = scheduler_for(PLAIN, pages=4)
    generations = [generation(prompt(length, length), limit=4 * PAGE - length) for length in (100, 3, 33)]
    for one in generations:
        scheduler.submit(one)
    run(scheduler)
    for one in generations:
        assert one.generated == spoken_alone(PLAIN, one)


def test_waiting_requests_start_in_the_order_they_came():
    scheduler = scheduler_for(PLAIN, pages=8, max_batch=2)
    generations = [generation(prompt(length, length), limit=5) for length in (60, 200, 10, 20)]
    for one in generations:
        scheduler.submit(one)
    ended = []
    while scheduler.busy:
        ended += [emission.generation for emission in scheduler.step() if emission.generation.finish_reason]
    assert ended.index(generations[1]) < ended.index(generations[2]) < ended.index(generations[3])


def test_the_batch_never_grows_beyond_its_bound():
    scheduler = scheduler_for(PLAIN, max_batch=3)
    generations = [generation(prompt(9, seed % 2), seed=seed, limit=3 + seed) for seed in range(9)]
    for one in generations:
        scheduler.submit(one)
    while scheduler.busy:
        scheduler.step()
        assert len(scheduler.running) <= 3
    assert all(len(one.generated) == one.limit for one in generations)


def test_stop_ids_end_a_reply_and_belong_to_it():
    free = generation(prompt(20), seed=1, limit=30)
    stop = spoken_alone(PLAIN, free)[11]
    scheduler = scheduler_for(PLAIN)
    one = generation(prompt(20), seed=1, limit=30, stop_ids=frozenset([stop]))
    scheduler.submit(one)
    run(scheduler)
    assert one.finish_reason == "stop"
    assert one.generated == spoken_alone(PLAIN, one)
    assert one.generated[-1] == stop


def test_log_probabilities_come_with_every_token_and_survive_preemption():
    scheduler = scheduler_for(PLAIN, pages=6)
    params = SamplingParams(temperature=0.5, logprobs=2)
    generations = [generation(prompt(40, seed), seed=seed, limit=60, params=params) for seed in range(3)]
    for one in generations:
        scheduler.submit(one)
    run(scheduler)
    assert scheduler.preemptions > 0
    for one in generations:
        with torch.inference_mode():
            scores = PLAIN(torch.tensor([[*one.prompt, *one.generated]]))[0].double().log_softmax(-1)
        for place, (token, record) in enumerate(zip(one.generated, one.logprobs, strict=True)):
            row = scores[len(one.prompt) - 1 + place]
            assert record.token_id == token
            assert record.logprob == pytest.approx(float(row[token]), abs=1e-4)
            assert [value for _, value in record.top] == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)


def test_forgetting_kept_prompts_in_the_middle_changes_nothing():
    scheduler = scheduler_for(PLAIN, prefill_chunk=10)
    generations = [generation(prompt(60, seed // 2), seed=seed) for seed in range(4)]
    for one in generations:
        scheduler.submit(one)
    while scheduler.busy:
        scheduler.step()
        scheduler.drop_prefixes() if len(generations[0].generated) == 2 else None
    for one in generations:
        assert one.generated == spoken_alone(PLAIN, one)


@pytest.mark.parametrize("bound", ["max_batch", "prefill_chunk"])
def test_a_bound_below_one_is_refused(bound):
    executor = scheduler_for(PLAIN).executor
    with pytest.raises(ValueError, match=f"{bound} is 0"):
        Scheduler(executor, **{bound: 0})


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 120), st.integers(1, 40), st.integers(0, 2)),
        st.tuples(st.just("step"), st.integers(1, 25)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("keep"), st.integers(1, 60), st.integers(1, 20)),
        st.tuples(st.just("forget")),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(ACTIONS, st.integers(5, 20), st.integers(1, 6), st.sampled_from([8, 64]))
def test_whatever_happens_no_page_is_lost_and_the_bounds_hold(actions, pages, max_batch, chunk):
    scheduler = scheduler_for(PLAIN, pages=pages, max_batch=max_batch, prefill_chunk=chunk)
    submitted = []

    def submit(length, limit, **fields):
        if length + limit <= scheduler.pool.tokens:
            # Two of three variants begin alike.
            variant = fields.pop("variant", 0)
            alike = length * 2 // 3 if variant else 0
            ids = prompt(120)[:alike] + prompt(length - alike, variant)
            submitted.append(generation(ids, len(submitted), limit, **fields))
            scheduler.submit(submitted[-1])

    def check(pool: StatePool):
        held = {int(page) for slot in range(pool.slots) for page in pool.tables[slot, : pool.page_counts[slot]]}
        assert len(held) == pool.pages - pool.free_pages
        assert len(scheduler.running) <= max_batch

    for action, *values in actions:
        if action == "submit":
            submit(values[0], values[1], variant=values[2])
        elif action == "keep":
            submit(*values, keep_state=True)
        elif action == "cancel" and submitted:
            scheduler.cancel(submitted[values[0] % len(submitted)])
        elif action == "forget":
            scheduler.drop_prefixes()
        for _ in range(values[0] if action == "step" else 0):
            scheduler.step()
            check(scheduler.pool)
    run(scheduler)
    check(scheduler.pool)
    assert all(one.finish_reason == "cancelled" or len(one.generated) == one.limit for one in submitted)
    assert pages_held(scheduler) == 0
    assert scheduler.pool.free_slots == scheduler.pool.slots
