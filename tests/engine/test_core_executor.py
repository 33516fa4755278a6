"""The compiled executor: near the model with the same quantised weights, and the same bits however it is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core_models import SHAPE, decided_model, quantised
from engine_models import generation, prompt, run
from openzaya.engine.core import library, plan
from openzaya.engine.core.executor import CompiledExecutor, QuantisedWeights
from openzaya.engine.core.products import Core
from openzaya.engine.executor import PromptChunk, StepBatch, TorchExecutor
from openzaya.engine.params import SamplingParams
from openzaya.engine.sampling import logprobs, sample
from openzaya.engine.scheduler import Scheduler, slots_for
from openzaya.engine.state import StatePool
from openzaya.model.router import Routing

pytestmark = pytest.mark.usefixtures("variants")


@pytest.fixture(scope="module", params=[(4, "zero", True), (8, "identity", False)], ids=["w4", "w8"])
def case(request):
    bits, skip, tied = request.param
    model = decided_model(SHAPE.with_(skip_semantics=skip, tie_word_embeddings=tied))
    weights, routing = quantised(model, bits), Routing()
    with torch.inference_mode():
        model(torch.tensor([prompt(100)]), routing=routing)
    assert {int(chosen) for layer in routing.chosen for chosen in layer.flatten()} == set(range(5))
    return model, weights


KEPT = pytest.mark.parametrize("kv", [torch.float32, torch.float16, torch.int8], ids=str)


def pool_of(config, slots=8, kv=None):
    return StatePool(config, memory=1 << 23, slots=slots, kv=kv)


def opened(executor, length):
    slot = executor.pool.open()
    assert executor.pool.reserve(slot, length)
    return slot


def prefill(executor, slot, ids):
    (logits,) = executor.step(StepBatch(chunks=[PromptChunk(slot, ids, True)])).chunk_logits
    return logits


def expect_the_logits_of_the_model(model, weights):
    """But for what rounding activations changes."""
    ids = prompt(100)
    with Core(threads=2) as core:
        compiled = CompiledExecutor(weights, pool_of(model.config), core)
        plain = TorchExecutor(model, pool_of(model.config))
        ours, theirs = (prefill(executor, opened(executor, 100), ids) for executor in (compiled, plain))
    spread = theirs.std()
    assert (ours - theirs).abs().max() < 0.1 * spread
    assert (ours - theirs).pow(2).mean().sqrt() < 0.03 * spread


def test_logits_are_those_of_the_model_with_the_same_weights_but_for_rounded_activations(case):
    expect_the_logits_of_the_model(*case)


@pytest.mark.parametrize("semantics", ["zero", "identity"])
def test_a_token_that_skips_gives_nothing_or_itself_as_the_model_says(semantics):
    model = decided_model(SHAPE.with_(skip_semantics=semantics), skip_bias=10, effect=30)
    expect_the_logits_of_the_model(model, quantised(model, 8))


def test_products_are_within_the_bound_of_rounding(case):
    model, weights = case
    matrix = weights.matrices["model.layers.1.self_attn.o_proj.weight"]
    weight_NK = model.model.layers[1].self_attn.o_proj.weight.detach().numpy()
    x_TK = np.random.default_rng(0).standard_normal((20, weight_NK.shape[1])).astype(np.float32)
    with Core(threads=1) as core:
        quantised_x = core.quantise(x_TK, matrix.group)
        error_TN = np.abs(core.product(matrix, quantised_x) - x_TK @ weight_NK.T)
    bound_TN = 0.5 * quantised_x.scales_T[:, None] * np.abs(weight_NK).sum(axis=1)
    assert (error_TN <= bound_TN + 1e-5).all()
    assert error_TN.max() > 0.01 * bound_TN.max()


def test_positions_beyond_a_block_of_the_rotary_tables_are_like_any_other(case, monkeypatch):
    model, weights = case
    logits = []
    with Core(threads=1) as core:
        for block in (4096, 32):
            monkeypatch.setattr(plan, "_ROTARY_BLOCK", block)
            executor = CompiledExecutor(weights, pool_of(model.config), core)
            slot = opened(executor, 90)
            prefill(executor, slot, prompt(20))
            logits.append(prefill(executor, slot, prompt(70)))
    # The last digit of a cosine may depend on its place in a block, and flip the rounding of an activation.
    assert (logits[1] - logits[0]).abs().max() < 0.05 * logits[0].std()


@KEPT
def test_a_sequence_has_the_same_bits_whole_in_chunks_token_by_token_forked_and_among_others(case, kv):
    model, weights = case
    ids = prompt(90)
    with Core(threads=1, variant="portable") as one, Core(threads=3) as three:
        alone = CompiledExecutor(weights, pool_of(model.config, kv=kv), one)
        whole = prefill(alone, opened(alone, 90), ids)
        busy = CompiledExecutor(weights, pool_of(model.config, kv=kv), three)
        slot, other = opened(busy, 90), opened(busy, 90)
        for first, last in ((0, 1), (1, 34), (34, 64), (64, 70)):
            chunks = [PromptChunk(other, prompt(7, first), False), PromptChunk(slot, ids[first:last], False)]
            busy.step(StepBatch(chunks=chunks))
        twin = busy.pool.fork(slot)
        assert busy.pool.reserve(twin, 90)
        for place in range(70, 90):
            slots = np.array([twin, other, slot])
            tokens = np.array([ids[place], 5, ids[place]])
            chunks = [PromptChunk(opened(busy, 9), prompt(9), True)] if place == 80 else []
            result = busy.step(StepBatch(slots, tokens, chunks))
        np.testing.assert_array_equal(result.decode_logits[0].numpy(), whole.numpy())
        np.testing.assert_array_equal(result.decode_logits[2].numpy(), whole.numpy())


def test_smaller_keys_and_values_leave_more_room_and_nearly_the_same_logits(case):
    model, weights = case
    ids, pages, logits = prompt(100), [], []
    with Core(threads=2) as core:
        for kv in (None, torch.float16, torch.int8):
            pool = pool_of(model.config, kv=kv)
            pages.append(pool.page_bytes)
            executor = CompiledExecutor(weights, pool, core)
            logits.append(prefill(executor, opened(executor, 100), ids))
    assert pages == [pages[0], pages[0] // 2, pages[0] * 20 // 64]  # 16 channels of 4, 2 and 1 bytes, and a scale
    spread = logits[0].std()
    for other, share in zip(logits[1:], (0.05, 0.2)):
        assert 0 < (other - logits[0]).pow(2).mean().sqrt() < share * spread


def test_the_executor_draws_the_tokens_of_sampling_from_the_scores_of_a_step(case):
    model, weights = case
    seeds, places, params = np.arange(8, dtype=np.uint64), np.arange(8), [SamplingParams(top_p=0.9)] * 8
    with Core(threads=2) as core:
        executor = CompiledExecutor(weights, pool_of(model.config), core)
        slots = np.array([opened(executor, 40) for _ in range(8)])
        logits = executor.step(StepBatch(slots, np.arange(8) + 5)).decode_logits
        drawn = executor.sample(logits, params, seeds, places)
        records = executor.logprobs(logits[:5], drawn[:5], [0, 1, 3, 20, 2])
    np.testing.assert_array_equal(drawn, sample(logits, params, seeds, places))
    for record, expected in zip(records, logprobs(logits[:5], drawn[:5], [0, 1, 3, 20, 2]), strict=True):
        assert record.token_id == expected.token_id
        assert record.logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert [token for token, _ in record.top] == [token for token, _ in expected.top]


def test_a_step_finds_the_highest_score_of_every_block_of_every_row(variants):
    config = SHAPE.with_(vocab_size=2 * library.BLOCK + 40)
    random = np.random.default_rng(0)
    for bits in (4, 8):
        weights = quantised(decided_model(config), bits)
        for threads, variant in zip((1, 2, 3, 2, 1), variants):
            with Core(threads=threads, variant=variant) as core:
                executor = CompiledExecutor(weights, pool_of(config), core)
                slots = np.array([opened(executor, 8) for _ in range(3)])
                for rows in (3, 1, 2):
                    batch = StepBatch(slots[:rows], random.integers(0, config.vocab_size, rows))
                    logits = executor.step(batch).decode_logits
                    tops = executor._tops_of(logits)[:rows]
                    blocks = np.pad(logits, ((0, 0), (0, library.BLOCK - 40)), constant_values=-np.inf)
                    np.testing.assert_array_equal(tops, blocks.reshape(rows, 3, -1).max(axis=2))
                    assert executor._tops_of(logits.clone()) is None


def test_a_prompt_keeps_its_scores_when_the_next_step_writes_its_own(case):
    model, weights = case
    with Core(threads=1) as core:
        executor = CompiledExecutor(weights, pool_of(model.config), core)
        slot = opened(executor, 40)
        (kept,) = executor.step(StepBatch(chunks=[PromptChunk(slot, [3, 4, 5], True)])).chunk_logits
        before = kept.clone()
        executor.step(StepBatch(np.array([slot]), np.array([6])))
    np.testing.assert_array_equal(kept, before)


def test_the_scheduler_speaks_the_same_tokens_whatever_the_batch_the_chunks_and_the_memory(case, variants):
    model, weights = case
    wanted = [(prompt(length), seed) for seed, length in enumerate((3, 40, 70, 33, 64))]
    params = SamplingParams(logprobs=2, temperature=0.9, top_p=0.95)

    def spoken(core, max_batch, prefill_chunk, pages):
        pool = StatePool(model.config, memory=1 << 40, slots=slots_for(max_batch))
        memory = pages * pool.page_bytes + slots_for(max_batch) * pool.slot_bytes
        pool = StatePool(model.config, memory=memory, slots=slots_for(max_batch))
        scheduler = Scheduler(CompiledExecutor(weights, pool, core), max_batch=max_batch, prefill_chunk=prefill_chunk)
        generations = [generation(ids, seed, 24, params=params) for ids, seed in wanted]
        for each in generations:
            scheduler.submit(each)
        run(scheduler)
        return [(each.generated, each.logprobs) for each in generations]

    with Core(threads=2) as core, Core(threads=1, variant=variants[0]) as plain:
        alone = spoken(core, 1, 512, 40)
        assert spoken(core, 16, 512, 40) == alone
        assert spoken(core, 3, 17, 8) == alone  # so little memory that some are put off and computed anew
        assert spoken(plain, 16, 50, 40) == alone


def test_what_the_core_cannot_run_is_refused(case):
    model, weights = case
    with Core(threads=1) as core:
        pool = StatePool(model.config, memory=1 << 23, slots=2, dtype=torch.bfloat16)
        with pytest.raises(ValueError, match=r"keeps torch.bfloat16 .* needs float32"):
            CompiledExecutor(weights, pool, core)


def without(mapping, name):
    return {key: value for key, value in mapping.items() if key != name}


def test_weights_that_are_not_what_their_configuration_says_are_refused(case):
    _, weights = case
    config, matrices, plain = weights.config, weights.matrices, weights.plain
    norm, head = "model.norm.weight", "model.embed_tokens.weight"
    wider, narrower = config.with_(num_experts=5), config.with_(moe_intermediate_size=32)
    with Core(threads=1) as core:
        for wrong, message in (
            (QuantisedWeights(config, matrices, without(plain, norm)), f"no tensor {norm}"),
            (QuantisedWeights(config, matrices, {**plain, norm: plain[norm][1:]}), rf"{norm} has shape \(63,\)"),
            (QuantisedWeights(config, without(matrices, head), plain), f"no matrix {head}"),
            (QuantisedWeights(wider, matrices, plain), "gate_up_proj is 4 x 128 x 64; .* 5 x 128 x 64"),
            (QuantisedWeights(narrower, matrices, plain), "gate_up_proj is 4 x 128 x 64; .* 4 x 64 x 64"),
        ):
            with pytest.raises(ValueError, match=message):
                CompiledExecutor(wrong, pool_of(config), core)


def test_a_step_that_would_read_or_write_elsewhere_is_refused_and_changes_nothing(case):
    model, weights = case
    with Core(threads=1) as core:
        executor = CompiledExecutor(weights, pool_of(model.config), core)
        slot = opened(executor, 32)
        for ids, message in (
            ([5, 300], "tokens are 5 to 300; the vocabulary has 0 to 299"),
            ([-1], "tokens are -1 to -1"),
            ([], "a chunk of 0"),
            ([1] * 33, "no pages for its next tokens"),
        ):
            with pytest.raises(ValueError, match=message):
                executor.step(StepBatch(chunks=[PromptChunk(slot, ids, True)]))
        assert executor.pool.lengths[slot] == 0


def test_a_step_is_one_call_of_the_core(case, monkeypatch):
    model, weights = case
    with Core(threads=1) as core:
        executor = CompiledExecutor(weights, pool_of(model.config), core)
        slot, calls, call = opened(executor, 40), [], core.call
        monkeypatch.setattr(core, "call", lambda name, *arguments: (calls.append(name), call(name, *arguments)))
        prefill(executor, slot, prompt(30))
        executor.step(StepBatch(np.array([slot]), np.array([3])))
    assert calls == ["oz_run_step"] * 2
